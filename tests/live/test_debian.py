"""A whole Debian, made of its packages here: saved, loaded, pushed, pulled; and apt installs another package in it.

It takes a mirror, and a minute or more: so only where SANDBOX_TESTS_DEBIAN is set (to the address of a mirror, or to 1 for the one that this host's apt has).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import Container
from sandbox.image import Image, Store, bootstrap, load, pull, push, save
from tests.live.test_registry_debian import serving
from tests.support import needs, why_not

pytestmark = [needs("root", "program:debootstrap"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def mirror() -> str:
    wanted = os.environ.get("SANDBOX_TESTS_DEBIAN", "")
    if not wanted:
        pytest.skip("SANDBOX_TESTS_DEBIAN is not set: it takes a mirror and a minute")
    if "/" in wanted:
        return wanted
    asked = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Codename: bookworm"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    if not found:
        pytest.skip("this host's apt has no mirror of Debian 12")
    return found[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("debian") / "store")


@pytest.fixture(scope="module")
def debian(store: Store, mirror: str) -> Iterator[Image]:
    yield bootstrap("debian:12", mirror=mirror, store=store)
    store.remove("debian:12", force=True)


def test_programs_run_in_it(store: Store, debian: Image):
    with Container(debian, store=store) as container:
        assert container.exec(["cat", "/etc/debian_version"]).stdout.startswith(b"12.")
        assert container.exec(["dpkg", "--audit"]).stdout == b""
    assert not os.path.lexists(f"{debian.layers[0]}/etc/hostname")


@pytest.mark.parametrize("form", ["docker", "oci"])
def test_it_is_saved_and_loaded(store: Store, debian: Image, tmp_path: Path, form: str):
    save(["debian:12"], tmp_path / "saved", format=form, store=store)
    there = Store(tmp_path / "there")
    (image,) = load(tmp_path / "saved", store=there)
    assert (image.id, image.manifest, image.names) == (debian.id, debian.manifest, debian.names)
    assert there.verify() == []


def test_it_goes_to_a_registry_and_back(store: Store, debian: Image, tmp_path: Path):
    if why := why_not("program:docker-registry"):
        pytest.skip(f"docker-registry: {why}")
    with serving(tmp_path) as host:
        push(f"{host}/debian:12", image=debian, store=store)
        image = pull(f"{host}/debian:12", store=Store(tmp_path / "there"))
    assert image.id == debian.id
    assert image.config.diff_ids == debian.config.diff_ids


def test_apt_installs_a_package_in_it(store: Store, debian: Image):
    with Container(debian, store=store, net="host", memory="1G", pids=256, scratch="1G") as container:
        for argv in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "hello"]):
            done = container.exec(argv, env={"DEBIAN_FRONTEND": "noninteractive"}, timeout=300)
            assert done.ok, (done, done.stdout[-2000:], done.stderr[-2000:])
        assert container.exec(["hello"]).stdout == b"Hello, world!\n"
