"""Opening what specs name: what is missing is refused, nothing leaks, and nothing of the caller's is changed."""

from __future__ import annotations

import fcntl
import os
import socket
import stat

import pytest

from sandbox import _plan as plan
from sandbox.errors import UnsupportedError, UsageError
from sandbox.fs import Bind, Directory, FilesystemSpec, HostView, Scratch, Tmpfs, ops
from sandbox.fs._host import HostFiles, _classify, _unescape, host_files
from sandbox.fs._scratch import make_scratch


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "src" / "inner").mkdir(parents=True)
    (tmp_path / "src" / "file").write_text("x")
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "scratch").mkdir()
    return tmp_path


def bound(tree, *mounts, **options):
    return ops(FilesystemSpec(mounts=mounts), **{"privileged": True, **options})


def test_sources_are_pinned_close_on_exec_and_closed_at_the_end(tree):
    with bound(tree, Bind(tree / "src", "/src"), Bind(tree / "src" / "file", "/f")) as opened:
        assert len(opened.fds) == 2
        for fd in opened.fds.values():
            assert not os.get_inheritable(fd)
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
        opened.release()
        opened.release()
        assert opened.fds == {}
    opened.close()


@pytest.mark.parametrize("name", ["missing", "fifo", "socket", "dangling"])
def test_a_source_that_cannot_be_bound_is_refused_and_nothing_stays_open(tree, name):
    os.mkfifo(tree / "fifo")
    (tree / "dangling").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "socket"))
        with pytest.raises(UsageError, match=name):
            bound(tree, Bind(tree / "src", "/a"), Bind(tree / name, "/b"), Bind(tree / "src", "/c"))


def test_a_device_is_refused():
    with pytest.raises(UsageError, match="regular file"):
        ops(FilesystemSpec(mounts=[Bind("/dev/null", "/n")]), privileged=True)


def test_a_link_as_source_means_what_it_leads_to(tree):
    (tree / "link").symlink_to("src")
    with bound(tree, Bind(tree / "link", "/src")) as opened:
        (fd,) = opened.fds.values()
        assert os.path.samestat(os.fstat(fd), os.stat(tree / "src"))


def test_a_root_that_is_a_file_is_refused(tree):
    with pytest.raises(UsageError, match="not a directory"):
        ops(FilesystemSpec(root=Directory(tree / "src" / "file")), privileged=True)


def test_without_privileges_the_plan_has_the_real_path(tree):
    (tree / "link").symlink_to("src")
    with bound(tree, Bind(tree / "link", "/src"), privileged=False, ids=1) as opened:
        (op,) = [op for op in opened.init_ops() if isinstance(op, plan.Open) and op.same_as]
        assert op.path == os.path.realpath(tree / "src")
        assert opened.host_ops == ()


def test_a_mount_inside_a_bind_needs_a_place_there(tree):
    bound(tree, Bind(tree / "src", "/src"), Tmpfs("/src/inner")).close()
    bound(tree, Bind(tree / "src", "/src"), Bind(tree / "src", "/src/inner"), Tmpfs("/src/inner/inner")).close()
    with pytest.raises(UsageError, match="no such place"):
        bound(tree, Bind(tree / "src", "/src"), Tmpfs("/src/none"))
    with pytest.raises(UsageError, match="no such place"):
        bound(tree, Bind(tree / "src", "/src"), Tmpfs("/src/inner/deeper"))
    assert sorted(os.listdir(tree / "src")) == ["file", "inner"]


def test_a_mount_inside_a_tmpfs_inside_a_bind_finds_its_place_in_the_tmpfs(tree):
    bound(tree, Bind(tree / "src", "/src"), Tmpfs("/src/inner"), Tmpfs("/src/inner/new")).close()


def test_a_neighbour_with_the_same_beginning_is_not_inside(tree):
    bound(tree, Bind(tree / "src", "/src"), Tmpfs("/srcs")).close()


def test_what_takes_id_mapping_is_refused_where_there_is_none(tree):
    for spec in (
        FilesystemSpec(mounts=[Bind(tree / "src", "/src")]),
        FilesystemSpec(root=Directory(tree / "root")),
        FilesystemSpec(root=HostView(overlay=True), scratch=Scratch()),
        FilesystemSpec(scratch=Scratch(disk=tree / "scratch")),
    ):
        with pytest.raises(UnsupportedError) as caught:
            ops(spec, privileged=True, id_mapping=lambda fd: False)
        assert caught.value.remedy
    assert os.listdir(tree / "scratch") == []


