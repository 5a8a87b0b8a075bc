"""A whole Debian, made of its packages here: saved, loaded, pushed to a registry, pulled into another store; and apt and pip install in what was pulled.

It takes a mirror and a package index of Python (those that this host has), and a minute or more: so only where SANDBOX_TESTS_DEBIAN is set (to the address of a mirror, or to 1 for the one that this host's apt has).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import PIPE, Container, DockerfileError
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


@pytest.fixture(scope="module")
def pulled(store: Store, debian: Image, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Another store, in which the image came from a registry."""
    if why := why_not("program:docker-registry"):
        pytest.skip(f"docker-registry: {why}")
    directory = tmp_path_factory.mktemp("pulled")
    there = Store(directory / "there")
    with serving(directory) as host:
        push(f"{host}/debian:12", image=debian, store=store)
        image = pull(f"{host}/debian:12", store=there)
    there.tag(image.id, "debian:12")
    return there


def test_it_goes_to_a_registry_and_back(debian: Image, pulled: Store):
    image = pulled.get("debian:12")
    assert (image.id, image.config.diff_ids) == (debian.id, debian.config.diff_ids)
    assert pulled.verify() == []
    assert not image.built_here


def test_apt_installs_a_package_in_a_step_of_a_build_on_what_was_pulled(pulled: Store):
    dockerfile = b"FROM debian:12\nRUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends hello\n"
    with pytest.raises(DockerfileError, match="exit code"):
        build(None, dockerfile=dockerfile, tags=["hello"], store=pulled, timeout=300)  # a step has no network that nobody asked for
    image = build(None, dockerfile=dockerfile, tags=["hello"], network="host", store=pulled, timeout=300)
    assert image.config.diff_ids[:-1] == pulled.get("debian:12").config.diff_ids
    with Container("hello", store=pulled) as container:
        assert container.exec(["hello"]).stdout == b"Hello, world!\n"
        assert container.exec(["dpkg", "--audit"]).stdout == b""


DOCKERFILE = """\
FROM debian:12
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-pip
RUN mkdir -p /srv/app
COPY requirements.txt /srv/app/
ARG PIP_INDEX_URL
RUN --mount=type=secret,id=authorities PIP_CERT=/run/secrets/authorities pip install --no-cache-dir --break-system-packages -r /srv/app/requirements.txt
WORKDIR /srv/app
COPY app.py .
EXPOSE 8000
ENV WORD=hello
CMD ["python3", "app.py"]
"""
APP = """\
import http.server, os
import sniffio

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{os.environ['WORD']}{self.path} {sniffio.__version__} {sniffio.__file__}".encode())

print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
CLIENT = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8000/world', timeout=60).read().decode())"


@pytest.fixture(scope="module")
def index() -> dict[str, str]:
    """The package index that this host's pip asks, and who vouches for it, as pip says them."""
    asked = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    lines = dict(line.split("=", 1) for line in asked.splitlines() if "=" in line)
    said = {name: value.strip("'\"") for key, value in lines.items() for name in [key.rpartition(".")[2]]}
    return {"url": said.get("index-url", "https://pypi.org/simple"), "cert": said.get("cert", "/etc/ssl/certs/ca-certificates.crt")}


def test_an_application_in_python_is_built_serves_and_is_built_again_at_once(pulled: Store, index: dict[str, str], tmp_path: Path):
    for name, text in {"Dockerfile": DOCKERFILE, "app.py": APP, "requirements.txt": "sniffio==1.3.1\n"}.items():
        (tmp_path / name).write_text(text)

    def built(**more: object) -> Image:
        secrets, arguments = {"authorities": Path(index["cert"]).read_bytes()}, {"PIP_INDEX_URL": index["url"]}
        return build(tmp_path, tags=["app:1"], secrets=secrets, build_args=arguments, network="host", store=pulled, **more)  # type: ignore[arg-type]

    image = built(timeout=600)
    assert image.settings.exposed_ports == ("8000/tcp",)
    with Container("app:1", store=pulled, memory="256M", pids=32) as container, container.popen(container.command(), stdout=PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
        said = container.exec(["python3", "-c", CLIENT], text=True, check=True).stdout
        assert said == "hello/world 1.3.1 /usr/local/lib/python3.11/dist-packages/sniffio/__init__.py\n"
        server.kill()
    began = time.monotonic()
    assert built().id == image.id
    assert time.monotonic() - began < 10
    pulled.remove("app:1")
