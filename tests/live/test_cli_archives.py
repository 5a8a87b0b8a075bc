"""``sandbox save``, ``load``, ``import`` and ``export``, as people type them."""

from __future__ import annotations

import gzip
import os
import pty
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from sandbox.image import Store
from tests.archives import archive
from tests.images import make

pytestmark = pytest.mark.unprivileged


# The command as it is, but for where root's images are: the machine's own are not touched.
COMMAND = "import os, sys; os.environ['SANDBOX_IMAGES'] = sys.argv.pop(1); from sandbox.cli import main; sys.exit(main())"


@pytest.fixture
def store(tmp_path: Path, monkeypatch) -> Store:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return Store(tmp_path / "data/sandbox/images")


def argv(store: Store, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", COMMAND, store.path, *map(str, arguments)]


def sandbox(store: Store, *arguments: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(argv(store, *arguments), input=data, capture_output=True, check=False, timeout=60)


def failure(store: Store, *arguments: str | Path, data: bytes = b"") -> tuple[int, str]:
    done = sandbox(store, *arguments, data=data)
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == 1
    return done.returncode, done.stderr.decode()


def test_images_go_out_and_in_again_through_pipes(store: Store):
    image = make(store, "app:1")
    saved = sandbox(store, "save", "app:1")
    assert (saved.returncode, saved.stderr) == (0, b"")
    store.remove("app:1")
    loaded = sandbox(store, "load", data=gzip.compress(saved.stdout))
    assert (loaded.returncode, loaded.stdout) == (0, b"Loaded docker.io/library/app:1\n")
    assert store.get("app:1").id == image.id


@pytest.mark.parametrize("form", ["docker", "oci", "oci-dir"])
def test_images_go_into_files_and_directories(tmp_path: Path, store: Store, form: str):
    image = make(store, "app:1")
    assert sandbox(store, "save", "--format", form, "-o", tmp_path / "out", image.id.short).returncode == 0
    store.remove("app:1")
    assert sandbox(store, "load", "-i", tmp_path / "out", "--name", "other:2").stdout == b"Loaded docker.io/library/other:2\n"
    assert sandbox(store, "load", "-q", "-i", tmp_path / "out").stdout == b""


def test_a_root_file_system_goes_in_and_out(tmp_path: Path, store: Store):
    data = archive([("etc/os-release", b"ID=x")])
    done = sandbox(store, "import", "-m", "by hand", "-c", 'CMD ["sh", "-l"]', "--change", "ENV A=1", "-", "app:1", data=data)
    image = store.get("app:1")
    assert done.stdout.decode() == f"{image.id}\n"
    assert image.config.history[0].comment == "by hand"
    assert (image.settings.cmd, image.settings.env) == (("sh", "-l"), ("A=1",))
    assert sandbox(store, "export", "app:1", "-o", tmp_path / "root.tar").returncode == 0
    with tarfile.open(tmp_path / "root.tar") as tar:
        assert "etc/os-release" in tar.getnames()


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, store: Store):
    make(store, "app:1")
    code, said = failure(store, "save", "nothing:1")
    assert (code, said.startswith("sandbox save: no image nothing:1")) == (1, True)
    assert failure(store, "save", "--format", "oci-dir", "app:1")[0] == 2
    assert failure(store, "save")[0] == 2
    assert failure(store, "save", "--format", "zip", "app:1")[0] == 2
    assert failure(store, "load", "--platform", "amd64", data=b"x")[0] == 2
    code, said = failure(store, "load", data=b"no tar" * 1000)
    assert (code, said.startswith("sandbox load: tar: ")) == (1, True)
    assert failure(store, "load", "-i", tmp_path / "nothing")[0] == 1
    assert failure(store, "import", tmp_path / "nothing")[0] == 1
    assert "RUN" in failure(store, "import", "-c", "RUN x", "-", data=b"")[1]
    assert failure(store, "export", "app:1", "-o", tmp_path / "no/where")[0] == 1


@pytest.mark.parametrize("arguments", [["save", "app:1"], ["export", "app:1"], ["load"], ["import", "-"]])
def test_archives_are_neither_written_to_a_terminal_nor_read_from_one(store: Store, arguments: list[str]):
    make(store, "app:1")
    main, terminal = pty.openpty()
    try:
        done = subprocess.run(argv(store, *arguments), stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, check=False, timeout=60)
    finally:
        os.close(terminal)
        os.close(main)
    assert done.returncode in (1, 2)
    assert b"terminal" in done.stderr


def test_bootstrap_asks_debootstrap(tmp_path: Path, store: Store, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/debootstrap"
    program.write_text('#!/bin/sh\necho "E: asked for $*" >&2\nexit 1\n')
    program.chmod(0o755)
    for name in ("fakechroot", "fakeroot"):
        (tmp_path / "bin" / name).write_text('#!/bin/sh\n[ "$1" = -s ] && shift 2\nexec "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    code, said = failure(store, "image", "bootstrap", "--include", "git,curl", "--mirror", "http://localhost/debian", "debian:12")
    assert code == 1
    assert "--include=git,curl bookworm" in said
    assert failure(store, "image", "bootstrap", "alpine:3")[0] == 1
    assert failure(store, "image", "bootstrap")[0] == 2


def test_help_lists_the_options(store: Store):
    options = {"save": "--format", "load": "--platform", "import": "--change", "export": "--output", "image bootstrap": "--mirror"}
    for command, option in options.items():
        done = sandbox(store, *command.split(), "--help")
        assert (done.returncode, option in done.stdout.decode()) == (0, True)
