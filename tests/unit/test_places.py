"""Paths of the host: relative ones are those of the working directory of now, if there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import Bind, NetworkStore, UsageError
from sandbox.fs import VolumeStore
from sandbox.image import Store


@pytest.mark.parametrize("made", [Store, VolumeStore, NetworkStore, lambda path: Bind(path, "/x")], ids=["image", "volume", "network", "bind"])
def test_without_a_working_directory_absolute_paths_are_taken(made: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    made(str(tmp_path / "there"))
    with pytest.raises(UsageError, match="the working directory has been removed"):
        made("there")
