"""Files of a live container from outside: looking, writing, removing, and copying whole trees both ways."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sandbox
from sandbox import PIPE, Bind, Container, CopyProgress, LimitError, SetupError, Tmpfs, UsageError
from tests.support import needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged]
WHEN = 1_234_567_890_123_456_789


@pytest.fixture
def box() -> Iterator[Container]:
    with Container(mounts=[Tmpfs("/work", size="256M", inodes=50_000)]) as c:
        yield c


def sh(c: Container, script: str) -> bytes:
    result = c.exec(["sh", "-c", script], timeout=patience(60))
    assert result.ok, result
    out: bytes = result.stdout
    return out


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with all that is to be kept."""
    top = tmp_path / "tree"
    (top / "a" / "b").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "a" / "file").write_bytes(b"text")
    (top / "a" / "b" / "program").write_bytes(b"#!/bin/sh\necho ran\n")
    (top / "a" / "b" / "large").write_bytes(os.urandom(3_333_333))
    (top / "a" / "nothing").touch()
    (top / "link").symlink_to("a/file")
    (top / "dangling").symlink_to("/nowhere")
    for name, mode in (("a/file", 0o640), ("a/b/program", 0o755), ("a/nothing", 0o400), ("a/b", 0o750), ("empty", 0o1777)):
        (top / name).chmod(mode)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, ns=(WHEN, WHEN + number * 1_000_000_007), follow_symlinks=False)
    os.utime(top, ns=(WHEN, WHEN - 1))
    return top


def described(top: Path) -> dict[str, tuple[int, int, object]]:
    """Modes, times and contents of all below *top*; the sticky bit stays inside."""
    found: dict[str, tuple[int, int, object]] = {}
    for path in (top, *top.rglob("*")):
        info = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else sorted(os.listdir(path))
        found[str(path.relative_to(top))] = (info.st_mode & ~0o1000 & ~(0o777 if path.is_symlink() else 0), info.st_mtime_ns, content)
    return found


# --- looking and removing ------------------------------------------------------------------------------------------------------


def test_stat_says_what_is_there_inside(box: Container) -> None:
    box.write_bytes("/work/file", b"12345", mode=0o4750)
    sh(box, "ln -s file /work/link; ln -s nowhere /work/dangling; mkdir /work/dir")
    uid, gid = sh(box, "id -u; id -g").split()
    info = box.stat("/work/file")
    assert (stat.filemode(info.st_mode), info.st_size, info.st_uid, info.st_gid) == ("-rwsr-x---", 5, int(uid), int(gid))
    assert box.stat("/work/link").st_ino == info.st_ino
    assert stat.S_ISLNK(box.stat("/work/link", follow_symlinks=False).st_mode)
    assert stat.S_ISDIR(box.stat("/work/dir").st_mode)
    assert abs(info.st_mtime - time.time()) < 60
    assert info.st_mtime_ns // 10**9 == int(info.st_mtime)
    with pytest.raises(SetupError, match="/work/dangling: ENOENT"):
        box.stat("/work/dangling")


def test_owners_that_are_nobody_inside_are_65534(box: Container) -> None:
    # The host's root, to a container that has ids of its own, or one id that is not root's.
    assert box.stat("/usr/bin/env").st_uid == int(sh(box, "stat -c %u /usr/bin/env"))


def test_exists_and_listdir(box: Container) -> None:
    sh(box, "cd /work; mkdir dir; touch dir/b dir/a; ln -s dir link; ln -s nowhere dangling; ln -s loop loop")
    assert [box.exists(f"/work/{name}") for name in ("dir", "link/a", "dangling", "loop", "none", "dir/a/x")] == [True, True, False, False, False, False]
    assert box.listdir("/work/link") == ["a", "b"]
    assert box.listdir("/work") == ["dangling", "dir", "link", "loop"]
    with pytest.raises(SetupError, match="ENOTDIR"):
        box.listdir("/work/dir/a")
    with pytest.raises(LimitError, match="more than 3") as error:
        box.listdir("/work", max_entries=3)
    assert error.value.limit == "max_entries"


