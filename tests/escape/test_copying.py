"""Copying in and out: paths inside a container are the attacker's, and so is what lies there."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import sandbox
from sandbox import PIPE, Bind, Container, Tmpfs
from tests.escape.canary import Canary
from tests.support import needs, patience, repeats

pytestmark = [needs("userns"), pytest.mark.unprivileged]
SH = "/bin/sh"
REFUSALS = (sandbox.SetupError, sandbox.UsageError)


@pytest.fixture
def box(attacks: Path) -> Iterator[Container]:
    """A container whose /work is all the attacker's."""
    with Container(mounts=[Tmpfs("/work", size="256M", inodes=200_000), Bind(attacks, "/attacks", read_only=True)]) as c:
        yield c


def sh(c: Container, script: str) -> bytes:
    result = c.exec([SH, "-c", script], timeout=patience(60))
    assert result.ok, result
    out: bytes = result.stdout
    return out


# Each plants something at /work/trap that leads to the canary, if anybody on the host follows it.
PLANTS = {
    "final": "ln -s {canary}/secret /work/trap",
    "middle": "ln -s {canary} /work/dir; ln -s dir/secret /work/trap",
    "climbing": "ln -s ../../../../../../../..{canary}/secret /work/trap",
    "chain": "ln -s {canary} /work/1; ln -s 1 /work/2; ln -s 2/secret /work/trap",
    "own root": "ln -s /proc/self/root{canary}/secret /work/trap",
    "init's root": "ln -s /proc/1/root{canary}/secret /work/trap",
    "init's cwd": "ln -s /proc/1/cwd/../../../../..{canary}/secret /work/trap",
    "thread's root": "ln -s /proc/thread-self/root{canary}/secret /work/trap",
    "descriptor": "ln -s /proc/self/fd/3/{canary}/secret /work/trap",
    "fifo": "ln -s {canary}/fifo /work/trap",
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_link_leads_to_no_file_of_the_host(box: Container, tmp_path: Path, canary: Canary, plant: str) -> None:
    """CVE-2024-28185, CVE-2024-28189 (judge0), CVE-2018-15664, CVE-2026-41568, go-judge#176: the host follows a link that a program has left."""
    sh(box, PLANTS[plant].format(canary=canary.path))
    sh(box, f"ln -s {canary.path} /work/above; ln -s {canary.path}/new /work/missing; mkdir /work/tree; ln -s {canary.path} /work/tree/inner")
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_text("from the host")
    attempts: list[Callable[[], object]] = [
        lambda: box.read_bytes("/work/trap"),
        lambda: box.read_bytes("/work/above/secret"),
        lambda: box.read_bytes("/work/../work/above/../above/directory/below/file"),
        lambda: box.copy_out("/work/trap", tmp_path / "out-file"),
        lambda: box.copy_out("/work/above/directory", tmp_path / "out-tree"),
        lambda: box.copy_out("/work/tree", tmp_path / "out-links"),
        lambda: box.write_bytes("/work/trap", b"overwritten"),
        lambda: box.write_bytes("/work/above/file", b"overwritten", mode=0o777, user="1000:1000"),
        lambda: box.write_bytes("/work/missing", b"new"),
        lambda: box.make_dirs("/work/above/made/by/us"),
        lambda: box.make_dirs("/work/missing/made"),
        lambda: box.copy_in(source, "/work/above"),
        lambda: box.copy_in(source, "/work/tree"),
        lambda: box.copy_in(source / "inner" / "file", "/work/trap"),
        lambda: box.copy_in(source / "inner" / "file", "/work/above"),
        lambda: box.listdir("/work/above"),
        lambda: box.listdir("/work/above/directory"),
        lambda: box.exists("/work/above/secret"),
        lambda: box.stat("/work/above/secret").st_size == len(canary.secret),
        lambda: box.remove("/work/above/secret"),
        lambda: box.remove("/work/above/directory", recursive=True),
        lambda: box.remove("/work/tree", recursive=True),
        lambda: box.remove("/work/trap", recursive=True),
        lambda: box.remove("/work/above", recursive=True),
    ]
    for attempt in attempts:
        with contextlib.suppress(*REFUSALS):
            got = attempt()
            assert not isinstance(got, bytes) or not canary.is_told_by(got)
            assert got is not True
            assert not isinstance(got, list) or "secret" not in got
    for path in tmp_path.glob("out*/**/*"):
        assert path.is_symlink() or not path.is_file() or not canary.is_told_by(path.read_bytes())
    if (tmp_path / "out-links" / "inner").exists():
        assert (tmp_path / "out-links" / "inner").is_symlink()


def test_copies_against_an_exchange_loop_touch_nothing_of_the_host(box: Container, tmp_path: Path, canary: Canary) -> None:
    """CVE-2018-15664, CVE-2026-41568: checked as a directory, used as a link. 500 copies of each kind."""
    sh(box, f"mkdir -p /work/point/directory/below; echo own >/work/point/secret; echo own >/work/point/directory/below/file; ln -s {canary.path} /work/trap")
    attacker = box.popen(["/attacks/exchange", "/work/point", "/work/trap"], stdout=PIPE)
    assert attacker.stdout is not None
    assert attacker.stdout.readline() == b"exchanging\n"
    source = tmp_path / "source"
    (source / "directory").mkdir(parents=True)
    (source / "directory" / "new").write_text("from the host")
    got = {"read": 0, "tried": 0}
    deadline = time.monotonic() + patience(60)
    # One at least reads what is there: otherwise nothing was tried.
    while (number := got["tried"]) < repeats(500) or (not got["read"] and time.monotonic() < deadline):
        got["tried"] += 1
        with contextlib.suppress(*REFUSALS):
            assert box.read_bytes("/work/point/secret") == b"own\n"
            got["read"] += 1
        with contextlib.suppress(*REFUSALS):
            box.write_bytes("/work/point/file", b"overwritten", mode=0o777)
        with contextlib.suppress(*REFUSALS):
            box.make_dirs(f"/work/point/made/{number % 7}")
        if number % 5 == 0:
            out = tmp_path / f"out-{number}"
            with contextlib.suppress(*REFUSALS):
                box.copy_out("/work/point", out)
            for path in out.glob("**/*"):
                assert path.is_symlink() or not path.is_file() or not canary.is_told_by(path.read_bytes())
            with contextlib.suppress(*REFUSALS):
                box.copy_in(source, "/work/point")
    attacker.close()
    assert got["read"] > 0


def test_a_directory_that_is_exchanged_while_it_is_copied_leads_nowhere(box: Container, tmp_path: Path, canary: Canary) -> None:
    """CVE-2018-15664: the exchange happens below the directory that is being copied."""
    sh(box, f"mkdir -p /work/tree/point/directory; echo own >/work/tree/point/secret; ln -s {canary.path} /work/tree/trap")
    attacker = box.popen(["/attacks/exchange", "/work/tree/point", "/work/tree/trap"], stdout=PIPE)
    assert attacker.stdout is not None
    assert attacker.stdout.readline() == b"exchanging\n"
    for number in range(repeats(200)):
        with contextlib.suppress(*REFUSALS, OSError):
            box.copy_out("/work/tree", tmp_path / "out" / str(number))
    attacker.close()
    for path in (tmp_path / "out").glob("**/*"):
        assert path.is_symlink() or not path.is_file() or not canary.is_told_by(path.read_bytes())


def exchanged(box: Container, inside: str, trap: str) -> sandbox.Process:
    """A program that exchanges the two without end; it has begun."""
    attacker = box.popen(["/attacks/exchange", inside, trap], stdout=PIPE)
    assert attacker.stdout is not None
    assert attacker.stdout.readline() == b"exchanging\n"
    return attacker


def test_what_lies_beside_the_target_is_not_written_to(box: Container, tmp_path: Path, canary: Canary) -> None:
    """CVE-2018-15664, one wall further in: init may write where a program may not, and is led there by an exchanged directory."""
    sh(box, f"mkdir -p /work/target/point /work/precious; ln -s /work/precious /work/target/trap; ln -s {canary.path} /work/target/host")
    sh(box, "echo own >/work/precious/file; chmod 500 /work/precious")
    for name in ("file", "new"):
        (tmp_path / "source" / "point").mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / "point" / name).write_text("overwritten")
    attacker = exchanged(box, "/work/target/point", "/work/target/trap")
    for _ in range(repeats(200)):
        with contextlib.suppress(*REFUSALS):
            box.copy_in(tmp_path / "source", "/work/target")
    attacker.close()
    assert box.listdir("/work/precious") == ["file"]
    assert box.read_bytes("/work/precious/file") == b"own\n"


