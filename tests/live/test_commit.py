"""What a container has changed: looked at, made an image of, and written out, whatever its programs have left there."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import sandbox
from sandbox import Bind, Container, ImageError, LimitError, Network, Scratch, Tmpfs, UsageError
from sandbox.fs._fill import MergedTree
from sandbox.image import Image, Settings, Store
from tests.rootfs import busybox, put_image, write_layer
from tests.support import needs

pytestmark = [needs("userns", "program:busybox", "overlay"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def make(tmp_path: Path, store: Store) -> Callable[..., Image]:
    files = {"d/one": "1", "d/two": "2", "gone": "x", "whole/a": "a", "whole/b": "b", "linked": "-> d/one", "data/seed": "s"}

    def image(**settings: object) -> Image:
        trees = [busybox(tmp_path / os.urandom(4).hex()), write_layer(tmp_path / os.urandom(4).hex(), files)]
        return put_image(store, "app", *trees, settings=Settings(**settings))  # type: ignore[arg-type]

    return image


def out(container: Container, script: str, **more: object) -> str:
    return container.exec(["sh", "-c", script], text=True, check=True, **more).stdout  # type: ignore[arg-type, return-value]


def listed(container: Container) -> list[str]:
    return [str(change) for change in container.diff()]


CHANGES = "echo new >/new; echo 3 >/d/one; rm /d/two /gone; mkdir -p /deep/er; echo x >/deep/er/x; chmod 700 /tmp; ln /new /same"
LISTED = ["C /d", "C /d/one", "D /d/two", "A /deep", "A /deep/er", "A /deep/er/x", "D /gone", "A /new", "A /same", "C /tmp"]


def test_what_a_container_is_told_of_its_networks_is_no_change(make: Callable[..., Image]) -> None:
    with Network(internal=True) as net, Container(make(), net=net) as c:
        assert listed(c) == []
        assert c.commit().layers == c.image.layers  # type: ignore[union-attr]
        out(c, "echo 10.0.0.1 me >>/etc/hosts; rm /etc/hostname; echo new >/etc/new")
        assert listed(c) == ["C /etc", "A /etc/new"]
        assert os.listdir(f"{c.commit().layers[-1]}/etc") == ["new"]


@pytest.mark.parametrize("scratch", ["memory", "disk"])
def test_diff_lists_what_was_added_changed_and_deleted_and_nothing_of_ours(make: Callable[..., Image], tmp_path: Path, scratch: str) -> None:
    image = make(volumes=("/data",), working_dir="/")
    where = Scratch("16M") if scratch == "memory" else Scratch(disk=tmp_path)
    with Container(image, scratch=where, mounts=[Tmpfs("/mnt/tmp")]) as c:
        assert listed(c) == ["A /mnt"]  # where the mount's place had to be made
        out(c, f"{CHANGES}; echo x >/data/x; echo x >/mnt/tmp/x")
        assert [line for line in listed(c) if line != "A /mnt"] == LISTED


def test_a_directory_that_is_new_hides_what_was_there(make: Callable[..., Image]) -> None:
    with Container(make()) as c:
        out(c, "rm -r /whole; mkdir /whole; echo c >/whole/c")
        assert listed(c) == ["C /whole", "D /whole/a", "D /whole/b", "A /whole/c"]


@pytest.mark.parametrize("scratch", ["memory", "disk"])
def test_commit_makes_an_image_that_runs_like_the_container(make: Callable[..., Image], store: Store, tmp_path: Path, scratch: str) -> None:
    base = make(env=("A=1",), volumes=("/data",), cmd=("false",))
    where = Scratch("16M") if scratch == "memory" else Scratch(disk=tmp_path)
    with Container(base, scratch=where, mounts=[Tmpfs("/secret")]) as c:
        out(c, f"{CHANGES}; rm -r /whole; mkdir /whole; echo c >/whole/c; echo x >/data/x; echo x >/secret/x")
        made = c.commit("mine:1", author="me", message="why", changes=['CMD ["cat", "/new"]', "ENV B=2", "WORKDIR /deep"])
        assert made.built_here
        assert made.names == ("docker.io/library/mine:1",)
        assert len(made.layers) == len(base.layers) + 1
    assert (made.config.author, made.config.history[-1].comment) == ("me", "why")
    with Container("mine:1", store=store) as c:
        assert (c.run(text=True).stdout, listed(c)) == ("new\n", [])
        assert out(c, "echo $A$B; pwd; cat /d/one; ls -d /d/two /gone /whole/a 2>/dev/null; cat /whole/c; ls /data; stat -c %a /tmp") == (
            "12\n/deep\n3\nc\nseed\n700\n"
        )
        assert out(c, "stat -c %h /new") == "2\n"
        assert not c.exec(["ls", "/secret/x"]).ok
    assert store.verify() == []


@needs("root")
def test_owners_are_those_inside(make: Callable[..., Image], store: Store) -> None:
    with Container(make()) as c:
        out(c, "echo x >/tmp/mine", user="1000:1000")
        out(c, "mkdir /owned; chown 1234:4321 /owned")
        made = c.commit("mine")
    with Container(made) as c:
        assert out(c, "stat -c %u:%g /tmp/mine /owned /new 2>/dev/null || true") == "1000:1000\n1234:4321\n"
    with tarfile.open(fileobj=io.BytesIO(read_blob(store, made))) as tar:
        assert {member.uid for member in tar} == {0, 1000, 1234}


def read_blob(store: Store, image: Image) -> bytes:
    fd = store.open_blob(image.config.diff_ids[-1])
    with open(fd, "rb") as file:
        return file.read()


def test_a_container_that_changed_nothing_gives_no_layer_and_one_that_is_none_is_refused(make: Callable[..., Image], tmp_path: Path) -> None:
    base = make()
    with Container(base) as c:
        made = c.commit(changes=["LABEL a=b"])
        assert (made.layers, made.names, dict(made.settings.labels)) == (base.layers, (), {"a": "b"})
        for wrong in ({"name": "Wrong"}, {"name": "a@sha256:" + "0" * 64}, {"changes": ["RUN x"]}, {"changes": "CMD x"}, {"author": 7}, {"pause": 1}):
            with pytest.raises(UsageError):
                c.commit(**wrong)  # type: ignore[arg-type]
    with Container() as c:
        for refused in (c.diff, c.commit, lambda: c.export(tmp_path / "x")):
            with pytest.raises(UsageError, match="of no image"):
                refused()


def test_what_cannot_be_a_layer_is_refused_and_leaves_the_store_as_it_was(make: Callable[..., Image], store: Store) -> None:
    with Container(make()) as c:
        out(c, "echo x >/d/.wh.one")
        with pytest.raises(ImageError, match=r"\.wh\.one"):
            c.commit("bad")
    assert [image.names for image in store.images()] == [("docker.io/library/app:latest",)]
    store.prune()
    assert store.verify() == []


def test_a_directory_that_goes_while_it_is_looked_at_is_told(make: Callable[..., Image], monkeypatch: pytest.MonkeyPatch) -> None:
    with Container(make()) as c:
        out(c, "mkdir /new")
        monkeypatch.setattr(MergedTree, "below", staticmethod(lambda *_: ()))
        for look in (c.diff, c.commit):
            with pytest.raises(sandbox.SetupError, match="change files meanwhile"):
                look()


def test_an_attribute_that_goes_while_it_is_looked_at_is_told(make: Callable[..., Image], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> bytes:
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))

    with Container(make()) as c:
        out(c, "echo x >/new")
        monkeypatch.setattr("sandbox.image.pack._list_xattrs", lambda _: ["user.gone"])
        monkeypatch.setattr(os, "getxattr", gone)
        with pytest.raises(sandbox.SetupError, match="change files meanwhile"):
            c.commit()


def test_programs_that_change_names_meanwhile_show_nothing_of_the_host(make: Callable[..., Image], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("the host's secret")
    script = f"mkdir /x /x/d; while :; do mv /x/d /x/e; ln -s {secret} /x/d; rm /x/d; ln -s /proc/self/root /x/d; rm /x/d; mv /x/e /x/d; done"
    with Container(make(), mounts=[Bind(secret, "/seen", read_only=True)]) as c, c.popen(["sh", "-c", script]) as racing:
        for _ in range(10):
            buffer = io.BytesIO()
            with contextlib.suppress(sandbox.SetupError, ImageError):  # it moved: that is said
                c.diff()
                c.commit(pause=False)
                c.export(buffer, pause=False)
            assert b"the host's secret" not in buffer.getvalue()
        racing.kill()


def test_export_is_the_root_without_mounts(make: Callable[..., Image], tmp_path: Path) -> None:
    image = make(volumes=("/data",))
    with Container(image, mounts=[Tmpfs("/mnt")]) as c:
        out(c, f"{CHANGES}; echo x >/data/x; echo x >/mnt/x")
        c.export(tmp_path / "root.tar")
        with pytest.raises(LimitError, match="max_size"):
            c.export(tmp_path / "small.tar", max_size="64K")
    assert not (tmp_path / "small.tar").exists()
    with tarfile.open(tmp_path / "root.tar") as tar:
        names = {member.name.rstrip("/"): member for member in tar}
        assert {"new", "d/one", "deep/er/x", "bin/busybox", "linked"} <= names.keys()
        assert not {"gone", "d/two", "mnt/x", "proc/self"} & names.keys()
        assert tar.extractfile("d/one").read() == b"3\n"  # type: ignore[union-attr]
        assert {member.uid for member in names.values()} == {0}
        assert names["same"].islnk() or names["new"].islnk()


def test_a_path_that_no_call_takes_is_told(make: Callable[..., Image]) -> None:
    with Container(make()) as c:
        out(c, f"d={'d' * 200}; while mkdir $d && cd $d; do :; done; true")
        for look in (c.diff, c.commit, lambda: c.export(io.BytesIO())):
            with pytest.raises(sandbox.SetupError, match=r"ENAMETOOLONG .*\(4095 bytes\)"):
                look()


def test_what_is_closed_to_us_is_read_by_root_and_told_to_an_ordinary_user(make: Callable[..., Image]) -> None:
    with Container(make()) as c:
        out(c, "mkdir -p /closed/d; chmod 0 /closed")
        for look in (c.diff, c.commit, lambda: c.export(io.BytesIO())):
            with contextlib.nullcontext() if os.geteuid() == 0 else pytest.raises(sandbox.SetupError, match=r"EACCES .*chmod"):
                look()


def test_an_export_that_cannot_be_written_says_so(make: Callable[..., Image]) -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with Container(make()) as c:
            for target, why in ((pipe, "EPIPE .*nobody reads"), (full, "ENOSPC .*is full")):
                with pytest.raises(sandbox.SetupError, match=why):
                    c.export(target)
    finally:
        os.close(pipe)
        os.close(full)
