"""Bootstrapping: what debootstrap is asked for, what is taken out of what it leaves, and how it fails; a stand-in plays its part."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

from sandbox.errors import ImageError, UnsupportedError, UsageError
from sandbox.image import Store, bootstrap
from tests.support import needs

pytestmark = pytest.mark.unprivileged

STAND_IN = """\
#!/bin/sh
for word; do case $word in -*) ;; */root) target=$word;; esac; done
mkdir -p "$target/etc/apt" "$target/dev" "$target/var/lib/apt/lists/partial" "$target/debootstrap" "$target/var/log"
for word; do echo "$word"; done >"$target/etc/asked"
env >"$target/etc/environment"
echo nameserver 10.1.2.3 >"$target/etc/resolv.conf"
hostname >"$target/etc/hostname"
touch "$target/var/lib/apt/lists/x" "$target/var/log/bootstrap.log"
ln -s /etc/passwd "$target/etc/passwd-"
"""
FAKECHROOT = '#!/bin/sh\nexec "$@"\n'
FAKEROOT = '#!/bin/sh\n[ "$1" = -s ] && echo >"$2"\nshift 2\nexec "$@"\n'


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put_program(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(script)
    (directory / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch) -> Path:
    """A directory that comes first in PATH, with programs that play the parts."""
    for name, script in (("debootstrap", STAND_IN), ("fakechroot", FAKECHROOT), ("fakeroot", FAKEROOT)):
        put_program(tmp_path / "bin", name, script)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("A_SECRET", "of the host")
    return tmp_path / "bin"


def asked(store: Store, name: str, **options: object) -> list[str]:
    root = Path(bootstrap(name, store=store, **options).layers[0])
    return [word for word in (root / "etc/asked").read_text().splitlines() if not word.endswith("/root") and word != "--variant=fakechroot"]


@pytest.mark.parametrize(
    ("name", "suite"),
    [("debian:12", "bookworm"), ("debian:bookworm-slim", "bookworm"), ("debian:sid", "sid"), ("debian", "stable"), ("ubuntu:24.04", "noble")],
)
def test_a_name_says_which_suite(store: Store, programs: Path, name: str, suite: str):
    assert asked(store, name)[-1] == suite


def test_options_reach_debootstrap_as_its_own(store: Store, programs: Path, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.touch()
    found = asked(store, "app:1", suite="trixie", mirror="http://localhost/debian", include=["ca-certificates", "git"], components=["main"], keyring=str(keys))
    own = ["--variant=minbase"] if os.geteuid() == 0 else []
    assert found == [*own, "--include=ca-certificates,git", "--components=main", f"--keyring={keys}", "trixie", "http://localhost/debian"]


def test_nothing_of_this_host_gets_into_the_image(store: Store, programs: Path):
    image = bootstrap("debian:12", store=store)
    root = Path(image.layers[0])
    assert sorted(os.listdir(root / "etc")) == ["apt", "asked", "environment"]
    assert os.listdir(root / "var/lib/apt/lists") == []
    assert not (root / "debootstrap").exists()
    assert "A_SECRET" not in (root / "etc/environment").read_text()
    assert image.settings.cmd == ("bash",)
    assert image.names == ("docker.io/library/debian:12",)


def test_what_is_made_on_the_way_is_removed(store: Store, programs: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    bootstrap("debian:12", store=store)
    put_program(programs, "debootstrap", "#!/bin/sh\nexit 1\n")
    with pytest.raises(ImageError):
        bootstrap("debian:12", store=store)
    assert os.listdir(tmp_path / "tmp") == []


@needs("root")
def test_what_debootstrap_mounts_is_gone_with_it(store: Store, programs: Path):
    put_program(programs, "debootstrap", '#!/bin/sh\nmkdir -p "$3/proc"\nmount -t proc proc "$3/proc"\nkill -9 $$\n')
    before = Path("/proc/self/mountinfo").read_text()
    with pytest.raises(ImageError, match="ended with"):
        bootstrap("debian:12", store=store)
    assert Path("/proc/self/mountinfo").read_text() == before


def test_the_last_words_of_debootstrap_are_told(store: Store, programs: Path):
    put_program(programs, "debootstrap", "#!/bin/sh\necho I: fetching\necho 'E: No such suite' >&2\nexit 3\n")
    with pytest.raises(ImageError, match=r"ended with 3: .*No such suite"):
        bootstrap("debian:12", store=store)
    assert store.images() == []


def test_without_debootstrap_the_remedy_is_told(store: Store, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(importlib.import_module("sandbox.image._bootstrap"), "_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="apt install debootstrap") as caught:
        bootstrap("debian:12", store=store)
    assert caught.value.feature == "debootstrap"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("alpine:3", {}),
        ("debian:99", {}),
        ("ubuntu", {}),
        ("debian:12", {"suite": "--help"}),
        ("debian:12", {"suite": "a b"}),
        ("debian:12", {"include": ["a,b"]}),
        ("debian:12", {"include": ["--foreign"]}),
        ("debian:12", {"components": [""]}),
        ("debian:12", {"mirror": "--verbose"}),
        ("debian:12", {"variant": "other"}),
        ("debian:12", {"keyring": "/no/such/file"}),
        ("No Name", {}),
    ],
)
def test_wrong_calls_start_nothing(store: Store, programs: Path, name: str, options: dict[str, object]):
    put_program(programs, "debootstrap", f"#!/bin/sh\ntouch {programs}/started\n")
    with pytest.raises(UsageError):
        bootstrap(name, store=store, **options)
    assert not (programs / "started").exists()


def test_a_variant_that_this_user_cannot_have_is_refused_with_those_that_there_are(store: Store, programs: Path):
    with pytest.raises(UnsupportedError, match="can have"):
        bootstrap("debian:12", variant="fakechroot" if os.geteuid() == 0 else "minbase", store=store)


def test_what_fakechroot_leaves_is_mended(tmp_path: Path):
    root = tmp_path / "root"
    for name in ("etc", "sbin", "usr/bin", "var/lib/dpkg"):
        (root / name).mkdir(parents=True)
    (root / "etc/link").symlink_to(root / "lib/x")
    (root / "etc/top").symlink_to(root)
    (root / "etc/other").symlink_to(f"{root}-and-more")
    (root / "dev").symlink_to("/dev")
    for name in ("sbin/ldconfig", "usr/bin/ldd"):
        (root / name).write_text("stand-in")
        (root / f"{name}.REAL").write_text("real")
    (root / "var/lib/dpkg/diversions").write_text("/a\n/a.x\ndash\n/sbin/ldconfig\n/sbin/ldconfig.REAL\nfakechroot\n")
    importlib.import_module("sandbox.image._bootstrap").mend(str(root))
    assert [os.readlink(root / "etc" / name) for name in ("link", "top", "other")] == ["/lib/x", "/", f"{root}-and-more"]
    assert (root / "dev").is_dir()
    assert not (root / "dev").is_symlink()
    assert (root / "sbin/ldconfig").read_text() == "real"
    assert not (root / "usr/bin/ldd.REAL").exists()
    assert (root / "var/lib/dpkg/diversions").read_text() == "/a\n/a.x\ndash\n"