def test_a_source_that_a_program_changes_leads_nowhere(attacks: Path, tmp_path: Path, canary: Canary) -> None:
    """The source of a copy may be a directory that some container can write to: then what it exchanges there is not followed."""
    shared = tmp_path / "shared"
    (shared / "source" / "point").mkdir(parents=True)
    (shared / "source" / "point" / "secret").write_text("own")
    (shared / "source" / "trap").symlink_to(canary.path)
    (shared / "source" / "point").chmod(0o777)
    (shared / "source").chmod(0o777)
    mounts = [Bind(shared, "/shared"), Bind(attacks, "/attacks", read_only=True)]
    with Container(mounts=mounts, user=0 if os.geteuid() == 0 else None) as writer, Container(mounts=[Tmpfs("/work")]) as reader:
        attacker = exchanged(writer, "/shared/source/point", "/shared/source/trap")
        number, whole, deadline = 0, 0, time.monotonic() + patience(60)
        # One at least gets through with all that is there: otherwise nothing was tried.
        while number < repeats(200) or (not whole and time.monotonic() < deadline):
            number += 1
            with contextlib.suppress(*REFUSALS, OSError):
                reader.copy_in(shared / "source", f"/work/{number}")
                whole += any(reader.exists(f"/work/{number}/{name}/secret") for name in ("point", "trap"))
        attacker.close()
        found = reader.exec([SH, "-c", "cat $(find /work -type f)"], timeout=60).stdout
    assert b"own" in found
    assert not canary.is_told_by(found)


