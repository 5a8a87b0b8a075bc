"""Containers made ahead: as good as new ones in every respect, never stale, and never left behind."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import sandbox
from sandbox import Container, Tmpfs, _spares, _start, fs
from sandbox._spares import Kind, Spare, Spares
from tests.support import needs, patience

pytestmark = [pytest.mark.unprivileged]
PATIENCE_S = patience(30.0)


class Watch:
    """Which of the containers started since came from a spare."""

    def __init__(self) -> None:
        self.hits: list[bool] = []


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    sandbox.shut_down()
    seen, take = Watch(), Spares.take

    def recording(self: Spares, kind: Kind) -> Spare | None:
        spare = take(self, kind)
        seen.hits.append(spare is not None)
        return spare

    monkeypatch.setattr(Spares, "take", recording)
    yield seen
    sandbox.shut_down()


def waiting() -> list[Spare]:
    return [spare for spares in _spares.spares()._ready.values() for spare in spares]


def settle() -> list[Spare]:
    """Until every spare that was asked for has been made; there is no event for it that others may wait for."""
    deadline = time.monotonic() + PATIENCE_S
    while not (spares := waiting()) or not all(spare.is_ready for spare in spares):
        assert time.monotonic() < deadline, "no spare was made"
        time.sleep(0.005)
    return spares


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def shows_nothing_of_the_host(pid: int) -> bool:
    points = {line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}
    return not points & {"/sys/fs/cgroup", "/run", "/proc/sys/fs/binfmt_misc", "/home"}


def warm_up(use: Callable[[], object]) -> None:
    """The second container of a kind has the first spare made."""
    for _ in range(2):
        use()
    settle()


STATE = "grep -E '^(Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups)' /proc/self/status; cat /proc/self/uid_map; cut -d' ' -f4- /proc/self/mountinfo; cat /proc/sys/user/max_*_namespaces; stat -c '%A %u %g %n %N' /* /dev/* /etc/* /proc/self/fd/[012]; hostname; cat /etc/hosts; ulimit -a; cat /proc/sys/kernel/hostname"


def state(**options: object) -> str:
    with Container(**options) as c:  # type: ignore[arg-type]
        said = c.exec(["sh", "-c", STATE], check=True).stdout.decode()
    # What rightly differs: ids outside, times, numbers of devices and mounts, pids.
    said = re.sub(r"\b\d+:\d+\b|[ug]id=\d+|(pipe|socket):\[\d+\]", "*", said)
    return re.sub(r"^ +0 +\d+ +\d+$", "*", said, flags=re.MULTILINE)


@pytest.mark.parametrize("options", [{}, {"read_only": True, "mounts": [Tmpfs("/tmp")]}, {"security": "strict", "hostname": "other"}])
def test_a_container_made_ahead_is_like_one_that_was_not(watch: Watch, options: dict[str, object]) -> None:
    fresh = state(**options)
    warm_up(lambda: state(**options))
    assert state(**options) == fresh
    assert (watch.hits[0], watch.hits[-1]) == (False, True)


def test_one_container_has_no_spare_made(watch: Watch) -> None:
    sandbox.run(["true"])
    assert waiting() == []
    assert watch.hits == [False]


def test_another_kind_takes_no_spare(watch: Watch) -> None:
    warm_up(lambda: sandbox.run(["true"]))
    assert sandbox.run(["hostname"], hostname="mine").stdout == b"mine\n"
    assert watch.hits[-1] is False


@needs("root")
def test_changes_of_the_root_directory_are_seen(watch: Watch, tmp_path: Path) -> None:
    root = rootfs(tmp_path)

    def use() -> bytes:
        with Container(root) as c:
            return bytes(c.exec(["/bin/busybox", "cat", "/etc/passwd", "/data"]).stdout)

    warm_up(use)
    assert use() == b"root:x:0:0::/root:/bin/sh\nold"
    assert watch.hits[-1] is True
    settle()
    (root / "data").write_bytes(b"new")  # in place: nothing of it was looked up ahead
    assert use() == b"root:x:0:0::/root:/bin/sh\nnew"
    settle()
    (root / "etc").rename(root / "gone")
    (root / "etc").mkdir()
    (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\n")
    assert use() == b"root:x:0:0::/:/bin/sh\nnew"
    assert watch.hits[-1] is False


def rootfs(directory: Path) -> Path:
    root = directory / "root"
    for name in ("bin", "etc", "proc", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    busybox = Path("/bin/busybox")
    (root / "bin" / "busybox").write_bytes(busybox.read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    (root / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "data").write_text("old")
    return root


test_changes_of_the_root_directory_are_seen = needs("program:busybox")(test_changes_of_the_root_directory_are_seen)


@needs("root", "program:busybox")
def test_what_is_known_of_a_root_is_not_opened_again_and_is_looked_at_each_time(
    watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    really = fs.ops

    def opening(*given: object, **more: object) -> fs.FsPlan:
        opened.append(given)
        return really(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(_start.fs, "ops", opening)
    monkeypatch.setattr("sandbox.fs._seen._SETTLED_NS", 0)  # the root is as new as this test
    root = rootfs(tmp_path)
    (root / "etc" / "passwd").write_text("me:x:5:6::/:/bin/sh\n")
    (tmp_path / "link").symlink_to(root)

    def use() -> tuple[bytes, bool]:
        before = len(opened)
        with Container(tmp_path / "link", user="me") as c:
            said = bytes(c.exec(["/bin/busybox", "sh", "-c", "busybox id -u; busybox id -G; busybox cat /data"]).stdout)
            return said, len(opened) == before

    def use_again() -> tuple[bytes, bool]:
        settle()
        return use()

    warm_up(use)
    use_again()  # the first that finds a spare: it notes what it saw
    assert use_again() == (b"5\n6\nold", True)
    assert watch.hits[-1] is True
    (root / "etc" / "passwd").write_text("me:x:7:6::/:/bin/sh\n")  # in place: the directories' times stay
    assert use_again() == (b"7\n6\nold", False)
    (root / "etc" / "group").write_text("them:x:8:me\n")
    assert use_again()[0] == b"7\n6 8\nold"
    other = rootfs(tmp_path / "other")
    (other / "data").write_text("other")
    (other / "etc" / "passwd").write_text("me:x:9:9::/:/bin/sh\n")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(other)
    assert use_again() == (b"9\n9\nother", False)


def test_a_directory_that_is_not_known_any_more_has_no_spare_made_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.fs._seen._SETTLED_NS", 0)
    (tmp_path / "root").mkdir()
    with fs.ops(fs.FilesystemSpec(root=fs.Directory(tmp_path / "root")), privileged=True) as plan:
        seen = plan.seen(fs.Directory(tmp_path / "root"))
    assert seen is not None
    os.close(seen.open() or -1)
    (tmp_path / "root").rename(tmp_path / "gone")
    (tmp_path / "root").mkdir()
    with pytest.raises(sandbox.UsageError, match="has changed"):
        seen.open()


@needs("root", "program:unshare")
def test_changes_of_the_hosts_mounts_are_seen() -> None:
    code = """
