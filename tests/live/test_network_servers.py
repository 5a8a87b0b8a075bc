"""Real servers in containers of a network, as Debian packages them, and their own clients in others: by name and by address."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sandbox import Container, Network, Result
from tests.support import known, needs, patience

pytestmark = [needs("root", "userns"), pytest.mark.usefixtures("no_leftovers")]

POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql/none/bin"))
NGINX = """
daemon off; pid /tmp/nginx.pid; error_log stderr; events {}
http { access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
       server { listen 8080; location / { return 200 "hello $remote_addr\\n"; } } }
"""
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode(), end='')"


@contextmanager
def network_with(name: str, **options: Any) -> Iterator[tuple[Container, Container]]:
    """A container of this name, for a server, and one for its clients."""
    with ExitStack() as stack:
        net = stack.enter_context(Network(internal=True))
        server = stack.enter_context(Container(net=net, hostname=name, **options))
        yield server, stack.enter_context(Container(net=net, hostname="client"))


def until_it_answers(ask: Callable[[], Result]) -> Result:
    """A server that has just been started listens some time later, and says so to its clients only."""
    deadline = time.monotonic() + patience(20.0)
    while not (result := ask()).ok and time.monotonic() < deadline:
        pass
    assert result.ok, result
    return result


@needs("program:nginx")
def test_nginx_is_reached_by_name_and_address() -> None:
    with network_with("web") as (server, client):
        server.write_bytes("/tmp/nginx.conf", NGINX.encode())
        with server.popen(["nginx", "-c", "/tmp/nginx.conf", "-e", "stderr"]) as process:
            for host in ("web", known(server.address)):
                got = until_it_answers(lambda host=host: client.exec(["/usr/bin/python3", "-c", FETCH, f"http://{host}:8080/"], text=True))  # type: ignore[misc]
                assert got.stdout == f"hello {client.address}\n"
            process.kill()


@needs("program:redis-server", "program:redis-cli")
def test_redis_is_reached_by_name_and_address() -> None:
    command = ["redis-server", "--protected-mode", "no", "--dir", "/tmp", "--save", ""]
    with network_with("cache") as (server, client), server.popen(command) as process:
        for number, host in enumerate(("cache", known(server.address)), 1):
            got = until_it_answers(lambda host=host: client.exec(["redis-cli", "-h", host, "incr", "visits"], text=True))  # type: ignore[misc]
            assert got.stdout.split()[-1] == str(number)
        process.kill()


@pytest.mark.skipif(not (POSTGRES / "initdb").exists(), reason="needs PostgreSQL's programs (Debian: postgresql)")
def test_postgresql_is_reached_by_name_and_address() -> None:
    """Only its programs are used: a cluster of the container's own, in its /tmp."""
    with network_with("db", shm="128M") as (server, client):
        server.exec([str(POSTGRES / "initdb"), "-D", "/tmp/data", "-U", "admin", "-A", "trust", "--no-sync"], check=True)
        server.write_bytes("/tmp/data/pg_hba.conf", b"host all all all trust\n")
        options = ["-D", "/tmp/data", "-h", "*", "-k", "/tmp", "-F"]
        with server.popen([str(POSTGRES / "postgres"), *options]) as process:
            for host in ("db", known(server.address)):
                command = [str(POSTGRES / "psql"), "-h", host, "-U", "admin", "-Atc", "select 6 * 7, inet_client_addr()", "postgres"]
                got = until_it_answers(lambda command=command: client.exec(command, text=True))  # type: ignore[misc]
                assert got.stdout == f"42|{client.address}\n"
            process.kill()