def test_what_a_program_left_where_all_may_write_is_like_anywhere(box: Container) -> None:
    """Also where fs.protected_symlinks and fs.protected_regular are set, as systemd does, and root is refused what is not his."""
    sh(box, "cd /work; mkdir d; echo 1 >d/f; echo 2 >f; ln -s d dl; ln -s f fl; ln -s /work/dl/../fl long; ln -s dl/f far; ln -s long/x in; chmod 600 f d/f")
    assert [box.read_bytes(f"/work/{name}") for name in ("f", "fl", "long", "dl/f", "far")] == [b"2\n", b"2\n", b"2\n", b"1\n", b"1\n"]
    box.write_bytes("/work/f", b"3")
    box.write_bytes("/work/dl/f", b"4")
    box.write_bytes("/work/dl/new", b"5")
    assert sh(box, "cat /work/f /work/d/f /work/d/new") == b"345"
    for refused in ("fl", "long"):
        with pytest.raises(SetupError, match="ELOOP"):
            box.write_bytes(f"/work/{refused}", b"6")
    with pytest.raises(SetupError, match="ENOTDIR"):
        box.stat("/work/in")
    sh(box, "ln -s /proc/1/root/etc/passwd /work/magic; ln -s ../../../../etc/hostname /work/out")
    assert box.read_bytes("/work/out") == box.read_bytes("/etc/hostname")
    with pytest.raises(SetupError):
        box.read_bytes("/work/magic")
    box.remove("/work/dl/f")
    assert sorted(box.listdir("/work/dl")) == ["new"]


def test_remove_takes_a_file_a_link_an_empty_directory_or_a_tree(box: Container) -> None:
    sh(box, "cd /work; mkdir -p full/a/b empty; touch file full/a/b/c full/x; ln -s full link; ln -s nowhere full/a/dangling")
    for name in ("file", "link", "empty"):
        box.remove(f"/work/{name}")
    with pytest.raises(SetupError, match="ENOTEMPTY"):
        box.remove("/work/full")
    assert box.exists("/work/full/a/b/c")
    box.remove("/work/full", recursive=True)
    assert box.listdir("/work") == []
    with pytest.raises(SetupError, match="ENOENT"):
        box.remove("/work/full", recursive=True)
    box.remove("/work/full", recursive=True, missing_ok=True)
    with pytest.raises(UsageError, match="'/' stays"):
        box.remove("/", recursive=True)


def test_remove_takes_what_no_program_may(box: Container) -> None:
    sh(box, "mkdir -p /work/a/b; touch /work/a/b/c; chmod 0 /work/a/b /work/a")
    box.remove("/work/a", recursive=True)
    assert box.listdir("/work") == []


@pytest.mark.parametrize("levels", [300, 1000])
def test_remove_goes_to_any_depth_and_width(box: Container, levels: int) -> None:
    # Fifty levels for each program that is started: starting one takes long in an emulated machine.
    made = " ".join("d/" * level + "e/e/e" for level in range(50)) + " " + "d/" * 50
    sh(box, f"cd /work; mkdir top; cd top; for i in $(seq {levels // 50}); do mkdir -p {made}; for j in $(seq 50); do : >f$j; cd d; done; done; touch x")
    sh(box, "cd /work/top; mkdir wide; cd wide; seq 2000 | xargs touch; mkdir -p $(seq -f d%g/d 500)")
    fds = len(os.listdir("/proc/self/fd"))
    box.remove("/work/top", recursive=True)
    assert box.listdir("/work") == []
    assert len(os.listdir("/proc/self/fd")) == fds
    assert box.exec(["true"]).ok


