"""kill -9 at random moments of pull, build, commit and prune: the store verifies clean, and the next command succeeds.

Each command is a process of its own, on one store that lives through all of it. SANDBOX_KILLS: how many are killed of each (2).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.image import Store
from tests.faulty_registry import FaultyRegistry, tar_of
from tests.rootfs import busybox, put_image
from tests.support import needs, patience

pytestmark = [needs("root", "overlay", "idmap", "program:busybox"), pytest.mark.usefixtures("no_leftovers"), pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("SANDBOX_KILLS", "2"))
HEAD = "import sys\nfrom sandbox import Container\nfrom sandbox.builder import build\nfrom sandbox.image import Store, pull\nstore = Store(sys.argv[1])\n"
SCRIPTS = {
    "pull": "pull(sys.argv[3], store=store, platform='linux/amd64')",
    "build": "build(sys.argv[2], store=store, no_cache=True, tags=['built'])",
    "commit": "c = Container('base', store=store).create()\nc.exec(['sh', '-c', 'dd if=/dev/urandom of=/big bs=100k count=20; rm /etc/group'])\n"
    "print('begin', flush=True)\nc.commit('committed')\nc.close()",
    "prune": "store.prune(all=True)",
}
DOCKERFILE = "FROM base\nRUN dd if=/dev/urandom of=/r bs=100k count=10\nCOPY f /f\nRUN rm /r && echo x > /x\n"


class Scene:
    def __init__(self, root: Path, host: str) -> None:
        self.store = Store(root / "store")
        self.root, self.host = root, host
        (root / "context").mkdir()
        (root / "context/Dockerfile").write_text(DOCKERFILE)
        (root / "context/f").write_bytes(os.urandom(300_000))
        self.base, self.spare = busybox(root / "base"), busybox(root / "spare", {"only": "here"})
        self.moments = random.Random(7)
        self.killed = 0

    def prepare(self, name: str) -> None:
        """What the command works on is there, and what it makes is not."""
        put_image(self.store, "base", self.base)
        if name == "prune":
            put_image(self.store, "spare", self.spare)
            self.store.untag("spare")
        if (made := self.made(name)) in self.names():
            self.store.remove(made)
        self.store.prune()

    def made(self, name: str) -> str:
        """The name of what the command makes; "" for none."""
        return {"pull": f"{self.host}/app:1", "build": "docker.io/library/built:latest", "commit": "docker.io/library/committed:latest"}.get(name, "")

    def names(self) -> set[str]:
        return {tag for image in self.store.images() for tag in image.names}

    def run(self, name: str, *, kill_after: float | None) -> float:
        """Seconds that it took after its beginning; killed after *kill_after*."""
        begins = "" if "begin" in SCRIPTS[name] else "print('begin', flush=True)\n"
        script = HEAD + begins + SCRIPTS[name]
        argv = [sys.executable, "-c", script, self.store.path, str(self.root / "context"), f"{self.host}/app:1"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"begin\n"
            began = time.monotonic()
            timer = threading.Timer(patience(60.0) if kill_after is None else kill_after, child.send_signal, [signal.SIGKILL])
            timer.start()
            code = child.wait()
            took = time.monotonic() - began
            timer.cancel()
        assert code == 0 or (kill_after is not None and code == -signal.SIGKILL)
        self.killed += code != 0
        return took


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with FaultyRegistry() as registry:
        # so many layers that some are folded, too
        registry.put_image("app", "1", [tar_of({f"f{number}": os.urandom(400_000 if number < 4 else 100)}) for number in range(20)])
        yield Scene(tmp_path, registry.host)
    shutil.rmtree(tmp_path / "store", ignore_errors=True)


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_whatever_is_killed_leaves_a_store_that_is_whole(scene: Scene, name: str) -> None:
    scene.prepare(name)
    whole = scene.run(name, kill_after=None)
    rounds, deadline = 0, time.monotonic() + patience(300)
    # One at least is killed: otherwise nothing was tried. Each time earlier, as the first may have taken long for a reason of its own.
    while rounds < KILLS or (not scene.killed and time.monotonic() < deadline):
        rounds += 1
        scene.prepare(name)
        moment = scene.moments.uniform(0.0, whole / max(1, rounds - KILLS + 1))
        scene.run(name, kill_after=moment)
        assert scene.store.verify() == [], f"killed {moment:.3f} s after the beginning"
        scene.run(name, kill_after=None)
        assert scene.store.verify() == []
        assert {scene.made(name)} - {""} <= scene.names()
    assert scene.killed
