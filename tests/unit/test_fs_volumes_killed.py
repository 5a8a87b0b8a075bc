"""kill -9 at any moment of making, filling, using and removing volumes: what is there is whole, nothing is locked, and the next one cleans up."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox.fs import VolumeStore, volumes
from sandbox.fs.volumes import Content
from tests.support import patience, repeats

pytestmark = pytest.mark.unprivileged
FILES = 60
WORK = """
import contextlib, itertools, os, sys
from sandbox.errors import SandboxError
from sandbox.fs import VolumeStore
from sandbox.fs.volumes import Content
store = VolumeStore(sys.argv[1])
content = Content(os.open(sys.argv[2], os.O_PATH), "/data")
print("begins", flush=True)
for turn in itertools.count():
    name = f"v{turn % 2}"
    with contextlib.suppress(SandboxError):
        store.use(name, content=content).close()
        store.create(f"w{turn % 3}", labels={"turn": str(turn)})
        store.use(None, content=content).close()
        store.remove(name)
        store.remove(f"w{turn % 3}", force=True)
"""


def test_a_store_is_whole_after_each_kill(tmp_path: Path) -> None:
    (tmp_path / "root" / "data").mkdir(parents=True)
    for number in range(FILES):
        (tmp_path / "root" / "data" / str(number)).write_text("x" * number)
    store, dice = VolumeStore(tmp_path / "volumes"), random.Random(7)
    seen: set[int] = set()
    rounds, deadline = 0, time.monotonic() + patience(120)
    # One at least has come so far as to be whole: otherwise nothing was tried.
    while rounds < repeats(5) or (FILES not in seen and time.monotonic() < deadline):
        rounds += 1
        workers = [
            subprocess.Popen([sys.executable, "-c", WORK, store.path, str(tmp_path / "root")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(2)
        ]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"begins\n"
        with contextlib.suppress(subprocess.TimeoutExpired):  # a moment for them to be in the middle of something
            workers[0].wait(dice.random() * 0.03 * max(1, rounds - 4))
        for worker in workers:
            worker.kill()
            assert worker.communicate() == (b"", b"")
        for info in store.volumes():
            assert not store.is_used(info.name)
            names = os.listdir(info.mountpoint)
            seen.add(len(names))
            assert len(names) in (0, FILES)
            assert all(os.stat(f"{info.mountpoint}/{name}").st_size == int(name) for name in names)
    root = os.open(tmp_path / "root", os.O_PATH)
    with contextlib.closing(store.use("after", content=Content(root, "/data"))) as use:
        assert len(os.listdir(f"/proc/self/fd/{use.fd}")) == FILES
    os.close(root)
    assert seen >= {FILES}
    store.prune(all=True)
    assert os.listdir(store.path) == [".lock"]


def test_a_child_that_is_forked_while_a_lock_is_held_does_not_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, children, try_lock = VolumeStore(tmp_path / "volumes"), list[int](), volumes.try_lock
    store.create("x")

    def forking(fd: int) -> bool:
        locked = try_lock(fd)
        if (child := os.fork()) == 0:
            signal.pause()
        children.append(child)
        return locked

    monkeypatch.setattr(volumes, "try_lock", forking)
    try:
        assert not store.is_used("x")
        monkeypatch.setattr(volumes, "try_lock", try_lock)
        assert not store.is_used("x"), "and it does not wait for the child either"
        store.remove("x")
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
