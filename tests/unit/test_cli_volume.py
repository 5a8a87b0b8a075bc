"""``sandbox volume``: what it prints and how it ends, on a store of the test's own."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Protocol

import pytest

from sandbox.cli import main
from sandbox.errors import UsageError
from sandbox.fs import VolumeStore
from sandbox.fs.volumes import default_store

pytestmark = pytest.mark.unprivileged


class Say(Protocol):
    def __call__(self, *words: str, code: int = 0) -> str: ...


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VolumeStore:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SANDBOX_VOLUMES", str(tmp_path / "volumes"))
    return VolumeStore()


def test_the_store_is_where_the_variable_says(store: VolumeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.path == str(tmp_path / "volumes")
    for told, found in (("", "/sandbox/volumes"), ("/elsewhere", "/elsewhere")):
        monkeypatch.setenv("SANDBOX_VOLUMES", told)
        assert default_store().endswith(found)
    monkeypatch.setenv("SANDBOX_VOLUMES", "here")
    with pytest.raises(UsageError, match="SANDBOX_VOLUMES"):
        VolumeStore()


@pytest.fixture
def say(store: VolumeStore, capsys: pytest.CaptureFixture[str]) -> Say:
    def run(*words: str, code: int = 0) -> str:
        assert main(["volume", *words]) == code
        said = capsys.readouterr()
        assert bool(said.err) == bool(code), said.err
        return said.out + said.err

    return run


def test_a_volume_is_made_listed_inspected_and_removed(store: VolumeStore, say: Say) -> None:
    assert say("ls") == "DRIVER   VOLUME NAME\n"
    assert say("create", "--label", "app=shop", "--label", "plain", "shop") == "shop\n"
    name = say("create").strip()
    assert len(name) == 64
    assert say("ls").splitlines() == ["DRIVER   VOLUME NAME", *sorted((f"local    {name}", "local    shop"), key=lambda line: line[9:])]
    (found,) = json.loads(say("inspect", "shop"))
    assert sorted(found) == ["CreatedAt", "Driver", "Labels", "Mountpoint", "Name", "Options", "Scope"]
    assert (found["Name"], found["Labels"], found["Mountpoint"]) == ("shop", {"app": "shop", "plain": ""}, f"{store.path}/shop/_data")
    rows = [json.loads(line) for line in say("ls", "--format", "json", "--filter", "name=shop").splitlines()]
    assert rows == [{"Driver": "local", "Labels": "app=shop,plain=", "Mountpoint": found["Mountpoint"], "Name": "shop", "Scope": "local"}]
    assert say("rm", "shop", name) == f"shop\n{name}\n"
    assert store.names() == []


def test_filters(store: VolumeStore, say: Say) -> None:
    for name, labels in (("one", {"a": "1"}), ("two", {"a": "2", "b": ""}), ("three", {})):
        store.create(name, labels=labels)
    with contextlib.closing(store.use("three")):
        for filters, names in (
            (["name=t"], "three two"), (["name=one", "name=two"], "one two"), (["label=a"], "one two"), (["label=a=2"], "two"),
            (["label=a", "label=b"], "two"), (["dangling=true"], "one two"), (["dangling=false"], "three"), (["dangling=0", "name=one"], ""),
            (["dangling=1", "dangling=0"], "one three two"),
        ):  # fmt: skip
            assert say("ls", "-q", *(word for each in filters for word in ("--filter", each))).split() == names.split()


def test_what_is_in_use_or_not_there_fails_and_keeps_none_of_the_others(store: VolumeStore, say: Say) -> None:
    for name in ("a", "b", "c"):
        store.create(name)
    with contextlib.closing(store.use("b")):
        said = say("rm", "a", "b", "none", "c", code=1)
        assert said.startswith("a\nc\n")
        assert "'b' is in use" in said
        assert "no volume 'none'" in said
        assert say("rm", "-f", "none") == "none\n"
        assert "in use" in say("rm", "-f", "b", code=1)
    assert say("inspect", "b", "none", code=1).startswith("[\n")
    assert store.names() == ["b"]


def test_pruning_asks_first(store: VolumeStore, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    name = store.create().name
    store.create("named", labels={"x": "1"})
    for answer in ("n\n", "", "maybe\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert "all anonymous volumes" in say("prune")
        assert len(store.names()) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert f"Deleted Volumes:\n{name}\n\nTotal reclaimed space: " in say("prune")
    assert say("prune", "--force") == "Total reclaimed space: 0B\n"
    assert say("prune", "-a", "-f", "--filter", "label=x=2") == "Total reclaimed space: 0B\n"
    Path(store.get("named").mountpoint, "file").write_bytes(os.urandom(1_500_000))
    assert "named\n\nTotal reclaimed space: 1.5" in say("prune", "-a", "-f", "--filter", "label=x")


@pytest.mark.parametrize(
    "words",
    [[], ["none"], ["create", "a", "b"], ["create", "--opt", "size", "x"], ["create", "--label", "=x", "y"], ["ls", "--filter", "size=3"], ["ls", "--filter", "x"],
     ["ls", "--filter", "dangling=x"], ["ls", "--format", "xml"], ["inspect"], ["rm"], ["prune", "-f", "--filter", "name=x"], ["ls", "--qui"]],
)  # fmt: skip
def test_wrong_use(store: VolumeStore, say: Say, words: list[str]) -> None:
    assert "see sandbox volume --help" in say(*words, code=2)
    assert store.names() == []


def test_what_cannot_be_is_told_in_a_line(store: VolumeStore, say: Say) -> None:
    assert "not a name" in say("create", "../x", code=1)
    assert "16777216" in say("create", "--opt", "size=1M", "x", code=1)
    assert "not an option" in say("create", "--opt", "type=nfs", "x", code=1)
    store.create("damaged")
    store.create("fine")
    Path(store.path, "damaged", "volume.json").write_text("\x1b[31m{")
    assert "\x1b" not in say("rm", "\x1b[31m", code=1)
    assert main(["volume", "ls", "-q"]) == 0
    assert main(["volume", "--help"]) == main(["volume", "ls", "--help"]) == 0


def test_what_is_wrong_is_said_to_be_about_volumes_once(say: Say) -> None:
    assert say("rm", "none", code=1).startswith("sandbox volume: no volume 'none'")