def test_remove_never_goes_into_what_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("the caller's")
    with Container(mounts=[Tmpfs("/work"), Bind(tmp_path, "/work/tree/bind")]) as c:
        c.write_bytes("/work/tree/file", b"x")
        for path in ("/work/tree/bind", "/work/tree", "/work"):
            with pytest.raises(SetupError, match="EBUSY"):
                c.remove(path, recursive=True)
        assert c.exists("/work/tree/bind/kept")
        c.remove("/work/tree/bind/kept")
    assert os.listdir(tmp_path) == []


def test_remove_ends_though_a_program_adds_all_the_time(box: Container) -> None:
    script = "mkdir /work/tree; echo ready; while :; do mkdir -p /work/tree/$((n = n + 1))/a/b; done"
    with box.popen(["sh", "-c", script], stdout=PIPE) as adder:
        assert adder.stdout is not None
        adder.stdout.readline()
        began = time.monotonic()
        try:
            box.remove("/work/tree", recursive=True, timeout=0.5)
        except TimeoutError as error:
            assert "a program may be adding" in str(error)
        assert time.monotonic() - began < 10
        adder.kill()
    box.remove("/work/tree", recursive=True, missing_ok=True)


# --- copying -------------------------------------------------------------------------------------------------------------------


def test_a_tree_that_went_in_and_out_is_what_it_was(box: Container, tree: Path, tmp_path: Path) -> None:
    box.copy_in(tree, "/work/new/copy")
    assert stat.S_IMODE(box.stat("/work/new/copy/empty").st_mode) == 0o1777
    assert sh(box, "/work/new/copy/a/b/program") == b"ran\n"
    info = box.stat("/work/new/copy/a/b/large")
    assert (info.st_uid, info.st_gid) == (box.stat("/work/new/copy/link", follow_symlinks=False).st_uid, box.stat("/work/new/copy").st_gid)
    assert str(info.st_uid).encode() == sh(box, "id -u").strip()
    box.copy_out("/work/new/copy", tmp_path / "out")
    expected = described(tree)
    # A directory stays its new owner's to change.
    assert described(tmp_path / "out") == expected


def test_a_tree_can_be_copied_onto_itself(box: Container, tree: Path, tmp_path: Path) -> None:
    for _ in range(2):
        box.copy_in(tree, "/work/copy")
        box.copy_out("/work/copy", tmp_path / "out")
    (tree / "a" / "file").write_bytes(b"x")  # shorter
    box.copy_in(tree, "/work/copy")
    assert box.read_bytes("/work/copy/a/file") == b"x"
    assert described(tmp_path / "out").keys() == described(tree).keys()


def test_a_file_goes_to_a_name_or_into_a_directory(box: Container, tree: Path, tmp_path: Path) -> None:
    box.make_dirs("/work/dir")
    box.copy_in(tree / "a" / "file", "/work/name")
    box.copy_in(tree / "link", "/work/dir")  # the source itself may be a link
    assert (box.read_bytes("/work/name"), box.read_bytes("/work/dir/link")) == (b"text", b"text")
    assert box.stat("/work/name").st_mtime_ns == (tree / "a" / "file").stat().st_mtime_ns
    (tmp_path / "out").mkdir()
    box.copy_out("/work/name", tmp_path / "out")
    box.copy_out("/work/dir/link", tmp_path / "out" / "other")
    assert sorted(os.listdir(tmp_path / "out")) == ["name", "other"]
    assert (tmp_path / "out" / "name").stat().st_mtime_ns == (tree / "a" / "file").stat().st_mtime_ns
    (tmp_path / "to-tree").symlink_to(tree)
    box.copy_in(tmp_path / "to-tree", "/work/through")
    assert box.exists("/work/through/a/file")


def test_another_user_may_be_the_owner(box: Container, tree: Path) -> None:
    own = box.stat("/work").st_uid if box.exec(["id", "-u"]).stdout.strip() == b"0" else int(box.exec(["id", "-u"]).stdout)
    box.copy_in(tree, "/work/copy", user=own)
    assert box.stat("/work/copy/a").st_uid == own