def test_reading_takes_no_id_mapping(tree):
    with bound(tree, Bind(tree / "src", "/src", read_only=True), id_mapping=False) as opened:
        assert [op.idmap for op in opened.host_ops if isinstance(op, plan.SetAttr)] == [False]


def test_a_writable_usr_is_for_privileged_callers():
    with pytest.raises(UnsupportedError, match="usr"):
        ops(FilesystemSpec(root=HostView(overlay=True), scratch=Scratch()), privileged=False)


def test_our_files_over_a_directory_never_go_through_its_links(tree):
    (tree / "root" / "etc" / "resolv.conf").symlink_to("/etc/passwd")
    (tree / "root" / "etc" / "hosts").write_text("kept")
    with ops(FilesystemSpec(root=Directory(tree / "root")), privileged=True) as opened:
        written = [op for op in opened.names("box") if isinstance(op, plan.WriteFile)]
        assert {(op.at, os.path.dirname(op.path)) for op in written} == {("fs.base", "upper/etc")}
    assert (tree / "root" / "etc" / "hosts").read_text() == "kept"


def test_our_etc_has_the_mode_and_the_owner_of_the_directory_it_covers(tree):
    (tree / "root" / "etc").chmod(0o750)
    owner = os.getuid(), os.getgid()
    with ops(FilesystemSpec(root=Directory(tree / "root")), privileged=True) as opened:
        assert plan.MakeDir("upper/etc", "fs.base", 0o750, *owner) in opened.early_ops()


def test_an_etc_that_is_a_link_is_covered_and_not_looked_into(tree):
    (tree / "root" / "etc").rmdir()
    (tree / "root" / "etc").symlink_to("/etc")
    with ops(FilesystemSpec(root=Directory(tree / "root")), privileged=True) as opened:
        assert plan.MakeDir("upper/etc", "fs.base") in opened.early_ops()
        assert opened.read("/etc/passwd", 100) == b""


def test_a_file_of_the_root_is_read_below_it_and_only_when_it_is_one(tree):
    root = tree / "root"
    (root / "etc" / "passwd").write_text("a" * 50)
    (root / "etc" / "group").symlink_to("/etc/passwd")
    os.mkfifo(root / "etc" / "fifo")
    with ops(FilesystemSpec(root=Directory(root)), privileged=True) as opened:
        assert opened.read("/etc/passwd", 10) == b"a" * 10
        assert opened.read("/etc/group", 100) == b"a" * 50  # its own /etc/passwd, not the host's
        assert opened.read("/etc/fifo", 100) == opened.read("/etc", 100) == opened.read("/missing", 100) == b""


def test_the_state_of_a_root_changes_with_what_comes_and_goes(tree):
    def state():
        with ops(FilesystemSpec(root=Directory(tree / "root")), privileged=True) as opened:
            return opened.state()

    before = state()
    assert state() == before
    (tree / "root" / "etc" / "new").write_text("")
    changed = state()
    assert changed != before
    (tree / "root" / "new").write_text("")
    assert state() not in (before, changed)


def test_plans_of_equal_specs_have_equal_keys_and_others_have_not(tree):
    spec = FilesystemSpec(mounts=[Bind(tree / "link", "/src")])
    (tree / "link").symlink_to("src")
    with ops(spec, privileged=False) as first, ops(spec, privileged=False) as second:
        assert first.key == second.key
        (tree / "link").unlink()
        (tree / "link").symlink_to("root")
        with ops(spec, privileged=False) as third:
            assert third.key != first.key


def test_a_spec_of_another_kind_is_refused():
    with pytest.raises(UsageError):
        ops(None, privileged=True)  # type: ignore[arg-type]


# --- scratch on disk --------------------------------------------------------------------------------------------------


