"""What has become of the files of containers that outlive their command: commit, diff, export and cp from the command line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox import Container, Tmpfs, keep
from sandbox.image import Settings, Store
from tests.live.test_keep import COMMAND, Cli, follow_until
from tests.live.test_keep import cli as cli  # noqa: PLC0414 - fixtures
from tests.live.test_keep import store as store  # noqa: PLC0414
from tests.rootfs import busybox, put_image, write_layer
from tests.support import needs

pytestmark = [needs("userns", "program:busybox", "overlay"), pytest.mark.unprivileged]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes an image in a store of its own."""
    monkeypatch.setenv("SANDBOX_IMAGES", str(tmp_path / "images"))

    def make(name: str, **settings: object) -> None:
        tree = write_layer(tmp_path / os.urandom(4).hex(), {"d/one": "1", "gone": "x"})
        put_image(Store(), name, busybox(tmp_path / os.urandom(4).hex()), tree, settings=Settings(**settings))  # type: ignore[arg-type]

    return make


def test_a_container_is_looked_at_committed_and_exported(cli: Cli, image: Callable[..., None], tmp_path: Path) -> None:
    image("app", cmd=("sh", "-c", "trap 'exit 0' USR1; echo up; while :; do sleep 0.05; done"), stop_signal="SIGUSR1", labels={"of": "image"})
    cli("run", "-d", "--name", "web", "--image", "app", "--label", "app=shop")
    kept = keep.find("web")
    follow_until(kept, b"up")  # it has its trap
    assert kept.config.labels == {"of": "image", "app": "shop"}
    cli("exec", "web", "sh", "-c", "echo new >/new; rm /gone; echo 2 >/d/one")
    source = tmp_path / "source"
    source.write_bytes(b"from outside")
    assert cli("cp", str(source), "web:/d/two") == ""
    for _ in range(2):  # while it runs, and when it is stopped
        assert cli("diff", "web").splitlines() == ["C /d", "C /d/one", "A /d/two", "D /gone", "A /new"]
        assert cli("stop", "web") == "web\n"
    assert cli("wait", "web") == "0\n"  # the image's own signal
    made = cli("commit", "-a", "me", "-m", "why", "-c", 'CMD ["cat", "/new"]', "web", "changed").strip()
    assert str(Store().get("changed").id) == made
    with Container("changed") as c:
        assert (c.run().stdout, c.read_bytes("/d/two")) == (b"new\n", b"from outside")
    exported = subprocess.run([*COMMAND, "export", "web"], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(exported)) as archive:
        names = {member.name.removeprefix("./") for member in archive}
    assert {"new", "d/two", "bin/busybox"} <= names
    assert "gone" not in names
    cli("container", "export", "-o", str(tmp_path / "out.tar"), "web")
    assert (tmp_path / "out.tar").read_bytes() == exported
    (tmp_path / "link").symlink_to(tmp_path / "out.tar")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):  # written to, and not replaced
        with ThreadPoolExecutor() as reading:
            read = reading.submit((tmp_path / "fifo").read_bytes) if name == "fifo" else None
            cli("container", "export", "-o", str(tmp_path / name), "web")
            assert (read.result() if read is not None else (tmp_path / "link").read_bytes()) == exported
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "fifo").is_fifo()
    cli("cp", "web:/new", str(tmp_path / "copied"))
    assert (tmp_path / "copied").read_bytes() == b"new\n"
    cli("start", "web")
    assert cli("exec", "web", "cat", "/d/one") == "2\n"
    cli("rm", "-f", "web")


def test_a_copy_from_or_to_nothing_is_not_of_the_directory_where_one_stands(cli: Cli, image: Callable[..., None], tmp_path: Path) -> None:
    image("app", cmd=("sleep", "1000"))
    cli("run", "-d", "--name", "web", "--image", "app")
    for words in (("", "web:/all"), ("web:/d", "")):
        assert "is empty" in cli("cp", *words, code=1)
    assert "No such file" in cli("exec", "web", "ls", "/all", code=1)


def test_what_an_export_means_is_said_where_it_could_be_either(cli: Cli, image: Callable[..., None], tmp_path: Path) -> None:
    image("app", cmd=("sleep", "1000"))
    cli("run", "-d", "--name", "app", "--image", "app")
    assert "container export" in cli("export", "-o", str(tmp_path / "x"), "app", code=1)
    cli("image", "export", "-o", str(tmp_path / "image.tar"), "app")
    cli("container", "export", "-o", str(tmp_path / "container.tar"), "app")
    assert tarfile.is_tarfile(tmp_path / "image.tar")
    assert tarfile.is_tarfile(tmp_path / "container.tar")
    cli("rm", "-f", "app")
    cli("export", "-o", str(tmp_path / "again.tar"), "app")
    assert (tmp_path / "again.tar").stat().st_size == (tmp_path / "image.tar").stat().st_size


def test_an_image_that_a_container_has_is_not_removed(cli: Cli, image: Callable[..., None]) -> None:
    image("app", cmd=("sleep", "1000"))
    kept = keep.start(None, "app", name="web")
    kept.stop(0)
    assert "use" in cli("rmi", "app", code=1)
    kept.remove()
    cli("rmi", "app")


def test_an_image_is_not_there(cli: Cli, image: Callable[..., None]) -> None:
    assert "nothing" in cli("run", "-d", "--image", "nothing", code=125)


def test_a_client_that_does_not_read_its_export_keeps_nobody(cli: Cli, image: Callable[..., None]) -> None:
    image("app", cmd=("sleep", "1000"))
    kept = keep.start(None, "app", name="web", mounts=[Tmpfs("/tmp")])
    reader, writer = os.pipe()
    with subprocess.Popen([*COMMAND, "export", "web"], stdout=writer) as client:
        os.close(writer)
        assert os.read(reader, 100)
        assert kept.exec(["true"]).ok
        kept.remove(force=True)
        client.kill()
    os.close(reader)
    assert [json.loads(line) for line in cli("ps", "-a", "--format", "json").splitlines()] == []
