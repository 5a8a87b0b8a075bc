"""Containers over many layers: what is seen, what is written, and what an image's paths cannot do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandbox
from sandbox import Bind, Container, Scratch, SetupError, Tmpfs, UsageError
from sandbox.fs import FilesystemSpec, Layers, _build, _layered
from tests.rootfs import GONE, busybox, write_layer
from tests.support import needs

pytestmark = [needs("userns", "program:busybox", "overlay"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture(params=["one by one", "all in one option"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How the kernel is told the layers: as it can, and as one before Linux 6.5 is."""
    monkeypatch.setattr(_layered, "classic", request.param != "one by one")
    _build.build.cache_clear()
    yield request.param
    _build.build.cache_clear()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A directory of layers, with one called "base"."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(parent.stat().st_mode | 0o111)
    busybox(tmp_path / "layers/base")
    return tmp_path / "layers"


def over(store: Path, *names: str) -> Layers:
    return Layers(store, ("base", *names))


def told(container: Container, script: str, **more: object) -> str:
    return container.exec(["sh", "-c", script], text=True, check=True, **more).stdout  # type: ignore[arg-type]


def test_upper_layers_hide_lower_ones(store: Path, way: str) -> None:
    write_layer(store / "one", {"a": "1", "b": "1", "d/x": "1", "d/y": "1", "gone/z": "1", "shut/old": "1"})
    write_layer(store / "two", {"b": "2", "d/x": GONE, "gone": GONE, "d/new": "2", "shut/new": "2"})
    os.setxattr(store / "two/shut", "user.overlay.opaque", b"y")
    with Container(over(store, "one", "two")) as c:
        assert told(c, "cat /a /b; ls /d /shut; ls -d /gone 2>/dev/null || true") == "12/d:\nnew\ny\n\n/shut:\nnew\n"


def test_what_is_written_goes_to_no_layer(store: Path, way: str) -> None:
    write_layer(store / "one", {"d/x": "1"})
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in store.rglob("*"))
    for _ in range(2):
        with Container(over(store, "one")) as c:
            assert told(c, "cat /d/x; echo 2 >/d/x; rm /bin/wc; echo y >/new; cat /d/x /new") == "12\ny\n"
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in store.rglob("*")) == before


def test_a_hundred_and_twenty_layers_start(store: Path, way: str) -> None:
    names = [f"{number:064x}" for number in range(119)]
    for number, name in enumerate(names):
        write_layer(store / name / "tree", {"last": str(number), f"d/{number}": ""})
    for _ in range(3):  # the third is one that was made ahead
        with Container(over(store, *(f"{name}/tree" for name in names))) as c:
            assert told(c, "cat /last; ls /d | wc -l") == "118119\n"


def test_a_layer_that_comes_twice_is_taken_where_it_is_highest(store: Path) -> None:
    write_layer(store / "one", {"a": "1"})
    write_layer(store / "two", {"a": "2"})
    with Container(Layers(store, ("one", "base", "two", "one"))) as c:
        assert told(c, "cat /a") == "1"


def test_our_files_cover_those_of_every_layer(store: Path, way: str) -> None:
    write_layer(store / "one", {"etc/hostname/x": "", "etc/hosts": "-> /etc/passwd", "proc": "-> /etc", "dev": "-> /", "sys": "file"})
    with Container(over(store, "one"), hostname="box") as c:
        assert told(c, "cat /etc/hostname; head -n1 /etc/hosts; cat /proc/self/comm; ls /dev/null") == "box\n127.0.0.1\tlocalhost\ncat\n/dev/null\n"


def test_a_spare_is_not_taken_once_a_layer_came_again_with_other_content(store: Path) -> None:
    write_layer(store / "one", {"a": "old"})
    for _ in range(4):
        with Container(over(store, "one")) as c:
            assert told(c, "cat /a") == "old"
    (store / "one").rename(store.parent / "gone")
    write_layer(store / "one", {"a": "new"})
    with Container(over(store, "one")) as c:
        assert told(c, "cat /a") == "new"


def test_a_layer_that_is_not_there_is_an_error_that_leaves_nothing(store: Path, way: str) -> None:
    with pytest.raises(SetupError, match=r"NewOverlay.*ENOENT"):
        Container(over(store, "missing")).create()