def test_a_scratch_directory_is_closed_to_others_and_goes_with_its_plan(tree):
    spec = FilesystemSpec(scratch=Scratch(disk=tree / "scratch"))
    with ops(spec, privileged=True) as one, ops(spec, privileged=True) as two:
        made = os.listdir(tree / "scratch")
        assert len(made) == 2
        assert {stat.S_IMODE(os.stat(tree / "scratch" / name).st_mode) for name in made} == {0o700}
        one.release()
        two.release()
        assert sorted(os.listdir(tree / "scratch")) == sorted(made)
    assert os.listdir(tree / "scratch") == []


def test_what_a_dead_process_left_is_removed_by_the_next_one_and_nothing_else(tree):
    base = tree / "scratch"
    (base / "scratch-dead" / "work" / "work").mkdir(parents=True)
    (base / "scratch-dead" / "upper").mkdir()
    (base / "scratch-dead" / "upper" / "link").symlink_to(tree / "src")
    (base / "scratch-dead" / "work" / "work").chmod(0)
    (base / "scratch-link").symlink_to(tree / "src")
    (base / "mine").mkdir()
    alive = make_scratch(str(base))
    try:
        assert sorted(os.listdir(base)) == sorted(["mine", "scratch-link", alive.name])
        make_scratch(str(base)).close()
        assert alive.name in os.listdir(base)
    finally:
        alive.close()
        alive.close()
    assert sorted(os.listdir(tree / "src")) == ["file", "inner"]


def test_a_scratch_base_that_is_missing_is_refused(tree):
    with pytest.raises(UsageError, match="scratch"):
        make_scratch(str(tree / "none"))


def test_a_plan_that_fails_leaves_no_scratch_directory(tree):
    with pytest.raises(UnsupportedError):
        ops(FilesystemSpec(scratch=Scratch(disk=tree / "scratch")), privileged=True, id_mapping=False)
    assert os.listdir(tree / "scratch") == []


# --- the host ---------------------------------------------------------------------------------------------------------


def classify(path, trees=("/usr",)):
    binds: list[str] = []
    links: list[tuple[str, str]] = []
    files: list[tuple[str, bytes]] = []
    _classify(str(path), trees=trees, binds=binds, links=links, files=files)
    return binds, links, files


def test_what_not_everybody_may_read_is_not_shown(tmp_path):
    for name, mode in (("secret", 0o600), ("group", 0o640)):
        (tmp_path / name).write_text("s")
        (tmp_path / name).chmod(mode)
        (tmp_path / f"{name}.d").mkdir()
        (tmp_path / f"{name}.d").chmod(mode | 0o110)
        assert classify(tmp_path / name) == ([], [], [])
        assert classify(tmp_path / f"{name}.d") == ([], [], [])
        (tmp_path / f"{name}.link").symlink_to(name)
        assert classify(tmp_path / f"{name}.link") == ([], [], [])


def test_small_files_are_copied_and_large_ones_and_directories_bound(tmp_path):
    (tmp_path / "small").write_bytes(b"a")
    (tmp_path / "large").write_bytes(b"a" * 20000)
    (tmp_path / "directory").mkdir(mode=0o755)
    assert classify(tmp_path / "small") == ([], [], [(str(tmp_path / "small"), b"a")])
    assert classify(tmp_path / "large") == ([str(tmp_path / "large")], [], [])
    assert classify(tmp_path / "directory") == ([str(tmp_path / "directory")], [], [])
    assert classify(tmp_path / "none") == ([], [], [])


def test_a_link_into_the_programs_stays_a_link(tmp_path):
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr" / "zone").write_text("z")
    (tmp_path / "localtime").symlink_to("usr/zone")
    assert classify(tmp_path / "localtime", (str(tmp_path / "usr"),))[1] == [(str(tmp_path / "localtime"), str(tmp_path / "usr" / "zone"))]


def test_the_view_of_this_host_has_programs_and_no_secrets():
    files = host_files()
    assert isinstance(files, HostFiles)
    assert "/usr" in files.trees
    shown = (*files.trees, *files.binds, *(path for path, _ in files.links), *(path for path, _ in files.files))
    for secret in ("/etc/shadow", "/etc/gshadow", "/etc/ssl/private", "/etc/ssh", "/etc", "/root", "/home", "/var", "/run", "/srv", "/"):
        assert secret not in shown
    assert sum(len(data) for _, data in files.files) < 65536
    assert host_files() is files


def test_mountinfo_is_unescaped():
    assert _unescape(r"/a\040b\011c\134d") == "/a b\tc\\d"
