"""Attacks through a build: a Dockerfile, a context, a base image or an archive that wants a file of the host, or to write there."""

from __future__ import annotations

import io
import os
import tarfile
import threading

import pytest

from sandbox.builder import build
from sandbox.builder._tree import Tree
from sandbox.builder._workshop import CacheMount
from sandbox.errors import DockerfileError, ImageError
from sandbox.image import Store

pytestmark = pytest.mark.unprivileged


@pytest.fixture
def context(tmp_path):
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "mine").write_text("mine")
    return tmp_path / "context"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def holds(image, secret: str) -> bool:
    """Whether anything in the image is the secret."""
    tree = Tree(list(image.layers), layered=True)
    return any(entry.is_file and secret.encode() in tree.read(entry.path, 1 << 20) for entry in tree.walk(()))


def attempt(context, store, text: str, **options):
    try:
        return build(context, dockerfile=text.encode(), store=store, **options)
    except DockerfileError:
        return None


FORMS = ["COPY {} /x", "COPY --parents {} /x/", "ADD {} /x"]


@pytest.mark.parametrize("form", FORMS)
def test_what_an_image_holds_is_seen(context, store, canary, form):
    """Else the tests below could not fail."""
    (context / "given").write_text(canary.secret)
    image = attempt(context, store, "FROM scratch\n" + form.format("given"))
    assert image is not None
    assert holds(image, canary.secret)


