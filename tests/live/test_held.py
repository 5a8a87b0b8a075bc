"""What the launcher lets go of after a container's end: never what is in somebody's way, and nothing stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sandbox
from sandbox import Bind, Container
from sandbox._launch import driver
from tests.support import needs, patience

pytestmark = [needs("root"), needs("cgroup:memory"), needs("program:busybox")]
PATIENCE_S = patience(30.0)


@pytest.fixture(autouse=True)
def own_launcher() -> Iterator[None]:
    sandbox.shut_down()
    yield
    sandbox.shut_down()


def ours(name: str) -> list[int]:
    """The processes of this process's launcher with that name: itself (and inits that have only just been cloned), or the one that lets go."""
    command = b"sandbox-launcher\0%d\0" % os.getpid()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes() == command and (entry / "comm").read_text() == name + "\n":
                found.append(int(entry.name))
        except OSError:  # it ended while we looked
            continue
    return found


def has_ended(pid: int) -> bool:
    """Also when nobody has reaped it yet: a zombie has no command."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def held(pid: int) -> list[str]:
    """The namespaces that it has open."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except OSError:
            continue
    return [link for link in links if link.startswith(("mnt:", "net:"))]


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


TRUE = "/busybox", "true"


def one_run(container: Container, *argv: str) -> None:
    with container as c:
        assert c.exec(list(argv)).ok


def run_until_released(make: Callable[[], Container]) -> None:
    """One container after the other, until one was made ahead, whose groups are the launcher's to remove."""

    def has_released() -> bool:
        one_run(make(), *TRUE)
        return bool(ours("sandbox-release"))

    await_that(has_released)


def held_after(make: Callable[[], Container], *argv: str) -> bool:
    """Whether anything is held right after the end, or has been."""
    one_run(make(), *argv)
    launcher = driver.current().own_pid
    return bool(held(launcher) or ours("sandbox-release"))


@pytest.fixture
def light(tmp_path: Path) -> Callable[[], Container]:
    """Makes a container over a directory, with limits."""
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(shutil.which("busybox") or "", root / "busybox")
    return lambda: Container(root, memory="64M", scratch="32M")


def test_a_light_container_is_unmounted_after_its_end_and_nothing_stays(light: Callable[[], Container]) -> None:
    run_until_released(light)
    launcher, (releaser,) = driver.current().own_pid, ours("sandbox-release")
    await_that(lambda: not held(launcher) and not held(releaser))
    sandbox.shut_down()
    await_that(lambda: not ours("sandbox-launch") and not ours("sandbox-release"))


def test_much_memory_in_a_tmpfs_has_gone_when_close_returns(light: Callable[[], Container]) -> None:
    fill = ("/busybox", "dd", "if=/dev/zero", "of=/file", "bs=1M", "count=16")
    assert not any(held_after(light, *fill) for _ in range(5))


def test_what_is_the_callers_is_let_go_of_at_once(tmp_path: Path) -> None:
    def bound() -> Container:
        return Container(memory="64M", mounts=[Bind(str(tmp_path), "/bound")])

    assert not any(held_after(bound, "true") for _ in range(5))


def test_without_a_group_that_tells_its_memory_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise sandbox.UnsupportedError("no groups here", feature="cgroup", remedy="ask for one")

    monkeypatch.setattr("sandbox._start.make_group", refuse)  # on v2 every container has one, where that is possible
    assert not any(held_after(Container, "true") for _ in range(5))


def test_the_process_that_lets_go_may_die(light: Callable[[], Container]) -> None:
    run_until_released(light)
    (first,) = ours("sandbox-release")
    os.kill(first, signal.SIGKILL)
    await_that(lambda: not ours("sandbox-release"))
    for _ in range(12):  # more than are held at most
        one_run(light(), *TRUE)
    await_that(lambda: len(ours("sandbox-release")) == 1 and ours("sandbox-release") != [first])
    launcher = driver.current().own_pid
    await_that(lambda: not held(launcher))


def test_when_the_launcher_dies_so_does_it(light: Callable[[], Container]) -> None:
    run_until_released(light)
    launcher = driver.current().own_pid
    os.kill(launcher, signal.SIGKILL)
    await_that(lambda: not ours("sandbox-release"))


def test_a_launcher_that_leaves_with_many_of_them_goes(tmp_path: Path) -> None:
    """Who is killed while he closes many containers at once leaves nobody who waits for somebody else's end."""
    left = tmp_path / "left"
    left.write_text("0")
    code = """
import os, signal, sys
from sandbox import Container
from sandbox._launch import codec
made = [Container().create() for _ in range(12)]
sessions = [container._started.session for container in made]
print(sessions[0].launcher.own_pid, flush=True)
for session in sessions:
    session.launcher.finish(codec.encode_finish(session.pid, sys.argv[1].encode()))
os.kill(os.getpid(), signal.SIGKILL)
"""
    for _ in range(10):
        done = subprocess.run([sys.executable, "-c", code, left], stdout=subprocess.PIPE, check=False)
        launcher = int(done.stdout)
        await_that(lambda pid=launcher: has_ended(pid))  # type: ignore[misc]
