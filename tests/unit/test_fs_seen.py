"""What a start remembers of its root: every change that would have led elsewhere is seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

from sandbox.fs import Directory, FilesystemSpec, FsPlan, HostView, Layers, Root, Seen, ops
from sandbox.fs._host import host_files

pytestmark = [pytest.mark.unprivileged]


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.fs._seen._SETTLED_NS", 0)  # what a test has just made counts as old


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\n")
    return tmp_path / "root"


def opened(root: Root) -> FsPlan:
    return ops(FilesystemSpec(root=root), privileged=True)


def look(root: Root) -> Seen | None:
    with opened(root) as plan:
        seen = plan.seen(root)
        assert seen is None or seen.state == plan.state()
        return seen


def swap(root: Path) -> None:
    root.rename(root.parent / "other")
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\n")


CHANGES: list[Callable[[Path], object]] = [
    lambda root: (root / "new").write_text(""),
    lambda root: (root / "etc" / "new").write_text(""),
    lambda root: (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/xx\n"),
    lambda root: (root / "etc" / "passwd").unlink(),
    lambda root: (root / "etc" / "group").write_text(""),
    lambda root: (root / "etc").chmod(0o700),
    lambda root: root.chmod(0o700),
    lambda root: (root / "etc").rename(root / "gone"),
    lambda root: root.rename(root.parent / "gone"),
    swap,
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(root: Path, change: Callable[[Path], object]) -> None:
    seen = look(Directory(root))
    assert seen is not None
    assert seen.is_still_so()
    change(root)
    assert not seen.is_still_so()


def test_a_link_that_leads_elsewhere_is_seen(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "other" / "etc").mkdir(parents=True)
    seen = look(Directory(tmp_path / "link"))
    assert seen is not None
    assert seen.is_still_so()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("other")
    assert not seen.is_still_so()


@pytest.mark.parametrize("name", ["etc", "etc/passwd", "etc/group"])
def test_what_lies_behind_a_link_of_the_root_is_not_remembered(root: Path, name: str) -> None:
    if (root / name).exists():
        (root / name).rename(root / "there")
    (root / name).symlink_to("/there")
    assert look(Directory(root)) is None


def test_what_has_just_changed_is_not_remembered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.fs._seen._SETTLED_NS", 10**12)
    assert look(Directory(root)) is None
    os.utime(root, (0, 0))  # its status has changed just now
    assert look(Directory(root)) is None


def test_layers_are_looked_at_by_their_directory_alone(root: Path) -> None:
    layers = Layers(root.parent, ("root",))
    seen = look(layers)
    assert seen is not None
    (root / "etc" / "passwd").write_text("")  # which nobody does to a layer
    assert seen.is_still_so()
    (root.parent / "more").mkdir()
    assert not seen.is_still_so()


def test_a_view_of_the_host_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = look(HostView())
    assert seen is not None
    assert seen.is_still_so()
    assert seen.open() is None
    monkeypatch.setattr("sandbox.fs._seen.host_files", lambda: None)
    assert not seen.is_still_so()


def test_a_view_made_before_the_host_changed_is_not_taken_for_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(HostView()) as plan:
        changed = evolve(host_files(), files=(("/etc/new", b""),))
        for module in ("_open", "_seen"):
            monkeypatch.setattr(f"sandbox.fs.{module}.host_files", lambda: changed)
        seen = plan.seen(HostView())
        assert seen is not None
        assert not seen.is_still_so()
