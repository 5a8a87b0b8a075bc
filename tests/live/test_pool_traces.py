"""Nothing that one use of a pool's container leaves is found by the next, whatever it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import Bind, Pool, SetupError, Status
from sandbox import _box as box_module
from sandbox import pool as pool_module
from tests.live.smuggler import LIMITS, PATIENCE_S, TMP, make_root
from tests.support import needs

pytestmark = [needs("userns", "overlay", "program:gcc"), pytest.mark.unprivileged]
# What changes nothing but the process, and what ends with it: after these a container is used again.
HARMLESS = ("daemon", "numbers", "cpu_time", "reads", "place")
# What the kernel refuses here, so that nothing is left; where that changes, the others below show it.
REFUSED = {"key", "hostname", "nice", "mqueue", "mode", "root", "xattr", "init_limit", "init_cpus"}
# What the next program of the same lease does not see: it has ended, or init has taken it back, or keeps it from view.
UNSEEN = {"daemon", "reads", "place", "cpu_time", "flag", "lock", "key", "names", "terminal", "port", "abstract", "nameless_file"}
ITEMS = (
    *HARMLESS, "tmp", "root", "shm_file", "memory", "shm", "sem", "msg", "removed_shm", "mqueue", "key", "hostname", "mode", "xattr", "flag", "lock",
    "nice", "init_limit", "init_cpus", "removed_file", "nameless_file", "names", "port", "time_wait", "counters", "abstract", "terminal",
)  # fmt: skip
KINDS = ("root", "user", "read-only", "view")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("pool") / "root")


def options_of(kind: str, root: Path) -> dict[str, Any]:
    if kind == "view":
        return {"mounts": [TMP, Bind(root, "/smugglers", read_only=True)], "read_only": True, **LIMITS}
    more: dict[str, dict[str, Any]] = {"root": {}, "user": {"user": "1000:1000"}, "read-only": {"read_only": True, "mounts": [TMP]}}
    return {"image": root, **more[kind], **LIMITS}


class Smuggling:
    """A pool of one container, and what a program sees there that comes first."""

    def __init__(self, kind: str, root: Path) -> None:
        self.program = "/smugglers/smuggle" if kind == "view" else "/smuggle"
        self.pool = Pool(size=1, **options_of(kind, root))

    def run(self, *argv: str, **options: Any) -> sandbox.Result:
        return self.pool.exec([self.program, *argv], timeout=PATIENCE_S, **options)

    def look(self) -> str:
        """What a program sees."""
        return _seen(self.run("look"))

    def seen_in_one_lease(self, item: str) -> list[str]:
        """What a program sees there after one that has left *item*."""
        with self.pool.lease() as box:
            box.exec([self.program, "leave", item], timeout=PATIENCE_S)
            try:
                seen = _seen(box.exec([self.program, "look"], timeout=PATIENCE_S))
            except SetupError as error:
                seen = str(error)
        return [line for line in seen.splitlines() if not line.startswith("/proc/thread-self:")]  # who was the last to read that is a matter of luck


def _seen(result: sandbox.Result) -> str:
    assert result.ok, result
    return str(result.stdout.decode())


@pytest.fixture(scope="module", params=KINDS)
def smuggling(request: pytest.FixtureRequest, root: Path) -> Iterator[Smuggling]:
    patch = pytest.MonkeyPatch()
    # New containers are used at once while all leave something, in a state that differs by one access time.
    patch.setattr(pool_module, "HOPELESS", 1 << 30)
    patch.setattr(box_module, "SETTLE_S", PATIENCE_S)
    smugglers = Smuggling(request.param, root)
    with smugglers.pool:
        yield smugglers
    patch.undo()


@pytest.fixture(scope="module")
def untouched(smuggling: Smuggling) -> str:
    """What is seen where nobody was before."""
    first, before = smuggling.look(), smuggling.pool.stats()
    assert smuggling.look() == first, "what is seen differs from container to container by itself"
    assert smuggling.pool.stats().replaced > before.replaced, "to look leaves traces itself: it should have been in another container"
    return first


@pytest.mark.parametrize("item", ITEMS)
def test_nothing_that_a_run_leaves_is_found_by_the_next(smuggling: Smuggling, untouched: str, item: str) -> None:
    left = smuggling.run("leave", item)
    assert left.status is Status.EXITED, left
    assert left.exit_code == 0 or item in REFUSED, left.stderr
    assert smuggling.look() == untouched


@pytest.mark.parametrize("item", sorted(set(ITEMS) - UNSEEN))
def test_what_is_left_would_be_found_in_the_same_container(smuggling: Smuggling, untouched: str, item: str) -> None:
    """Else the test above could not fail. What the kernel refuses leaves nothing there either."""
    is_refused = smuggling.run("leave", item).exit_code != 0
    assert item in REFUSED or not is_refused
    is_seen = smuggling.seen_in_one_lease(item) != smuggling.seen_in_one_lease("nothing")
    assert is_seen != is_refused


@pytest.mark.parametrize("item", HARMLESS)
def test_a_run_that_leaves_nothing_keeps_the_container(smuggling: Smuggling, item: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What processes were made of is freed some time after their end (RCU), and until then is a reason of its own, which is looked at below.
    monkeypatch.setattr(box_module, "LITTLE", 64 << 20)
    smuggling.run("leave", "tmp")  # a new one, for its predecessor is replaced
    assert smuggling.run("leave", item).ok
    before = smuggling.pool.stats()
    assert smuggling.run("leave", item).ok
    assert smuggling.run("leave", "numbers").ok
    after = smuggling.pool.stats()
    assert (after.kept - before.kept, after.replaced - before.replaced) == (2, 0)


@needs("cgroup:memory")
def test_memory_that_the_kernel_keeps_of_a_run_is_not_charged_to_the_next(root: Path) -> None:
    with Pool(image=root, size=1, **LIMITS) as pool:
        charged: list[int] = []
        for _ in range(3):
            pool.exec(["/smuggle", "leave", "names"], timeout=PATIENCE_S)
            pool.exec(["/smuggle", "leave", "memory"], timeout=PATIENCE_S)
            with pool.lease() as box:
                charged.append(box.container.stats().memory or 0)
    assert max(charged) < 8 << 20
