"""Specs of file systems: what makes no sense is refused when it is written down; names of containers are no control data."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox._plan import WriteFile
from sandbox.errors import UsageError
from sandbox.fs import Bind, Directory, FilesystemSpec, HostView, Scratch, Tmpfs, Volume, name_ops

component = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8).filter(
    lambda name: name not in ("proc", "sys", "dev")
)
targets = st.lists(component, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


@pytest.mark.parametrize(
    "target",
    ["/", "//", "/.", "", "data", "./data", "/a/../b", "/..", "/a\0b", "/" + "x" * 256, "/proc", "/proc/", "//proc//self", "/proc/sys", "/sys",
     "/sys/fs/cgroup", "/dev", "/dev/null", "/dev/pts", "/dev/pts/0", "/dev/ptmx", "/dev/./mqueue", "/dev/console"],
)  # fmt: skip
def test_a_target_that_is_no_place_for_a_mount_is_refused(target):
    for make in (lambda: Tmpfs(target), lambda: Bind("/usr", target), lambda: Volume("v", target)):
        with pytest.raises(UsageError):
            make()


@pytest.mark.parametrize("target", ["/data", "/dev/shm", "/dev/fuse", "/processes", "/system", "/devices/null", "/a/proc"])
def test_a_target_that_only_resembles_ours_is_accepted(target):
    assert Tmpfs(target).target == target


@given(targets)
def test_a_target_has_one_spelling(target):
    assert Tmpfs(target.replace("/", "//") + "/./").target == target


@given(st.lists(targets, unique=True, max_size=12))
def test_mounts_are_ordered_with_parents_first_whatever_the_order_given(paths):
    ordered = [mount.target for mount in FilesystemSpec(mounts=[Tmpfs(path) for path in paths]).mounts]
    assert sorted(ordered) == sorted(paths)
    for index, path in enumerate(ordered):
        assert not any(path.startswith(f"{later}/") for later in ordered[index:])


@given(targets)
def test_two_mounts_on_one_target_are_refused_in_any_spelling(target):
    with pytest.raises(UsageError, match="two mounts"):
        FilesystemSpec(mounts=[Tmpfs(target), Tmpfs("/other"), Bind("/usr", f"/{target}/")])


def test_more_mounts_than_a_plan_has_slots_are_refused():
    with pytest.raises(UsageError, match="too many"):
        FilesystemSpec(mounts=[Tmpfs(f"/t{number}") for number in range(129)])


def test_a_mount_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="not a Bind"):
        FilesystemSpec(mounts=["/src:/src"])  # type: ignore[list-item]


@pytest.mark.parametrize("size", [0, 1, 4095, -1, "0", "x", None, True, 1 << 63])
def test_a_size_that_is_no_limit_is_refused(size):
    with pytest.raises(UsageError):
        Tmpfs("/t", size=size)
    with pytest.raises(UsageError):
        FilesystemSpec(shm=size)


@pytest.mark.parametrize("inodes", [0, 1, -1, True, 1.5, "9"])
def test_an_inode_count_that_is_no_limit_is_refused(inodes):
    with pytest.raises(UsageError):
        Tmpfs("/t", inodes=inodes)
    with pytest.raises(UsageError):
        Scratch(inodes=inodes)


@pytest.mark.parametrize("mode", [-1, 0o10000, "755", True])
def test_a_mode_that_is_none_is_refused(mode):
    with pytest.raises(UsageError):
        Tmpfs("/t", mode=mode)


def test_a_scratch_layer_is_limited_even_when_nobody_says_so():
    size, inodes = Scratch().limits
    assert 0 < size < 1 << 40
    assert 0 < inodes < 1 << 21


def test_limits_that_a_disk_cannot_enforce_are_refused():
    with pytest.raises(UsageError, match="cannot be enforced"):
        Scratch("1M", disk="/var/tmp")
    with pytest.raises(UsageError, match="cannot be enforced"):
        Scratch(inodes=100, disk="/var/tmp")


def test_an_overlay_without_a_scratch_layer_is_refused():
    with pytest.raises(UsageError, match="scratch"):
        FilesystemSpec(root=HostView(overlay=True))


@pytest.mark.parametrize("field", ["root", "scratch"])
def test_a_root_or_scratch_of_another_kind_is_refused(field):
    with pytest.raises(UsageError, match=field):
        FilesystemSpec(**{field: "64M"})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "-v", "a b", "a\n", "x" * 129, 7, b"x"])
def test_a_volume_name_that_could_be_a_path_is_refused(name):
    with pytest.raises(UsageError):
        Volume(name, "/v")


@pytest.mark.parametrize("user", ["", "root", "nobody", "a:b", "a\nroot", "Ä", "x" * 32])
def test_a_user_name_that_would_forge_a_line_of_passwd_is_refused(user):
    with pytest.raises(UsageError):
        HostView(user=user)


def test_a_relative_source_means_the_directory_of_the_caller_at_that_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bind, root = Bind("src", "/src"), Directory("root")
    monkeypatch.chdir("/")
    assert (bind.source, root.path) == (str(tmp_path / "src"), str(tmp_path / "root"))


def test_a_source_keeps_dots_as_a_link_before_them_may_lead_elsewhere():
    assert Bind("/a/link/../b", "/b").source == "/a/link/../b"


def test_an_undecodable_source_survives():
    assert os.fsencode(Bind(os.fsdecode(b"/srv/\xff"), "/x").source) == b"/srv/\xff"


def test_masks_and_paths_are_inside_and_never_the_root():
    for paths in ("/proc/kcore", ("proc/kcore",), ("/",), ("/a/../b",)):
        with pytest.raises(UsageError):
            FilesystemSpec(masked=paths)


def test_equal_specs_share_a_hash():
    def make():
        return FilesystemSpec(mounts=(Bind("/usr", "/u", read_only=True), Tmpfs("/t", size="1M")), scratch=Scratch("4M"))

    assert make() == make()
    assert hash(make()) == hash(make())


# --- names ------------------------------------------------------------------------------------------------------------


def written(ops):
    return {op.path: op.data.decode() for op in ops if isinstance(op, WriteFile)}


def test_names_are_written_to_the_three_files_and_nowhere_else():
    files = written(name_ops("box", hosts=[("10.0.0.2", "db")], nameservers=["10.0.0.1", "fd00::1"], search=["example.org"]))
    assert files["etc/hostname"] == "box\n"
    assert files["etc/hosts"].splitlines() == ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", "127.0.1.1\tbox", "10.0.0.2\tdb"]
    assert files["etc/resolv.conf"].splitlines() == ["nameserver 10.0.0.1", "nameserver fd00::1", "search example.org"]
    assert len(files) == 3


def test_an_address_given_for_the_own_name_replaces_the_default():
    assert written(name_ops("box", hosts=[("10.0.0.2", "box")]))["etc/hosts"].count("box") == 1


def test_names_go_to_the_etc_that_is_named():
    ops = name_ops("box", etc=("fs.base", "upper/etc"))
    assert [(op.at, op.path) for op in ops] == [("fs.base", f"upper/etc/{name}") for name in ("hostname", "hosts", "resolv.conf")]


@given(st.text(max_size=70))
def test_a_name_never_adds_a_line_or_a_word(name):
    try:
        files = written(name_ops(name))
    except UsageError:
        return
    assert files["etc/hosts"].split("\n")[2].split() == ["127.0.1.1", name]
    assert files["etc/hosts"].count("\n") == 3
    assert len(name) <= 64


@pytest.mark.parametrize("name", ["", "-a", "a-", "a..b", ".a", "a.", "a b", "a\n10.0.0.1 bank", "ä", "x" * 65, None, 5, "a/b"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(UsageError):
        name_ops(name)


@pytest.mark.parametrize("address", ["", "10.0.0", "10.0.0.1\nsearch x", "::g", "localhost", None])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UsageError):
        name_ops("box", nameservers=[address])
    with pytest.raises(UsageError):
        name_ops("box", hosts=[(address, "db")])
