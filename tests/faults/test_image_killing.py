"""SIGKILL in the middle of what is done to an image store: the store verifies clean, the next command succeeds, and in the end nothing is left.

The victim is a fork, which kills itself at its n-th step into the kernel (Python's audit events: open, flock, mkdir, rename, unlink ...): so each moment
is tried that can leave something else on disk than its neighbours: some of them, drawn by lot, or (SANDBOX_FAULTS_ALL=1) each.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.errors import ImageNotFoundError
from sandbox.image import Digest, Reference, Step, Store
from tests.images import files_of, layer, layers, make, put

pytestmark = [pytest.mark.unprivileged, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

ALL = bool(os.environ.get("SANDBOX_FAULTS_ALL"))
KILLS = 100  # by the step, where not all are tried; and fewer by the clock
SHARED = layer({"shared/": b"", "shared/file": b"s" * 5000})
# Of what Python tells, these change the store, or wait for its locks.
STEPS = frozenset(("open", "fcntl.flock", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.chmod", "os.utime", "os.truncate"))


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is killed loses nothing that it has written: only a power cut does, and fsync(2) is most of the time here."""
    monkeypatch.setattr("os.fsync", lambda fd: None)


def prepare(store: Store) -> None:
    with store.lease() as lease:
        put(store, lease, [SHARED, *layers("kept", 1)], ["kept"])
        put(store, lease, [SHARED, *layers("victim", 2)], ["victim:1", "victim:2"])
        image = put(store, lease, [SHARED, *layers("old", 1)], ["old"])
        put(store, lease, [SHARED, *layers("new", 1)], ["old"])  # and "old" is without a name
        store.remember(lease, "step", Step(config=image.id, layer=SHARED.descriptor, diff_id=SHARED.diff_id))


def add(store: Store) -> None:
    with store.lease() as lease:
        put(store, lease, [SHARED, *layers("added", 2)], ["added:1", "kept:2"])


def resume(store: Store) -> None:
    part = layers("resumed", 1, 5000)[0]
    for end in (1000, len(part.blob)):
        with store.lease() as lease, store.write_blob(lease, part.descriptor.digest, len(part.blob)) as writer:
            while not writer.is_complete and writer.offset < end:
                writer.write(part.blob[writer.offset : writer.offset + 500])
            if end == len(part.blob):
                writer.commit()


def tag(store: Store) -> None:
    store.tag("victim:1", "victim:3")
    store.tag("kept", "victim:3")


def remove(store: Store) -> None:
    for name in ("victim:1", "victim:2"):
        with contextlib.suppress(ImageNotFoundError):
            store.remove(name)


def prune(store: Store) -> None:
    store.prune()
    store.prune(build_cache=True)


def remember(store: Store) -> None:
    with store.lease() as lease:
        store.put_document(lease, b"{}")
        store.remember(lease, "other step", Step(config=Digest.of(b"{}")))
        store.cached(lease, "step")


def use(store: Store) -> None:
    with store.use(store.get("kept")):
        store.get("victim:1")


def begin(store: Store) -> None:
    """The very first use, of a store that there is not yet."""
    make(Store(f"{store.path}-first"), "first")


OPERATIONS: dict[str, Callable[[Store], None]] = {
    "add": add,
    "resume": resume,
    "tag": tag,
    "remove": remove,
    "prune": prune,
    "remember": remember,
    "use": use,
    "begin": begin,
}


def run(store: Store, operation: Callable[[Store], None], *, kill_at: int) -> int:
    """Do it in a fork that dies at its step *kill_at*; return how many steps it made, or 0 for a killed one."""
    read, write = os.pipe()
    child = os.fork()
    if not child:  # pragma: no cover
        os.close(read)
        steps = 0

        def count(event: str, _arguments: tuple[object, ...]) -> None:
            nonlocal steps
            if event in STEPS:
                steps += 1
                if steps == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            operation(store)
            os.write(write, str(steps).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="ascii") as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    assert said or os.WIFSIGNALED(status), "it failed by itself"
    return int(said or "0")


def check(store: Store, operation: Callable[[Store], None]) -> None:
    for one in (store, Store(f"{store.path}-first")):
        assert one.verify() == []
    assert store.get("kept").layers
    operation(store)
    for one in (store, Store(f"{store.path}-first")):
        assert one.verify() == []
        one.prune(all=True)
        assert [name for name in files_of(one) if name not in ("lock", "version")] == []
        assert not os.path.exists(one.path) or os.listdir(f"{one.path}/staging") + os.listdir(f"{one.path}/leases") == []


def moments(count: int) -> list[int]:
    """At which steps to kill, of so many."""
    every = range(1, count + 1)
    return list(every) if ALL else sorted(random.sample(every, min(count, KILLS // len(OPERATIONS))))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_at_any_step_leaves_a_clean_store(name: str, tmp_path: Path) -> None:
    operation = OPERATIONS[name]
    whole = Store(tmp_path / "whole")
    prepare(whole)
    count = run(whole, operation, kill_at=-1)
    check(whole, operation)
    assert count > 10
    for step in moments(count):
        store = Store(tmp_path / f"killed-{step}")
        prepare(store)
        assert run(store, operation, kill_at=step) == 0, "it was not killed"
        try:
            check(store, operation)
        except BaseException as error:
            error.add_note(f"killed at step {step} of {count}")
            raise


def test_a_kill_at_a_random_time_leaves_a_clean_store(tmp_path: Path) -> None:
    """One store, in which one process after another is killed in the middle of all that can be done."""
    store = Store(tmp_path / "store")
    prepare(store)
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    for round_number in range(2000 if ALL else 40):
        child = os.fork()
        if not child:  # pragma: no cover
            _work(store, random.Random(f"{seed} {round_number}"))
        time.sleep(dice.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"seed {seed}, round {round_number}: it failed by itself"
        assert store.verify() == [], f"seed {seed}, round {round_number}"
        assert make(store, "next").names
        assert store.remove("next").deleted
    store.prune(all=True)
    assert [name for name in files_of(store) if name not in ("lock", "version")] == []


def _work(store: Store, dice: random.Random) -> None:
    try:
        while True:
            name = f"image{dice.randrange(5)}"
            with contextlib.suppress(ImageNotFoundError):
                match dice.randrange(5):
                    case 0:
                        make(store, name, str(dice.randrange(8)))
                    case 1:
                        store.tag(name, f"image{dice.randrange(5)}")
                    case 2:
                        store.remove(Reference.parse(name))
                    case 3:
                        store.prune()
                    case _:
                        resume(store)
    finally:
        os._exit(1)