def test_hard_links_become_files_of_their_own(box: Container, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"x")
    os.link(tmp_path / "in" / "a", tmp_path / "in" / "b")
    box.copy_in(tmp_path / "in", "/work/in")
    assert box.stat("/work/in/a").st_ino != box.stat("/work/in/b").st_ino
    sh(box, "ln /work/in/a /work/in/c")
    box.copy_out("/work/in", tmp_path / "out")
    assert [os.stat(tmp_path / "out" / name).st_nlink for name in "abc"] == [1, 1, 1]
    with pytest.raises(LimitError):  # each counts
        box.copy_out("/work/in", tmp_path / "out", max_size=2)


def holes(path: Path) -> bytes:
    """Make a file of 200 MB with a little data in the middle, at the start of a hole, and none at the end; give its data."""
    with path.open("wb") as file:
        file.truncate(200_000_001)
        os.pwrite(file.fileno(), b"middle" * 1000, 70_000_000)
        os.pwrite(file.fileno(), b"later", 150 << 20)
    return b"middle" * 1000


def test_holes_stay_holes(box: Container, tmp_path: Path) -> None:
    data = holes(tmp_path / "sparse")
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 50 << 20)
    for name in ("sparse", "hole"):
        box.copy_in(tmp_path / name, f"/work/{name}")
        info = box.stat(f"/work/{name}")
        assert info.st_size == (tmp_path / name).stat().st_size
        assert info.st_blocks * 512 < 1 << 20
        box.copy_out(f"/work/{name}", tmp_path / "out")
        assert os.stat(tmp_path / "out").st_blocks * 512 < 1 << 20
        with (tmp_path / name).open("rb") as original:
            assert box.exec(["cmp", f"/work/{name}", "-"], stdin=original).ok
        assert (tmp_path / "out").stat().st_size == info.st_size
    box.copy_out("/work/sparse", tmp_path / "out")
    with (tmp_path / "out").open("rb") as file:
        assert os.pread(file.fileno(), 6000, 70_000_000) == data
        assert os.pread(file.fileno(), 10, 150 << 20) == b"later".ljust(10, b"\0")


