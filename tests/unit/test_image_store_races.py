"""Several who remove from one store at once: what one of them discards meanwhile is no failure of another."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.image import Digest
from sandbox.image._disk import Root
from sandbox.image.store import Store

pytestmark = pytest.mark.unprivileged
WORK = """
import sys
from sandbox.image.store import Store
store = Store(sys.argv[1])
for turn in range(300):
    with store.lease() as lease:
        store.put_document(lease, b'{"turn": %d}' % turn)
    store.prune()
"""


def test_pruning_by_several_processes_at_once_fails_in_none(tmp_path: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", WORK, str(tmp_path / "store")], stderr=subprocess.PIPE) for _ in range(3)]
    assert [worker.communicate()[1] for worker in workers] == [b""] * 3
    assert Store(tmp_path / "store").verify() == []
    assert os.listdir(tmp_path / "store" / "staging") == []


def test_a_stage_that_is_discarded_while_it_is_claimed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, made = Store(tmp_path / "store"), Root.make_directory
    store.prune()
    with store.lease() as lease:
        store.put_document(lease, b"{}")
    gone: list[str] = []

    def discarded(root: Root, name: str) -> None:
        made(root, name)
        if name.startswith("staging/layer-") and not gone:
            gone.append(name)
            os.rmdir(name, dir_fd=root.fileno())

    monkeypatch.setattr(Root, "make_directory", discarded)
    empty = bytes(1024)  # a tar of nothing
    with store.lease() as lease:
        assert store.unpack_layer(lease, Digest.parse(f"sha256:{hashlib.sha256(empty).hexdigest()}"), iter([empty]))
    assert gone