import os, subprocess, time, sandbox
def seen(): return sandbox.run(["sh", "-c", "ls /usr/share/base-files | head -1"]).stdout
before = seen()
for _ in range(3): assert seen() == before; time.sleep(0.05)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/tmp"], check=True)  # of no concern to a view of the host
assert seen() == before
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/usr/share/base-files"], check=True)
assert before and seen() == b"", seen()
print("done")
"""
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


@needs("root", "cgroup:memory", "cgroup:pids")
def test_limits_are_those_that_were_asked_for_each_time(watch: Watch) -> None:
    def limits(memory: str, pids: int) -> tuple[int | None, int | None]:
        with Container(memory=memory, pids=pids) as c:
            assert c.exec(["true"]).ok
            found = c._live().group().in_force()
            assert c.exec(["sh", "-c", "head -c 100000000 /dev/zero | tail"]).oom_killed == (memory == "16M")
            return found.memory, found.pids

    for round_ in range(4):
        assert limits("16M", 20) == (16 << 20, 20)
        assert limits("256M", 30) == (256 << 20, 30)
        if round_:
            settle()
    assert True in watch.hits
    assert limits("16M", 21) == (16 << 20, 21)


def test_each_run_in_a_container_made_ahead_has_a_group_of_its_own(watch: Watch) -> None:
    def peaks() -> list[int | None]:
        with Container(**({"memory": "64M"} if os.geteuid() == 0 else {})) as c:
            big = c.exec(["sh", "-c", "head -c 30000000 /dev/zero | tail -n 1"])
            small = c.exec(["true"])
            return [big.memory_peak, small.memory_peak]

    warm_up(peaks)
    big, small = peaks()
    assert watch.hits[-1] is True
    if big is not None and small is not None:
        assert big > 30_000_000
        assert small < 5_000_000


def test_an_end_that_was_interrupted_goes_on_when_it_is_asked_for_again(watch: Watch) -> None:
    def use() -> None:
        with Container(**({"memory": "64M"} if os.geteuid() == 0 else {})) as c:
            started = c._live()
            c.exec(["true"])
            started.close()  # and what asked for it was interrupted before it knew

    warm_up(use)
    use()
    assert watch.hits[-1] is True


def test_a_spare_that_was_killed_is_replaced(watch: Watch) -> None:
    warm_up(lambda: sandbox.run(["true"]))
    for spare in settle():
        event, fds = spare.session._next(spare.session._starting)  # type: ignore[arg-type]
        spare.session._take_pidfd(event, fds)  # type: ignore[arg-type]
        signal.pidfd_send_signal(spare.session.pidfd, signal.SIGKILL)
        spare.session.end()
    assert sandbox.run(["echo", "hi"]).stdout == b"hi\n"
    assert sandbox.run(["echo", "hi"]).stdout == b"hi\n"


def test_a_forked_child_leaves_the_spares_to_its_parent(watch: Watch) -> None:
    warm_up(lambda: sandbox.run(["true"]))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if sandbox.run(["true"]).ok and sandbox.run(["true"]).ok else 2
            sandbox.shut_down()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert sandbox.run(["echo", "hi"]).stdout == b"hi\n"
    assert watch.hits[-1] is True


@needs("root", "cgroup-v2", "cgroup:memory", "cgroup:pids")
def test_a_forked_child_keeps_no_descriptor_of_the_groups_of_spares(watch: Watch) -> None:
    def use() -> None:
        with Container(memory="64M") as c:
            c.exec(["true"])

    warm_up(use)
    gc.collect()
    gc.disable()  # it would come sooner or later
    try:
        pid = os.fork()
        if pid == 0:
            os._exit(sum(os.path.realpath(entry).startswith("/sys/fs/cgroup/") for entry in Path("/proc/self/fd").iterdir()))
    finally:
        gc.enable()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.usefixtures("no_leftovers")
def test_spares_go_with_shut_down() -> None:
    for _ in range(6):
        sandbox.run(["true"])
    settle()


def test_a_container_closed_after_shut_down_starts_no_launcher(watch: Watch) -> None:
    with Container() as c:
        c.exec(["true"])
        sandbox.shut_down()
    from sandbox._launch import driver

    assert driver.known() is None


def test_there_are_never_more_than_so_many(watch: Watch) -> None:
    for number in range(12):
        for _ in range(4):
            sandbox.run(["true"], hostname=f"h{number}")
    spares = _spares.spares()
    assert len(waiting()) <= _spares.MOST
    assert all(len(ready) <= _spares.PER_KIND for ready in spares._ready.values())


def test_a_kind_that_was_not_used_for_long_makes_no_spares_when_there_are_enough(watch: Watch) -> None:
    def burst(hostname: str) -> None:
        containers = [Container(hostname=hostname).create() for _ in range(6)]
        for container in containers:
            container.close()

    held = [Container(hostname="old").create() for _ in range(5)]
    for name in ("b", "c", "d", "e") * 2:
        burst(name)
    for container in held:  # prepared for its like for ever, at the expense of the others
        container.close()
    assert len(waiting()) <= _spares.MOST


@needs("root", "program:busybox")
def test_what_waits_keeps_nothing_of_the_host_busy(watch: Watch, tmp_path: Path) -> None:
    root = rootfs(tmp_path)
    for mounts in ([], [sandbox.Bind(tmp_path, "/bound", read_only=True)]):
        for image in (None, root):
            for _ in range(3):
                with Container(image, mounts=mounts) as c:
                    c.exec(["/bin/busybox", "true"] if image else ["true"])
    for spare in settle():
        event, fds = spare.session._next(spare.session._starting)  # type: ignore[arg-type]
        spare.session._take_pidfd(event, fds)  # type: ignore[arg-type]
        # It has been cloned, and may be at work yet.
        wait_until(partial(shows_nothing_of_the_host, spare.session.pid))


@needs("root", "cgroup:memory", "cgroup:pids", "cgroup:cpu")
def test_every_limit_of_a_container_made_ahead_is_that_of_a_new_one(watch: Watch) -> None:
    limits = {"memory": "64M", "pids": 20, "cpus": 0.5, "cpu_weight": 50}

    def in_force() -> object:
        with Container(**limits) as c:  # type: ignore[arg-type]
            c.exec(["true"])
            return c._live().group().in_force()

    fresh = in_force()
    warm_up(in_force)
    assert all(spare.group is None or spare.group.in_force() == fresh for spare in settle())  # a group of its own is v2's
    assert in_force() == fresh
    assert watch.hits[-1] is True
