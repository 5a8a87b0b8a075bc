"""A whole Debian, made of its packages here: saved, loaded, pushed, pulled; and apt installs another package in it.

It takes a mirror, and a minute or more: so only where SANDBOX_TESTS_DEBIAN is set (to the address of a mirror, or to 1 for the one that this host's apt has).
"""

from __future__ import annotations

import os
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import PIPE, Container
from sandbox.builder import build
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


DOCKERFILE = """\
FROM debian:12
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-pip
RUN mkdir -p /srv/app/wheels
COPY *.whl /srv/app/wheels/
COPY requirements.txt /srv/app/
RUN pip install --no-index --find-links /srv/app/wheels --break-system-packages -r /srv/app/requirements.txt
WORKDIR /srv/app
COPY app.py .
EXPOSE 8000
ENV WORD=hello
CMD ["python3", "app.py"]
"""
APP = """\
import http.server, os
import greetings

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(greetings.greet(os.environ["WORD"], self.path).encode())

print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
CLIENT = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8000/world', timeout=60).read().decode())"


def write_wheel(directory: Path) -> None:
    """A distribution of one module, as pip takes it."""
    info = "greetings-1.0.dist-info"
    files = {
        "greetings.py": "def greet(word, path):\n    return word + path\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: greetings\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(directory / "greetings-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


def test_an_application_in_python_is_built_serves_and_is_built_again_at_once(store: Store, debian: Image, tmp_path: Path):
    assert debian.names
    write_wheel(tmp_path)
    for name, text in {"Dockerfile": DOCKERFILE, "app.py": APP, "requirements.txt": "greetings==1.0\n"}.items():
        (tmp_path / name).write_text(text)
    image = build(tmp_path, tags=["app:1"], network="host", store=store, timeout=600)
    assert image.settings.exposed_ports == ("8000/tcp",)
    with Container("app:1", store=store, memory="256M", pids=32) as container, container.popen(container.command(), stdout=PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
        assert container.exec(["python3", "-c", CLIENT], text=True, check=True).stdout == "hello/world\n"
        server.kill()
    began = time.monotonic()
    assert build(tmp_path, tags=["app:1"], network="host", store=store).id == image.id
    assert time.monotonic() - began < 10
    store.remove("app:1")
