"""Ending what runs in a container, where its processes change while they are looked at."""

from __future__ import annotations

import signal
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox._imaged import stopping


@pytest.fixture
def gone() -> int:
    """The number of a process that was there."""
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def test_a_child_that_goes_while_it_is_looked_at_leaves_its_own_to_be_ended(gone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as orphan:
        sent, looks = list[int](), [gone, gone]

        def signal_all(number: int) -> None:
            sent.append(number)
            orphan.kill()
            orphan.wait()

        def listed(_: Any) -> list[int]:
            if looks:
                return [looks.pop()]
            return [] if orphan.returncode is not None else [orphan.pid]

        monkeypatch.setattr(stopping, "_listed", listed)
        assert stopping.stop(SimpleNamespace(signal_all=signal_all), signal.SIGCONT, 0.05) is False  # type: ignore[arg-type]
        assert sent[0] == signal.SIGKILL
        assert orphan.returncode == -signal.SIGKILL
