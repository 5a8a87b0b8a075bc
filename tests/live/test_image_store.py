"""One store, many at once: threads, processes, killed ones among them; and nothing outside it is touched."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sandbox.errors import ImageError, ImageInUseError, ImageNotFoundError, SetupError, UsageError
from sandbox.image import Digest, Reference, Store
from tests.escape.canary import Canary
from tests.images import files_of, layer, layers, make, put
from tests.support import needs, repeats

pytestmark = [pytest.mark.unprivileged, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SHARED = layer({"shared/": b"", "shared/file": b"s" * 5000})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def is_empty(store: Store) -> bool:
    store.prune(all=True)
    return [name for name in files_of(store) if name not in ("lock", "version")] == []


def live_wildly(store: Store, seed: str, rounds: int) -> None:
    """Do what processes do with a store; only what others may do to us may fail, and what we hold is never taken away."""
    dice = random.Random(seed)
    for _ in range(rounds):
        name = f"image{dice.randrange(4)}"
        with contextlib.suppress(ImageNotFoundError, ImageInUseError):
            match dice.randrange(7):
                case 0 | 1:
                    with store.lease() as lease:
                        image = put(store, lease, [SHARED, *layers(str(dice.randrange(5)), 2)], [name])
                        assert all(os.path.isdir(path) for path in image.layers)
                case 2:
                    store.use(store.get(name)).close()
                case 3:
                    image = store.get(name)
                    with store.use(image):
                        for path in image.layers:
                            assert os.listdir(path)
                            assert os.listdir(path) == os.listdir(path)
                case 4:
                    store.tag(name, f"image{dice.randrange(4)}")
                case 5:
                    store.remove(name, force=dice.random() < 0.3)
                case _:
                    store.prune(all=dice.random() < 0.3)


def fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if not child:  # pragma: no cover
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def test_many_processes_add_use_remove_and_prune_at_once(store: Store) -> None:
    seed = random.randrange(1 << 32)
    children = [fork(partial(live_wildly, store, f"{seed} {number}", repeats(30))) for number in range(6)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6, f"seed {seed}"
    assert store.verify() == []
    assert is_empty(store)


def test_killed_ones_among_them_do_the_others_no_harm(store: Store) -> None:
    seed = random.randrange(1 << 32)
    children = [fork(partial(live_wildly, store, f"{seed} {number}", repeats(25))) for number in range(3)]
    for number in range(15):
        victim = fork(partial(live_wildly, store, f"{seed} victim {number}", 1000))
        time.sleep(random.uniform(0, 0.08))
        os.kill(victim, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(victim, 0)[1])
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3, f"seed {seed}"
    assert store.verify() == []
    assert is_empty(store)


def test_many_threads_of_one_process(store: Store) -> None:
    seed = random.randrange(1 << 32)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            live_wildly(store, f"{seed} {number}", 20)
        except BaseException as error:
            failed.append(error)

    before = len(os.listdir("/proc/self/fd"))
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [], f"seed {seed}"
    assert len(os.listdir("/proc/self/fd")) == before
    assert store.verify() == []
    assert is_empty(store)


def test_one_unpacks_and_the_others_wait_and_find_it_done(store: Store) -> None:
    part = layer({f"file{number}": os.urandom(10_000) for number in range(100)})
    did: list[bool] = []

    def work() -> None:
        with store.lease() as lease:
            did.append(store.unpack_layer(lease, part.diff_id, [part.blob]))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(did) == [False] * 4 + [True]


def test_one_writes_a_blob_and_the_others_wait_and_find_it_there(store: Store) -> None:
    digest = Digest.of(b"x" * 100_000)
    wrote: list[int] = []

    def work() -> None:
        with store.lease() as lease, store.write_blob(lease, digest, 100_000) as writer:
            count = 0
            while not writer.is_complete and writer.offset < 100_000:
                writer.write(b"x" * 1000)
                count += 1
            writer.commit()
            wrote.append(count)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wrote) == [0, 0, 0, 0, 100]


# ---- The host ----


@needs("root")
def test_another_user_sees_nothing_of_a_store(store: Store, tmp_path: Path) -> None:
    image = make(store, "app")
    for path in (*tmp_path.parents, tmp_path):  # so that the store alone is what closes it
        if path.is_relative_to("/tmp/") and path != Path("/tmp"):
            os.chmod(path, 0o755)

    def look() -> None:
        os.setgroups([])
        os.setgid(1000)
        os.setuid(1000)
        os.stat(tmp_path)
        for path in (image.layers[0], f"{image.layers[0]}/d/0", f"{image.short}/{image.links[0]}", f"{store.path}/names"):
            with pytest.raises(PermissionError):
                os.stat(path)
        with pytest.raises(SetupError, match="EACCES"):
            store.get("app")

    assert os.waitpid(fork(look), 0)[1] == 0


@needs("root")
def test_a_store_of_somebody_else_is_refused(store: Store) -> None:
    make(store, "app")
    os.chown(store.path, 1000, 1000)
    for work in (store.images, store.prune, lambda: store.get("app"), lambda: make(store, "other")):
        with pytest.raises(UsageError, match="is user 1000's; choose a directory of your own"):
            work()


def test_everything_in_a_store_is_closed(store: Store) -> None:
    make(store, "app")
    for directory, names, files in os.walk(store.path):
        if "/tree" in directory:
            continue
        for name in names:
            assert stat.S_IMODE(os.lstat(f"{directory}/{name}").st_mode) in (0o700, 0o777, 0o755), name  # 0777: links; 0755: a layer's own
        for name in files:
            assert stat.S_IMODE(os.lstat(f"{directory}/{name}").st_mode) == 0o600, name


HOSTILE = [
    "../../canary",
    "/etc/passwd",
    "a/../../b",
    "sha256:../../x",
    "sha256:" + "A" * 64,
    "\0",
    "x:\n",
    "..",
    ".",
    "a" * 5000,
    "$(id)",
    "-f",
    "*",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leads_out_of_the_store(store: Store, tmp_path: Path, name: str) -> None:
    make(store, "app")
    canary = Canary.make(tmp_path / "canary")
    before = files_of(store)
    for work in (store.get, store.remove, store.untag, lambda text: store.tag("app", text), lambda text: store.tag(text, "x"), Digest.parse):
        with pytest.raises((UsageError, ImageError)):
            work(name)
    with pytest.raises(UsageError), store.lease() as lease:
        store.add_image(lease, store.get("app").manifest, [Reference("docker.io", name)])
    assert files_of(store) == before
    assert canary.changes() == []


def test_keys_of_the_build_cache_may_be_any_text(store: Store) -> None:
    from sandbox.image import Step

    with store.lease() as lease:
        for name in HOSTILE:
            store.remember(lease, name, Step())
            assert store.cached(lease, name) == Step()
    assert len(os.listdir(f"{store.path}/cache")) == len(HOSTILE)


def test_links_that_were_planted_in_a_store_are_not_followed(store: Store, tmp_path: Path) -> None:
    """Nobody else can, but a store may have come from elsewhere (a copy, a disk)."""
    image = make(store, "app")
    canary = Canary.make(tmp_path / "canary")
    os.unlink(f"{store.path}/blobs/sha256/{image.manifest.hex}")
    os.symlink(canary.path / "file", f"{store.path}/blobs/sha256/{image.manifest.hex}")
    os.symlink(canary.path, f"{store.path}/staging/new-link")
    os.symlink(canary.path, f"{store.path}/layers/{'0' * 64}")
    os.symlink(canary.path, f"{image.layers[0]}/d/link")
    with pytest.raises((ImageError, OSError)):
        store.get("app")
    with contextlib.suppress(ImageError, OSError):
        store.remove("app", force=True)
    store.prune(all=True)
    assert canary.changes() == []
