"""What the image has, and the container removes, is hidden by its scratch layer; and what is said where that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox import Container, Scratch, SetupError, features
from tests.support import needs

pytestmark = [needs("userns", "overlay"), pytest.mark.unprivileged]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "root"
    (directory / "lower" / "d" / "d").mkdir(parents=True)
    (directory / "lower" / "d" / "d" / "file").write_text("kept")
    (tmp_path / "disk").mkdir()
    return directory


def said(c: Container) -> list[str]:
    return [line for line in c.degraded if line.startswith("overlay: ")]


def remove_and_make_again(c: Container) -> None:
    c.make_dirs("/lower/d/upper")
    c.write_bytes("/lower/d/d/file", b"changed")
    c.remove("/lower", recursive=True)
    assert not c.exists("/lower")
    assert "lower" not in c.listdir("/")
    c.make_dirs("/lower/d")
    assert c.listdir("/lower/d") == []


def test_a_layer_on_disk_hides_what_is_removed(root: Path) -> None:
    with Container(root, scratch=Scratch(disk=str(root.parent / "disk"))) as c:
        assert said(c) == []
        remove_and_make_again(c)
    assert (root / "lower" / "d" / "d" / "file").read_text() == "kept"


def test_a_layer_in_memory_hides_it_or_says_that_it_cannot(root: Path) -> None:
    with Container(root) as c:
        if features.tmpfs_user_xattrs():
            assert said(c) == []
            remove_and_make_again(c)
        else:
            assert "Scratch(disk=" in said(c)[0]
            with pytest.raises(SetupError, match="EIO"):
                remove_and_make_again(c)
    assert (root / "lower" / "d" / "d" / "file").read_text() == "kept"


def test_only_what_is_in_memory_lacks_it(root: Path) -> None:
    with features.pretend(tmpfs_user_xattrs=False):
        with Container(root) as c:
            assert len(said(c)) == 1
        for options in ({"read_only": True}, {"scratch": "copy"}, {"scratch": Scratch(disk=str(root.parent / "disk"))}):
            with Container(root, **options) as c:
                assert said(c) == []
        with Container() as c:
            assert said(c) == []
