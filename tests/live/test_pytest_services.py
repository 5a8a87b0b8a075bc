"""Services in the containers of the pytest plugin: started, waited for, reached. The fixtures are the plugin's own."""

from __future__ import annotations

import os
import re
import socket
import time

import pytest

import sandbox
from sandbox import BrokenError, UsageError
from sandbox.pytest_plugin import ServiceContainer, ServiceError
from tests.support import needs

pytestmark = [pytest.mark.unprivileged, needs("userns", "program:python3")]

ECHO = """
import socket, sys
family = socket.AF_INET6 if "::1" in sys.argv else socket.AF_INET
with socket.create_server((sys.argv[2], int(sys.argv[1])), family=family) as server:
    print("listening", flush=True)
    while True:
        with server.accept()[0] as connection:
            while data := connection.recv(1000):
                connection.sendall(data.upper())
"""
# Answers with what its argument says, and then does nothing more with that connection.
ANSWER = """
import socket, sys
server = socket.create_server(("127.0.0.1", 8080))
kept = []
while True:
    connection = server.accept()[0]
    connection.recv(1000)
    connection.sendall(sys.argv[1].encode().decode("unicode_escape").encode())
    kept.append(connection)
"""


def python(code: str, *arguments: str) -> list[str]:
    return ["python3", "-I", "-S", "-c", code, *arguments]


def test_a_port_is_waited_for_and_reached(container: ServiceContainer):
    service = container.serve(python(ECHO, "5000", "127.0.0.1"), name="echo").wait_for(port=5000)
    for word in (b"one", b"two", b"three", b"four", b"five"):  # more than are made at once
        with service.connect(5000) as connection:
            connection.sendall(word)
            assert connection.recv(100) == word.upper()
    assert "listening" in service.output
    assert repr(service) == "<Service: echo runs>"


def test_the_other_family_is_reached_as_well(container: ServiceContainer):
    container.serve(python(ECHO, "5000", "::1")).wait_for(port=5000)
    with container.connect(5000, host="::1") as connection:
        connection.sendall(b"six")
        assert connection.recv(100) == b"SIX"


def test_a_port_of_the_host_or_of_another_container_is_not_taken_for_its_own(container: ServiceContainer, container_factory):
    other = container_factory()
    other.serve(python(ECHO, "5000", "127.0.0.1")).wait_for(port=5000)
    with pytest.raises(ServiceError, match=r"port 5000: not there within 0\.05 s"):
        container.wait_for(port=5000, timeout=0.05)
    with pytest.raises(ConnectionRefusedError):
        container.connect(5000)


@pytest.mark.parametrize("pattern", ["listening", re.compile("^list.*g$")])
def test_a_line_of_the_log_is_waited_for(container: ServiceContainer, pattern):
    service = container.serve(python(ECHO, "5000", "127.0.0.1"))
    assert service.wait_for(log=pattern) is service
    assert container.wait_for(log=pattern) is container  # also when it came before


def test_a_command_is_tried_until_it_succeeds(container: ServiceContainer):
    container.serve(["sh", "-c", "read go; touch /tmp/ready; exec sleep 100"], stdin=sandbox.PIPE)
    with pytest.raises(ServiceError, match=r"exited with exit code 1\b.*test-says-no"):
        container.wait_for(command=["sh", "-c", "test -e /tmp/ready || { echo test-says-no; exit 1; }"], timeout=1.5)
    stdin = container.services[0].process.stdin
    assert stdin is not None
    stdin.write(b"go\n")
    stdin.flush()
    container.wait_for(command=["test", "-e", "/tmp/ready"])


def test_an_answer_is_waited_for(container: ServiceContainer):
    container.serve(python(ANSWER, r"HTTP/1.1 204 No Content\r\n\r\n"))
    container.wait_for(http="http://localhost:8080/health")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (r"HTTP/1.1 503 Not Yet\r\n", "status 503"),
        (r"220 mail.example.org ESMTP\r\n", "no HTTP answer"),
        ("HTTP/1.1 2", "no answer in time|timed out"),  # and never a newline
    ],
)
def test_an_answer_that_is_none_is_no_answer(container: ServiceContainer, answer: str, words: str):
    container.serve(python(ANSWER, answer)).wait_for(port=8080).connect(8080).close()  # it makes sockets, which takes a while
    begin = time.monotonic()
    with pytest.raises(ServiceError, match=words):
        container.wait_for(http="http://127.0.0.1:8080/", timeout=1.5)
    assert time.monotonic() - begin < 20


def test_a_service_that_ends_early_is_not_waited_for(container: ServiceContainer):
    service = container.serve(["sh", "-c", "echo cannot open the \033[31mdata base; exit 3"], name="db")
    begin = time.monotonic()
    with pytest.raises(ServiceError) as caught:
        service.wait_for(port=5432, timeout=60)
    assert time.monotonic() - begin < 30
    assert "db ended with exit code 3 before port 5432 was there" in str(caught.value)
    assert "cannot open the \\x1b[31mdata base" in caught.value.output
    assert not service.is_running


def test_the_last_words_of_a_service_are_heard(container: ServiceContainer):
    for _ in range(10):
        container.serve(["echo", "done"]).wait_for(log="done")


def test_a_flood_of_output_neither_stops_a_service_nor_fills_memory(container: ServiceContainer):
    service = container.serve(["sh", "-c", "head -c 20000000 /dev/zero; echo; echo finished; exec sleep 100"]).wait_for(log="finished")
    assert service.log.total > 20_000_000
    assert len(service.output) < 400_000
    assert service.stop().signal == 15


def test_a_service_that_ignores_sigterm_is_killed(container: ServiceContainer):
    service = container.serve(["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"]).wait_for(log="deaf")
    assert service.stop(timeout=0.05).status is sandbox.Status.KILLED
    assert service.stop().status is sandbox.Status.KILLED  # a second time changes nothing


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"port": 1, "log": "x"}, {"port": 0}, {"port": "80"}, {"port": True}, {"log": b"x"}, {"log": re.compile(b"x")}, {"log": "x"},
        {"command": "true"}, {"http": "http://example.org/"}, {"port": 80, "timeout": 0}, {"port": 80, "timeout": True}, {"command": ["no-such-program"]},
    ],
)  # fmt: skip
def test_a_wrong_wish_is_refused(container: ServiceContainer, wrong):
    with pytest.raises(UsageError):
        container.wait_for(**wrong)


@pytest.mark.parametrize("wrong", [{"stdout": None}, {"text": True}, {"tty": True}])
def test_the_output_of_a_service_is_nobody_elses(container: ServiceContainer, wrong):
    with pytest.raises(UsageError, match="popen"):
        container.serve(["true"], **wrong)


def test_a_container_that_dies_is_no_service_that_is_not_ready(container: ServiceContainer):
    service = container.serve(["sleep", "100"])
    os.kill(container.pid, 9)
    with pytest.raises(BrokenError, match="the container ended"):
        service.wait_for(log="never", timeout=30)


@pytest.mark.sandbox(net="host")
def test_the_hosts_network_is_reached_as_it_is(container: ServiceContainer):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        container.wait_for(port=port)
        container.connect(port).close()


@pytest.mark.usefixtures("no_leftovers")
def test_nothing_is_left_of_services_and_connections():
    with ServiceContainer() as box:
        service = box.serve(python(ECHO, "5000", "127.0.0.1")).wait_for(port=5000)
        service.connect(5000).close()
        with pytest.raises(ServiceError):
            service.wait_for(log="never", timeout=0.01)
        box.serve(["sh", "-c", "sleep 100 & sleep 100"])
    box.close()
