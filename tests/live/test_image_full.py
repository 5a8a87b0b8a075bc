"""A store on a file system that fills up: what is refused says so and what to do, the store stays whole, and goes on once there is room."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.image import Store, save
from tests.images import layer, put
from tests.support import needs
from tests.tars import archive, file

pytestmark = [needs("root")]
FULL = "ENOSPC (No space left on device); the file system is full; sandbox image prune --all frees what is not used"
SCRIPT = """\
set -u
mount -t tmpfs -o size=3M none "$1"
sandbox() { "$PYTHON" -m sandbox "$@"; echo "$?" >&2; }
sandbox "${@:2}"
sandbox image verify
sandbox image prune -f
sandbox load -q -i "$SMALL"
sandbox image verify
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two archives, one of which is too large; a tar; and a context."""
    place = tmp_path_factory.mktemp("made")
    store = Store(place / "store")
    with store.lease() as lease:
        put(store, lease, [layer({"f": os.urandom(5 << 20)})], ["large:1"])
        put(store, lease, [layer({"f": b"x"})], ["small:1"])
    save(["large:1"], place / "large.tar", store=store)
    save(["small:1"], place / "small.tar", store=store)
    (place / "root.tar").write_bytes(archive(file(b"f", os.urandom(5 << 20))))
    (place / "context").mkdir()
    (place / "context" / "f").write_bytes(os.urandom(5 << 20))
    (place / "context" / "Dockerfile").write_text("FROM scratch\nCOPY f /\n")
    return place


@pytest.mark.parametrize("words", ["load -q -i {}/large.tar", "import {}/root.tar large:1", "build -q {}/context", "build -q {}/root.tar"])
def test_what_a_full_disk_refuses_is_said_and_leaves_the_store_whole(made: Path, tmp_path: Path, words: str) -> None:
    environment = {**os.environ, "SANDBOX_IMAGES": f"{tmp_path}/store", "PYTHON": sys.executable, "SMALL": f"{made}/small.tar"}
    command = ["unshare", "-m", "bash", "-c", SCRIPT, "bash", str(tmp_path), *words.format(made).split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = done.stderr.splitlines()
    assert FULL in done.stderr, done.stderr
    assert [line for line in lines if line.isdecimal()] == ["1", "0", "0", "0", "0"], done.stderr
    assert "Traceback" not in done.stderr
