"""The benchmark of unchanged rebuilds runs, and its Dockerfile has 20 steps that the cache answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import rebuild
from sandbox.builder import Event, EventKind, build
from tests.support import needs


def test_a_line_is_kept_or_missed_by_its_slower_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert rebuild.show("a", (0.1, 0.2))
    assert not rebuild.show("b", (0.4, 0.1))
    assert [line.split()[-5] for line in capsys.readouterr().out.splitlines()] == ["PASS", "FAIL"]


@needs("root", "overlay", "idmap", "program:busybox")
def test_nothing_of_it_is_done_twice(tmp_path: Path) -> None:
    store = rebuild.prepare(tmp_path, str(shutil.which("busybox")))
    told: list[Event] = []
    first = build(tmp_path / "context", store=store)
    assert build(tmp_path / "context", store=store, progress=told.append) == first
    kinds = [event.kind for event in told]
    assert EventKind.OUTPUT not in kinds
    assert kinds.count(EventKind.CACHED) >= 9
    assert len([line for line in rebuild.DOCKERFILE.splitlines() if line[0].isupper() and line != "EOF"]) == 20