def test_without_overlay_the_remedy_is_told(store: Path) -> None:
    with sandbox.features.pretend(overlay=False), pytest.raises(sandbox.UnsupportedError, match="overlay"):
        Container(over(store)).create()
    with pytest.raises(UsageError, match="layers take an overlay"):
        Container(over(store), scratch="copy")


@pytest.mark.parametrize("scratch", ["memory", "disk"])
def test_the_scratch_layer_may_be_on_disk(store: Path, tmp_path: Path, scratch: str) -> None:
    where = Scratch("8M") if scratch == "memory" else Scratch(disk=tmp_path)
    with Container(over(store), scratch=where) as c:
        assert told(c, "echo x >/new && cat /new") == "x\n"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("scratch-")]


# ---- Places and the working directory ----


def with_places(store: Path, *names: str, read_only: bool = True, workdir: str = "/", places: tuple[str, ...] = (), **more: object) -> Container:
    """A container with what only images have; by the facade there are images for it."""
    container = Container(over(store, *names), read_only=read_only, **more)  # type: ignore[arg-type]
    before = container.spec.filesystem
    spec = FilesystemSpec(root=before.root, scratch=before.scratch, mounts=before.mounts, writable_places=places, workdir=workdir)
    object.__setattr__(container.spec, "filesystem", spec)
    return container


def test_a_place_can_be_written_to_in_a_root_that_is_read_only_and_has_what_the_layers_have(store: Path) -> None:
    write_layer(store / "one", {"data/seed": "s", "data/in/side": "t"})
    with with_places(store, "one", places=("/data", "/data/in", "/fresh/one")) as c:
        assert told(c, "cat /data/seed /data/in/side; echo x >/data/new; echo y >/data/in/new; echo z >/fresh/one/new; cat /data/new") == "stx\n"
        assert c.exec(["sh", "-c", "echo x >/new"]).exit_code != 0
        assert told(c, "grep -c ' /data' /proc/mounts") == "2\n"
    assert sorted(path.name for path in (store / "one/data").iterdir()) == ["in", "seed"]


@pytest.mark.parametrize("target", ["/proc", "/proc/self/fd", "/dev", "/sys", "/", "/etc", "../../../..", "/proc/1/root", "/nowhere"])
def test_a_place_that_is_a_link_leads_nowhere_but_into_the_root(store: Path, target: str) -> None:
    write_layer(store / "one", {"evil": f"-> {target}"})
    container = with_places(store, "one", places=("/evil", "/evil/x"))
    try:
        container.create()
    except SetupError as error:
        assert "/evil" in str(error)
        return
    with container as c:
        assert told(c, "cat /proc/self/comm; wc -c </proc/kcore 2>/dev/null || true; cat /dev/null") in ("cat\n", "cat\n0\n")
        assert c.exec(["sh", "-c", "echo x >/proc/sys/kernel/hostname"]).exit_code != 0
        assert c.exec(["sh", "-c", "echo x >/new"]).exit_code != 0, "the root is read-only"
        assert c.exec(["sh", "-c", "echo x >/dev/new"]).exit_code != 0


def test_a_missing_workdir_is_made_through_links_of_the_root_and_in_volumes_of_ours_but_in_no_bind(store: Path, tmp_path: Path) -> None:
    write_layer(store / "one", {"srv/real/": "", "app": "-> /srv/real"})
    with with_places(store, "one", workdir="/app/deep/er") as c:
        assert told(c, "cd /app/deep/er && stat -c '%a %u' . && ls /srv/real") == "755 0\ndeep\n"
    (tmp_path / "mine").mkdir()
    with with_places(store, workdir="/bind/x", mounts=[Bind(tmp_path / "mine", "/bind")]) as c:
        assert c.exec(["ls", "/bind/x"]).exit_code != 0
    with with_places(store, workdir="/memory/x", mounts=[Tmpfs("/memory")]) as c:
        assert told(c, "cd /memory/x && pwd") == "/memory/x\n"
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("target", ["/nowhere/at/all", "/etc/passwd", "/proc/self/fd/3", "loop"])
def test_a_workdir_that_cannot_be_made_is_an_error_and_touches_nothing(store: Path, target: str) -> None:
    write_layer(store / "one", {"loop": f"-> {target}"})
    with pytest.raises(SetupError, match="/loop/x"):
        with_places(store, "one", workdir="/loop/x").create()
