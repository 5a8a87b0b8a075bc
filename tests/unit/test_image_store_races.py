"""Several who remove from one store at once: what one of them discards meanwhile is no failure of another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