def test_removing_against_an_exchange_loop_takes_nothing_else(box: Container, canary: Canary) -> None:
    """CVE-2019-18466's kin: checked as a directory, then removed through a link, or after it was moved away."""
    sh(box, f"mkdir -p /work/kept/below /work/tree; echo own >/work/kept/below/file; ln -s /work/kept /work/trap; ln -s {canary.path} /work/host")
    for trap in ("/work/trap", "/work/host"):
        sh(box, "mkdir -p /work/tree/point/a/b/c")
        attacker = exchanged(box, "/work/tree/point", trap)
        for _ in range(repeats(150)):
            with contextlib.suppress(*REFUSALS, TimeoutError):
                box.remove("/work/tree/point/a", recursive=True, timeout=1)
            with contextlib.suppress(*REFUSALS):
                box.make_dirs("/work/tree/point/a/b/c")
        attacker.close()
    # Moved out of the tree while it is being removed: ".." leads to what is not ours.
    script = "while :; do mkdir -p /work/tree/m/a/b/c/d/e; mv /work/tree/m/a/b /work/kept/below/moved 2>/dev/null; rm -rf /work/kept/below/moved; done"
    mover = box.popen([SH, "-c", f"echo ready; {script}"], stdout=PIPE)
    assert mover.stdout is not None
    mover.stdout.readline()
    for _ in range(repeats(300)):
        with contextlib.suppress(*REFUSALS, TimeoutError):
            box.remove("/work/tree/m", recursive=True, timeout=1)
    mover.close()
    assert box.read_bytes("/work/kept/below/file") == b"own\n"


# --- what comes out stays where it was asked to go -----------------------------------------------------------------------------


def test_a_link_that_came_out_is_not_written_through(box: Container, tmp_path: Path, canary: Canary) -> None:
    """tar's old trick: first a link of that name, then a directory or a file with something in it."""
    out = tmp_path / "out"
    sh(box, f"mkdir /work/a /work/b /work/c; ln -s {canary.path} /work/a/x; ln -s {canary.path}/file /work/a/y; ln -s {canary.path}/fifo /work/a/z")
    sh(box, "mkdir /work/b/x; echo evil >/work/b/x/file; echo evil >/work/b/y; mkdir /work/b/z; echo evil >/work/b/z/file; echo evil >/work/c/y")
    box.copy_out("/work/a", out)
    assert (out / "x").is_symlink()
    for source in ("/work/b", "/work/c"):
        with contextlib.suppress(*REFUSALS, OSError):
            box.copy_out(source, out)
    with contextlib.suppress(*REFUSALS, OSError):
        box.copy_out("/work/c/y", out / "y")


def test_strange_names_stay_below_the_destination(box: Container, tmp_path: Path, canary: Canary) -> None:
    """Names that are no UTF-8, that hold newlines, or that mean something to a shell or an archive."""
    names = [b"\xff\xfe", b"new\nline", b"--", b"-rf", b"...", b".. ", b" ", b"*", b"$(touch x)", b"a\\b", "\u202e".encode(), b"x" * 255]
    sh(box, "mkdir /work/tree")
    for name in names:
        box.write_bytes(os.fsdecode(b"/work/tree/" + name), b"x")
    box.copy_out("/work/tree", tmp_path / "out")
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == sorted(names)
    box.copy_in(tmp_path / "out", "/work/back")
    assert int(sh(box, "ls -1Ab /work/back | wc -l")) == len(names)