# With {up}: the way from the context to where the canary, "host", lies.
SOURCES = ["{up}/host/secret", "/{up}/host/secret", "a/../{up}/host/secret", "absolute", "absolute/secret", "up/host/secret", "chain", "*/secret", "up/*/secret"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("form", FORMS)
def test_a_source_cannot_lead_out_of_the_context(context, store, canary, source, form):
    (context / "absolute").symlink_to(canary.path if "/" in source else canary.path / "secret")
    up = os.path.relpath(canary.path.parent, context)
    (context / "up").symlink_to(up)
    (context / "chain").symlink_to("up/host/secret")
    assert (context / "chain").read_text() == canary.secret
    image = attempt(context, store, "FROM scratch\n" + form.format(source.format(up=up)))
    assert image is None or not holds(image, canary.secret)
    assert canary.changes() == []


def test_links_inside_a_copied_directory_stay_links(context, store, canary):
    (context / "d").mkdir()
    (context / "d" / "file").symlink_to(canary.path / "secret")
    (context / "d" / "directory").symlink_to(canary.path)
    image = attempt(context, store, "FROM scratch AS a\nCOPY d /d\nFROM scratch\nCOPY --from=a /d/file /x\n")
    assert image is None
    image = attempt(context, store, "FROM scratch AS a\nCOPY d /d\nFROM scratch\nCOPY --from=a /d /d\n")
    assert image is not None
    assert not holds(image, canary.secret)


def test_a_destination_that_is_a_link_in_the_image_stays_in_the_image(context, store, canary):
    (context / "etc").mkdir()
    (context / "etc" / "link").symlink_to(canary.path)
    (context / "etc" / "up").symlink_to("../../../../../../../..")
    text = f"FROM scratch\nCOPY etc /etc\nCOPY mine /etc/link/file\nCOPY mine /etc/up{canary.path}/file\nWORKDIR /etc/link/new\nCOPY mine ../{'../' * 9}{canary.path}/x"
    image = attempt(context, store, text)
    assert image is not None
    assert canary.changes() == []


def test_the_users_of_an_image_are_not_the_hosts(context, store, tmp_path):
    (tmp_path / "passwd").write_text("hosts-own:x:7:7::/:\n")
    (context / "etc").mkdir()
    (context / "etc" / "passwd").symlink_to(tmp_path / "passwd")
    with pytest.raises(DockerfileError, match="no user"):
        build(context, dockerfile=b"FROM scratch\nCOPY etc /etc\nCOPY --chown=hosts-own mine /x", store=store)


def members(*names: tuple[str, bytes, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, target in names:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            data = b"evil" if kind == tarfile.REGTYPE else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["up", "absolute", "link", "hard-link", "device"])
def test_an_added_archive_writes_nowhere_else_and_reads_nothing(context, store, canary, kind):
    path = str(canary.path)
    archives = {
        "up": members(("../" * 12 + path.lstrip("/") + "/evil", tarfile.REGTYPE, "")),
        "absolute": members((f"{path}/evil", tarfile.REGTYPE, "")),
        "link": members(("l", tarfile.SYMTYPE, path), ("l/evil", tarfile.REGTYPE, ""), ("l/secret", tarfile.REGTYPE, "")),
        "hard-link": members(("h", tarfile.LNKTYPE, f"{path}/secret")),
        "device": members(("d", tarfile.CHRTYPE, "")),
    }
    (context / "a.tar").write_bytes(archives[kind])
    image = attempt(context, store, "FROM scratch\nADD a.tar /x/")
    assert image is None or not holds(image, canary.secret)
    assert canary.changes() == []


def test_a_directory_exchanged_for_a_link_gives_nothing_of_the_host(context, store, canary):
    real, link, spare = context / "d", context / "l", context / "s"
    real.mkdir()
    (real / "secret").write_text("harmless")
    link.symlink_to(canary.path)
    stop = threading.Event()

    def exchange():
        while not stop.is_set():
            real.rename(spare)
            link.rename(real)
            real.rename(link)
            spare.rename(real)

    attacker = threading.Thread(target=exchange)
    attacker.start()
    try:
        for _ in range(40):
            try:
                image = attempt(context, store, "FROM scratch\nCOPY d /x/\nCOPY d/secret /y")
            except (ImageError, OSError):
                continue
            assert image is None or not holds(image, canary.secret)
    finally:
        stop.set()
        attacker.join()
    assert canary.changes() == []


@pytest.mark.parametrize("identity", ["../../x", "/etc", "a/b", "..", ".", "x\0y", "é" * 4000])
def test_a_cache_id_is_no_path(tmp_path, identity):
    mount = CacheMount.take(str(tmp_path / "mounts"), identity, "shared")
    mount.close()
    assert os.path.dirname(os.path.dirname(mount.path)) == str(tmp_path / "mounts")
    assert {path.name for path in tmp_path.iterdir()} <= {"mounts", "tmp"}


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_what_would_block_is_not_read(context, store, kind):
    import socket

    (context / "d").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "socket":
            before = os.getcwd()
            os.chdir(context / "d")  # sun_path has 108 bytes
            listener.bind("s")
            os.chdir(before)
        else:
            os.mkfifo(context / "d" / "s")
        image = attempt(context, store, "FROM scratch\nCOPY d /d")
    assert image is not None


def test_a_file_that_becomes_a_fifo_is_an_error(context, store):
    tree = Tree([str(context)])
    entry = tree.entry(("mine",))
    assert entry is not None
    (context / "mine").unlink()
    os.mkfifo(context / "mine")
    with pytest.raises(ImageError, match="changed while"):
        tree.open(entry)
    tree.close()


def test_triggers_of_a_base_image_are_read_with_bounds(context, store):
    deep = "${a:-" * 2000
    image = build(context, dockerfile=b"FROM scratch\nONBUILD ENV x=" + deep.encode(), store=store, tags=["base"])
    assert image.settings.on_build
    with pytest.raises(DockerfileError, match="inside one another"):
        build(context, dockerfile=b"FROM base", store=store)
    nested = "[" * 100_000
    build(context, dockerfile=f"FROM scratch\nONBUILD CMD {nested}]".encode(), store=store, tags=["nested"])
    build(context, dockerfile=b"FROM nested", store=store)


def test_labels_and_names_of_stages_decide_nothing(context, store):
    base = "FROM scratch\nCOPY mine /\nLABEL sandbox.build.step=x org.opencontainers.image.base.name=y"
    image = build(context, dockerfile=base.encode(), store=store, tags=["base"])
    assert build(context, dockerfile=b"FROM base AS base\nFROM base", store=store).config.diff_ids == image.config.diff_ids
