"""Real servers in containers of a network, as Debian packages them: by name and address from other containers, by published port from hosts."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import field, frozen

from sandbox import Container, Network
from tests.netns import HOST, PYTHON, WORLD, alone, world
from tests.support import known, needs, patience

pytestmark = [needs("root", "userns"), pytest.mark.usefixtures("no_leftovers")]

POSTGRES: Final = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql/none/bin"))
FETCH: Final = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode(), end='')"
_NGINX: Final = """
daemon off; pid /tmp/nginx.pid; error_log stderr; events {}
http { access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
       server { listen 8080; location / { return 200 "hello $remote_addr\\n"; } } }
"""


@frozen
class Server:
    """*prepare* puts its files into a container and gives its command; *ask*, of a host and a port, a client's; *says*: whom the server sees, told by the client."""

    port: int
    prepare: Callable[[Container], list[str]]
    ask: Callable[[str, int], list[str]]
    says: str
    options: dict[str, Any] = field(factory=dict[str, Any])


def _prepare_nginx(container: Container) -> list[str]:
    container.write_bytes("/tmp/nginx.conf", _NGINX.encode())
    return ["nginx", "-c", "/tmp/nginx.conf", "-e", "stderr"]


def _prepare_postgresql(container: Container) -> list[str]:
    """Only its programs are used: a cluster of the container's own, in its /tmp."""
    container.exec([str(POSTGRES / "initdb"), "-D", "/tmp/data", "-U", "admin", "-A", "trust", "--no-sync"], check=True)
    container.write_bytes("/tmp/data/pg_hba.conf", b"host all all all trust\n")
    return [str(POSTGRES / "postgres"), "-D", "/tmp/data", "-h", "*", "-k", "/tmp", "-F"]


def _query(host: str, port: int) -> list[str]:
    return [str(POSTGRES / "psql"), "-h", host, "-p", str(port), "-U", "admin", "-Atc", "select 6 * 7, inet_client_addr()", "postgres"]


NGINX: Final = Server(8080, _prepare_nginx, lambda host, port: [PYTHON, "-c", FETCH, f"http://{host}:{port}/"], "hello {}\n")
REDIS: Final = Server(
    6379,
    lambda _: ["redis-server", "--protected-mode", "no", "--dir", "/tmp", "--save", ""],
    lambda host, port: ["redis-cli", "-h", host, "-p", str(port), "--raw", "client", "info"],
    " addr={}:",
)
POSTGRESQL: Final = Server(5432, _prepare_postgresql, _query, "42|{}\n", {"shm": "128M"})
without_postgresql = pytest.mark.skipif(not (POSTGRES / "initdb").exists(), reason="needs PostgreSQL's programs (Debian: postgresql)")
of_each_server = pytest.mark.parametrize(
    "server",
    [
        pytest.param(NGINX, marks=needs("program:nginx"), id="nginx"),
        pytest.param(REDIS, marks=needs("program:redis-server", "program:redis-cli"), id="redis"),
        pytest.param(POSTGRESQL, marks=without_postgresql, id="postgresql"),
    ],
)


def until_it_answers(ask: Callable[[], tuple[int, str]]) -> str:
    """A server that has just been started listens some time later, and says so to its clients only. *ask* gives exit code and output."""
    deadline = time.monotonic() + patience(60.0)
    while (result := ask())[0] and time.monotonic() < deadline:
        pass
    assert result[0] == 0, result[1]
    return result[1]


@of_each_server
def test_a_server_is_reached_by_name_and_address(server: Server) -> None:
    with ExitStack() as stack:
        net = stack.enter_context(Network(internal=True))
        c = stack.enter_context(Container(net=net, hostname="server", **server.options))
        client = stack.enter_context(Container(net=net))
        process = stack.enter_context(c.popen(server.prepare(c)))

        def ask(host: str) -> tuple[int, str]:
            result = client.exec(server.ask(host, server.port), text=True)
            return result.exit_code or 0, result.stdout

        for host in ("server", known(c.address)):
            assert server.says.format(client.address) in until_it_answers(lambda host=host: ask(host))  # type: ignore[misc]
        process.kill()


def ask_here(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@needs("program:ip")
@of_each_server
@alone
def test_a_server_is_reached_by_its_published_port_from_the_host_and_from_another(server: Server) -> None:
    with world() as there, ExitStack() as stack:
        net = stack.enter_context(Network())
        c = stack.enter_context(Container(net=net, ports=[server.port], **server.options))
        process = stack.enter_context(c.popen(server.prepare(c)))
        (place,) = c.ports[f"{server.port}/tcp"]
        link = net.live.uplink
        assert link is not None
        by_loopback, by_address = server.ask("127.0.0.1", place.port), server.ask(HOST, place.port)
        assert server.says.format(link.here) in until_it_answers(lambda: ask_here(by_loopback))
        assert server.says.format(HOST) in until_it_answers(lambda: ask_here(by_address))
        assert server.says.format(WORLD) in until_it_answers(lambda: there.run(shlex.join(by_address)))
        process.kill()