def test_set_id_bits_do_not_come_out(box: Container, tmp_path: Path) -> None:
    """CVE-2021-41091: a program that is set-user-id for whoever runs it on the host."""
    sh(box, "mkdir /work/tree; cp /bin/true /work/tree/p; chmod 6777 /work/tree/p /work/tree")
    box.copy_out("/work/tree", tmp_path / "out")
    assert stat.S_IMODE(os.stat(tmp_path / "out" / "p").st_mode) == 0o777
    assert os.stat(tmp_path / "out" / "p").st_uid == os.geteuid()


def test_names_that_begin_alike_are_not_taken_for_one_another(tmp_path: Path) -> None:
    """go-judge's check of prefixes: /home/a matches /home/ab."""
    for name in ("a", "ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with Container(mounts=[Bind(tmp_path / "a", "/home/a"), Tmpfs("/home/ab")]) as c:
        assert c.read_bytes("/home/a/file") == b"a"
        for path in ("/home/ab/file", "/home/a/../ab/file", "/home/a/../../../../../../home/ab/file"):
            with pytest.raises(REFUSALS):
                c.read_bytes(path)
        c.write_bytes("/home/ab/new", b"x")
    assert not (tmp_path / "ab" / "new").exists()
    assert not (tmp_path / "a" / "new").exists()


# --- what takes for ever -------------------------------------------------------------------------------------------------------


def in_time(limit_s: float = 20.0) -> contextlib.AbstractContextManager[None]:
    @contextlib.contextmanager
    def watch() -> Iterator[None]:
        began = time.monotonic()
        yield
        assert time.monotonic() - began < patience(limit_s)

    return watch()


def test_a_sparse_file_of_a_petabyte_costs_nothing(box: Container, tmp_path: Path) -> None:
    """snekbox: 1,024 TiB of nothing, read into the host's memory or written to its disk."""
    sh(box, "mkdir /work/tree; truncate -s 1024T /work/tree/sparse; truncate -s 3G /work/large")
    with in_time():
        for path in ("/work/tree/sparse", "/work/large"):
            with pytest.raises(sandbox.UsageError, match="larger"):
                box.read_bytes(path)
            with pytest.raises(sandbox.UsageError, match="larger"):
                box.copy_out(path, tmp_path / "out")
        with pytest.raises(sandbox.UsageError, match="larger"):
            box.copy_out("/work/tree", tmp_path / "out-tree")
    assert sum(path.stat().st_blocks for path in tmp_path.glob("out*/**/*")) * 512 < 1 << 20


def test_a_file_that_grows_while_it_is_read_ends(box: Container, tmp_path: Path) -> None:
    """A size that is asked for first says nothing."""
    grower = box.popen([SH, "-c", "echo ready; while :; do head -c 1000000 /dev/zero; done >>/work/grows"], stdout=PIPE)
    assert grower.stdout is not None
    grower.stdout.readline()
    with in_time(60):
        for attempt in (lambda: box.read_bytes("/work/grows", max_size="8M"), lambda: box.copy_out("/work/grows", tmp_path / "out", max_size="8M")):
            for _ in range(repeats(1000)):
                try:
                    attempt()
                except sandbox.UsageError:
                    break
                except sandbox.SetupError:
                    continue  # it is not there yet
    grower.close()
    assert not (tmp_path / "out").exists() or os.path.getsize(tmp_path / "out") <= 8 << 20


def test_a_thousand_nested_directories_end_in_an_error(box: Container, tmp_path: Path) -> None:
    """snekbox: recursion without a bound, or a descriptor for each level."""
    assert box.exec(["/attacks/bombs", "deep", "/work", "1000"], timeout=patience(60)).ok
    fds = len(os.listdir("/proc/self/fd"))
    with in_time(), pytest.raises(sandbox.UsageError, match="deep"):
        box.copy_out("/work", tmp_path / "out")
    assert len(os.listdir("/proc/self/fd")) == fds


def test_thousands_of_nested_directories_are_removed(box: Container) -> None:
    """A descriptor or a stack frame for each level, or a path that is too long."""
    assert box.exec(["/attacks/bombs", "deep", "/work", "3000"], timeout=60).ok
    with in_time():
        box.remove("/work/d", recursive=True)
    assert box.listdir("/work") == []


def test_a_hundred_thousand_files_are_removed_beside_a_program_with_a_deadline(box: Container) -> None:
    """Init removes them, and has a deadline to keep meanwhile."""
    sh(box, "mkdir /work/many; /attacks/bombs inodes /work/many")
    with in_time(60), ThreadPoolExecutor(1) as pool:
        removal = pool.submit(box.remove, "/work/many", recursive=True)
        result = box.exec(["sleep", "60"], timeout=0.1)
        removal.result()
    assert result.status is sandbox.Status.TIMEOUT
    assert result.wall_time < patience(10)  # and not 60 s
    assert box.listdir("/work") == []


def test_copying_what_never_ends_ends_in_time(box: Container, tmp_path: Path) -> None:
    """A file that grows as fast as it is read, a tree that is made as fast as it is walked: the time limit is for those."""
    grower = box.popen([SH, "-c", "mkdir /work/t; echo x >/work/t/f; echo ready; while :; do head -c 100000 /dev/zero; truncate -s 0 /work/t/f; done >>/work/t/f"], stdout=PIPE)
    assert grower.stdout is not None
    grower.stdout.readline()
    with in_time():
        for number in range(20):
            with contextlib.suppress(sandbox.LimitError, TimeoutError, *REFUSALS):
                box.copy_out("/work/t", tmp_path / str(number), max_size="50M", timeout=0.2)
    grower.close()


def test_a_hundred_thousand_files_end_in_an_error(box: Container, tmp_path: Path) -> None:
    """snekbox: as many names as the file system holds."""
    out = sh(box, "mkdir /work/many; /attacks/bombs inodes /work/many")
    assert int(out.split()[0]) > 100_000
    with in_time(60), pytest.raises(sandbox.UsageError, match="files"):
        box.copy_out("/work/many", tmp_path / "out")
    # Not for pytest to keep.
    from sandbox.fs._scratch import remove_tree

    parent = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    remove_tree("out", parent)
    os.close(parent)


SPECIAL = ["/work/fifo", "/work/socket", "/dev/null", "/dev/zero", "/dev/tty", "/work", "/dev/pts/ptmx", "/dev/stdin", "/proc/self/fd/0", "/proc/1/fd/0"]


@pytest.mark.parametrize("path", SPECIAL)
def test_what_is_no_file_is_refused_at_once(box: Container, tmp_path: Path, path: str) -> None:
    """snekbox: a FIFO waits for a writer, /dev/zero has no end."""
    sh(box, "mkfifo /work/fifo; mkdir /work/tree; mkfifo /work/tree/fifo")
    if os.path.exists("/usr/bin/python3"):
        sh(box, "/usr/bin/python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/work/socket\")'")
    with in_time():
        with pytest.raises(REFUSALS):
            box.read_bytes(path)
        if path != "/work":
            with pytest.raises(REFUSALS):
                box.copy_out(path, tmp_path / "out")
        with pytest.raises(REFUSALS):
            box.copy_out("/work/tree", tmp_path / "out-tree")
        if path != "/dev/null" and not path.startswith(("/dev/zero", "/dev/tty")):
            with contextlib.suppress(*REFUSALS):
                box.write_bytes(path, b"x")


KERNEL_FILES = (
    "/proc/cpuinfo /proc/self/status /proc/self/mem /proc/self/pagemap /proc/self/smaps /proc/self/environ /proc/1/environ /proc/1/mem /proc/1/maps "
    "/proc/kmsg /proc/kcore /proc/kallsyms /proc/sys/kernel/random/uuid /proc/pressure/memory /proc/sysrq-trigger /proc/self/clear_refs /proc/self/syscall"
).split()


def test_files_of_the_kernel_are_read_bounded(box: Container, canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    """snekbox: a size of 0 that does not end, or that blocks. And nothing of the host's own processes is among it."""
    monkeypatch.setenv("TOKEN", canary.secret)
    for path in KERNEL_FILES:
        with in_time(), contextlib.suppress(*REFUSALS):
            assert not canary.is_told_by(box.read_bytes(path, max_size="1M"))


def test_a_full_disk_or_a_locked_directory_is_an_error_of_ours(box: Container, tmp_path: Path) -> None:
    """Whatever stands in the way of writing inside, the answer is an error with a number, and the container goes on."""
    sh(box, "mkdir -m 0 /work/locked; mkdir /work/full; ln -s loop /work/loop")
    for path, data in (("/work/loop/x", b"x"), ("/work/none/x", b"x"), ("/usr/x", b"x"), ("/proc/x", b"x"), ("/work/big", b"\0" * (300 << 20))):
        with pytest.raises(sandbox.SetupError) as error:
            box.write_bytes(path, data)
        assert error.value.errno
    for depth in itertools.chain(range(3), [5000]):
        with contextlib.suppress(*REFUSALS):
            box.write_bytes("/work" + "/x" * depth, b"x")
    assert box.exec(["echo", "alive"]).stdout == b"alive\n"