def test_holes_replace_data_that_was_there(box: Container, tmp_path: Path) -> None:
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 100_000)
    box.write_bytes("/work/file", b"x" * 200_000)
    box.copy_in(tmp_path / "hole", "/work/file")
    assert box.read_bytes("/work/file") == bytes(100_000)
    (tmp_path / "out").write_bytes(b"y" * 200_000)
    box.copy_out("/work/file", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == bytes(100_000)


def test_progress_tells_how_far_it_is(box: Container, tree: Path, tmp_path: Path) -> None:
    into: list[CopyProgress] = []
    out: list[CopyProgress] = []
    box.copy_in(tree, "/work/copy", progress=into.append)
    box.copy_out("/work/copy", tmp_path / "out", progress=out.append)
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    entries = len(list(tree.rglob("*")))
    for told, totals in ((into, (entries, size)), (out, (None, None))):
        assert (told[-1].entries, told[-1].size) == (entries, size)
        assert {(p.total_entries, p.total_size) for p in told} == {totals}
        assert [p.entries for p in told] == sorted(p.entries for p in told)
        assert len([p for p in told if p.path.endswith("large")]) == 4  # each mebibyte, and its end
    with pytest.raises(ZeroDivisionError):
        box.copy_in(tree, "/work/again", progress=lambda p: 1 // 0)
    assert box.exec(["true"]).ok


Copy = Callable[..., None]


@pytest.fixture(params=["in", "out"])
def copy(request: pytest.FixtureRequest, box: Container, tree: Path, tmp_path: Path) -> Copy:
    """Copies the tree, one way or the other, with limits."""
    if request.param == "in":
        return lambda **limits: box.copy_in(tree, "/work/copy", **limits)
    box.copy_in(tree, "/work/tree")
    return lambda **limits: box.copy_out("/work/tree", tmp_path / "out", **limits)


def test_limits_are_kept(copy: Copy, box: Container) -> None:
    for limits, limit in (({"max_size": "3M"}, "max_size"), ({"max_entries": 8}, "max_entries"), ({"max_depth": 1}, "max_depth")):
        with pytest.raises(LimitError, match="pass a larger") as error:
            copy(**limits)
        assert error.value.limit == limit
    assert not box.exists("/work/copy")  # a copy to inside has not begun
    with pytest.raises(TimeoutError, match="not done within"):
        copy(timeout=1e-9)
    copy(max_size=3_333_333 + 23, max_entries=9, max_depth=2, timeout=60)


@pytest.mark.parametrize("limits", [{"max_size": "x"}, {"max_entries": -1}, {"max_depth": 5000}, {"timeout": 0}, {"progress": 1}, {"max_entries": True}])
def test_limits_that_make_no_sense_are_refused(copy: Copy, limits: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(limits))):
        copy(**limits)


def test_what_cannot_be_copied_is_refused_before_anything_is_touched(box: Container, tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tree / "zz-fifo")
    with pytest.raises(UsageError, match="zz-fifo: a FIFO cannot be copied"):
        box.copy_in(tree, "/work/copy")
    with pytest.raises(UsageError, match="/dev/null: a device"):
        box.copy_in("/dev/null", "/work/copy")
    with pytest.raises(UsageError, match="no such file"):
        box.copy_in(tmp_path / "missing", "/work/copy")
    with pytest.raises(UsageError, match="no such file"):
        box.copy_in(tree / "dangling", "/work/copy")
    assert box.listdir("/work") == []


def test_a_fifo_in_the_target_is_not_written_to(box: Container, tmp_path: Path) -> None:
    box.write_bytes("/work/file", b"x")
    os.mkfifo(tmp_path / "file")
    reader = os.open(tmp_path / "file", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(UsageError, match="FIFO in the target"):
            box.copy_out("/work/file", tmp_path)
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def test_what_the_caller_may_not_read_is_copied_all_the_same(box: Container, tmp_path: Path) -> None:
    """A program's files with no right for anybody: init opens them."""
    sh(box, "mkdir -p /work/tree/locked/below; cd /work/tree; echo a >locked/below/a; ln -s a locked/l; echo b >b; chmod 0 b locked/below/a locked/below locked")
    box.copy_out("/work/tree", tmp_path / "out")
    assert stat.S_IMODE(os.stat(tmp_path / "out" / "b").st_mode) == 0
    assert stat.S_IMODE(os.stat(tmp_path / "out" / "locked").st_mode) == 0o700
    (tmp_path / "out" / "b").chmod(0o600)
    assert (tmp_path / "out" / "b").read_bytes() == b"b\n"
    assert os.readlink(tmp_path / "out" / "locked" / "l") == "a"
    shutil.rmtree(tmp_path / "out")


def test_files_of_the_kernel_have_sizes_that_are_not_true(box: Container, tmp_path: Path) -> None:
    for path in ("/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/profiling"):
        if box.exists(path):
            box.copy_out(path, tmp_path / "out")
            assert (tmp_path / "out").read_bytes() == sh(box, f"cat {path}") != b""


def test_times_before_1970_and_far_away_are_kept(box: Container, tmp_path: Path) -> None:
    for when in (-1, -(10**9) * 86400 * 365, 4_000_000_000 * 10**9 + 1):
        (tmp_path / "file").write_bytes(b"")
        os.utime(tmp_path / "file", ns=(when, when))
        exact = (tmp_path / "file").stat().st_mtime_ns  # what this file system can hold
        box.copy_in(tmp_path / "file", "/work/file")
        assert box.stat("/work/file").st_mtime_ns == exact
        box.copy_out("/work/file", tmp_path / "out")
        assert (tmp_path / "out").stat().st_mtime_ns == exact


def test_a_thousand_small_files_take_a_few_requests(box: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1000):
        (tmp_path / "in" / str(number % 10)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / str(number % 10) / str(number)).write_bytes(b"x" * 700)
    requests: list[int] = []
    session = box._session()
    request = session.request

    def count(ops, *arguments, **named):
        requests.append(len(ops))
        return request(ops, *arguments, **named)

    monkeypatch.setattr(session, "request", count)
    box.copy_in(tmp_path / "in", "/work/in")
    assert sum(requests) >= 2000
    assert len(requests) <= 10
    assert int(sh(box, "find /work/in -type f -size 700c | wc -l")) == 1000


# --- when ----------------------------------------------------------------------------------------------------------------------


def use(c: Container, tree: Path, tmp_path: Path) -> None:
    c.copy_in(tree, "/work/copy")
    c.write_bytes("/work/file", b"x")
    assert c.read_bytes("/work/copy/a/file") == b"text"
    c.copy_out("/work", tmp_path / "out")
    assert (tmp_path / "out" / "copy" / "a" / "file").read_bytes() == b"text"
    c.remove("/work/copy", recursive=True)
    assert c.listdir("/work") == ["file"]


def test_before_programs_and_after_all_have_ended(box: Container, tree: Path, tmp_path: Path) -> None:
    use(box, tree, tmp_path)
    assert not box.exec(["false"]).ok
    use(box, tree, tmp_path)


def test_beside_programs_and_after_all_were_killed(box: Container, tree: Path, tmp_path: Path) -> None:
    with box.popen(["sleep", "60"]) as program:
        use(box, tree, tmp_path)
        box.kill()
        use(box, tree, tmp_path)
        assert program.wait(10).status is sandbox.Status.KILLED
    use(box, tree, tmp_path)


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_under_every_filter_that_we_offer(profile: str, tree: Path, tmp_path: Path) -> None:
    """Init is under the same filter of system calls as programs are."""
    with Container(mounts=[Tmpfs("/work")], security=profile) as c:
        use(c, tree, tmp_path)


@needs("cgroup:pids")
def test_while_programs_are_paused(tree: Path, tmp_path: Path) -> None:
    with Container(mounts=[Tmpfs("/work")], pids=16) as c, c.popen(["sleep", "60"]) as program:
        c.pause()
        use(c, tree, tmp_path)
        c.resume()
        program.kill()


CALLS: dict[str, Callable[[Container, Path], object]] = {
    "write_bytes": lambda c, host: c.write_bytes("/work/x", b""),
    "read_bytes": lambda c, host: c.read_bytes("/work/x"),
    "make_dirs": lambda c, host: c.make_dirs("/work/x"),
    "listdir": lambda c, host: c.listdir("/work"),
    "stat": lambda c, host: c.stat("/work"),
    "exists": lambda c, host: c.exists("/work"),
    "remove": lambda c, host: c.remove("/work/x"),
    "copy_in": lambda c, host: c.copy_in(host, "/work"),
    "copy_out": lambda c, host: c.copy_out("/work", host / "out"),
}


@pytest.mark.parametrize("call", CALLS)
def test_before_the_start_and_after_the_end_there_is_nothing(call: str, tmp_path: Path) -> None:
    c = Container(mounts=[Tmpfs("/work")])
    with pytest.raises(sandbox.ClosedError, match="not started"):
        CALLS[call](c, tmp_path)
    c.create()
    c.close()
    with pytest.raises(sandbox.ClosedError, match="closed"):
        CALLS[call](c, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", CALLS)
def test_paths_inside_are_checked_first(call: str, tmp_path: Path) -> None:
    calls: dict[str, Callable[[Container, str], object]] = {
        "write_bytes": lambda c, path: c.write_bytes(path, b""),
        "copy_in": lambda c, path: c.copy_in(tmp_path, path),
        "copy_out": lambda c, path: c.copy_out(path, tmp_path),
    }
    with Container() as c:
        for path in ("relative", "/up/../x", "/" + "x" * 256, "/nul\0"):
            with pytest.raises(UsageError):
                calls.get(call, lambda c, path: getattr(c, call)(path))(c, path)


# --- programs ------------------------------------------------------------------------------------------------------------------
