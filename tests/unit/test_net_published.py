"""Published ports without a network: who has a port, what is held, and the kernel's flows as bytes."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import PortInUseError, SetupError, UsageError
from sandbox._networks.reserved import Reserved, reserve
from sandbox._sys.calls import setns, unshare
from sandbox._sys.constants import CLONE_NEWNET
from sandbox.net import HostPort, Port, to_ports
from sandbox.net.conntrack import Direction, parse
from sandbox.net.ports import with_exposed
from sandbox.net.sockets import Bound, bound_to, describe, owner_of, parse_table
from tests.support import why_not

FREE = "20000-20999"  # below the kernel's own choices, so that nobody's connection lingers there


@pytest.fixture(autouse=True, scope="module")
def own_namespace() -> Iterator[None]:
    """The next number, or the same one of another address, is nobody's: where we may, all this is in a network namespace of its own."""
    if why_not("root") or why_not("program:ip"):
        yield
        return
    with open("/proc/thread-self/ns/net") as home:
        unshare(CLONE_NEWNET)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
        setns(home.fileno(), CLONE_NEWNET)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def held(stack: ExitStack, *ports: int | str | Port, owner: str = "container 'web'") -> tuple[Reserved, ...]:
    found, let_go = reserve(to_ports(ports), owner)
    stack.callback(let_go)
    return found


def server(stack: ExitStack, address: str = "", kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> int:
    sock = stack.enter_context(socket.socket(family, kind))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    port: int = sock.getsockname()[1]
    return port


# ---- What is held ----


def test_a_free_port_is_chosen_and_what_was_said_is_held(stack: ExitStack) -> None:
    chosen, local, udp = held(stack, 80, "127.0.0.1::81", "53/udp")
    assert (chosen.key, chosen.host.address, local.host.address, udp.key) == ("80/tcp", "0.0.0.0", "127.0.0.1", "53/udp")
    assert all(one.number >= 1024 for one in (chosen, local, udp))
    (said,) = held(stack, f"127.0.0.2:{local.number}:81")
    assert str(said.host) == f"127.0.0.2:{local.number}"


def test_nobody_else_gets_a_port_that_is_held_however_he_asks(stack: ExitStack) -> None:
    tcp, udp = held(stack, 80, "80/udp")
    for one, kind in ((tcp, socket.SOCK_STREAM), (udp, socket.SOCK_DGRAM)):
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            with socket.socket(socket.AF_INET, kind) as other:
                other.setsockopt(socket.SOL_SOCKET, option, 1)
                with pytest.raises(OSError, match="in use"):
                    other.bind(("127.0.0.1", one.number))


def test_what_comes_before_the_rules_is_neither_accepted_nor_kept(stack: ExitStack) -> None:
    tcp, udp = held(stack, "127.0.0.1::80", "127.0.0.1::80/udp")
    with socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex(("127.0.0.1", tcp.number)) == errno.EINPROGRESS
        with socket.socket(type=socket.SOCK_DGRAM) as other:
            other.sendto(b"x", ("127.0.0.1", udp.number))
        udp.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            udp.sock.recv(10)
        tcp.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            tcp.sock.accept()
        assert client.connect_ex(("127.0.0.1", tcp.number)) == errno.EALREADY


def test_a_port_can_be_held_again_at_once(stack: ExitStack) -> None:
    """Connections of an earlier server that linger (TIME_WAIT) are in nobody's way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            peer, _ = listener.accept()
            peer.close()  # who closes first lingers
            assert client.recv(1) == b""
    with socket.socket() as plain, pytest.raises(OSError, match="in use"):
        plain.bind(("127.0.0.1", port))
    assert [one.number for one in held(stack, f"{port}:80")] == [port]
    for _ in range(3):
        with ExitStack() as again, pytest.raises(PortInUseError):
            held(again, f"{port}:80")
        stack.close()
        held(stack, f"{port}:80")


def test_a_port_of_a_range_is_the_first_that_is_free_and_what_is_said_goes_first(stack: ExitStack) -> None:
    first = held(stack, f"{FREE}:80")[0].number
    second, said = held(stack, f"{first}-{first + 20}:80", f"{first + 1}:81")
    assert (said.number, second.number) == (first + 1, first + 2)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["", "127.0.0.1"])
def test_a_clash_names_the_process_that_has_the_port(stack: ExitStack, protocol: str, address: str) -> None:
    port = server(stack, address, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    with pytest.raises(PortInUseError, match=r"taken by this process \(.*give another one") as raised:
        reserve(to_ports([f"{port}:80/{protocol}"]), "x")
    assert (raised.value.pid, raised.value.port) == (os.getpid(), f"0.0.0.0:{port}/{protocol}")
    assert raised.value.program
    assert raised.value.program in raised.value.owner


def test_a_clash_names_another_process(stack: ExitStack) -> None:
    code = "import socket, time; s = socket.create_server(('', 0)); print(s.getsockname()[1], flush=True); time.sleep(100)"
    other = stack.enter_context(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))
    stack.callback(other.kill)
    assert other.stdout is not None
    port = int(other.stdout.readline())
    with pytest.raises(PortInUseError, match=f"taken by pid {other.pid} ") as raised:
        reserve(to_ports([f"{port}:80"]), "x")
    assert raised.value.pid == other.pid


def test_a_clash_with_a_server_of_both_families_is_one(stack: ExitStack) -> None:
    try:
        port = server(stack, "::", family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with pytest.raises(PortInUseError) as raised:
        reserve(to_ports([f"127.0.0.1:{port}:80"]), "x")
    assert raised.value.pid == os.getpid()


def test_both_versions_of_ip_have_one_number_and_what_names_one_has_that_alone(stack: ExitStack) -> None:
    found, let_go = reserve(to_ports([80, f"{FREE}:81", "0.0.0.0::82", "[::1]::83"]), "x", ipv6=True)
    stack.callback(let_go)
    assert [(one.key, one.host.address) for one in found] == [
        ("80/tcp", "0.0.0.0"), ("80/tcp", "::"), ("81/tcp", "0.0.0.0"), ("81/tcp", "::"), ("82/tcp", "0.0.0.0"), ("83/tcp", "::1"),
    ]  # fmt: skip
    assert found[0].number == found[1].number
    assert found[2].number == found[3].number
    with socket.socket(socket.AF_INET6) as sock:  # not of both by accident
        assert sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1) is None
        sock.bind(("::", found[4].number))


@pytest.mark.parametrize("address", ["::", "::1"])
def test_a_clash_of_ipv6_alone_is_found_and_named(stack: ExitStack, address: str) -> None:
    sock = stack.enter_context(socket.socket(socket.AF_INET6))
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, 0))
    sock.listen()
    port = sock.getsockname()[1]
    before = sorted(os.listdir("/proc/self/fd"))
    for said, where in ((f"{port}:80", "::"), (f"[::1]:{port}:80", "::1")):
        with pytest.raises(PortInUseError, match="taken by this process") as raised:
            reserve(to_ports([said]), "x", ipv6=True)
        assert (raised.value.pid, raised.value.port) == (os.getpid(), f"[{where}]:{port}/tcp")
    assert sorted(os.listdir("/proc/self/fd")) == before
    held(stack, f"{port}:80")  # of IPv4 alone
    with pytest.raises(PortInUseError, match=f"ports {port} to {port + 1}"):
        reserve(to_ports([f"[::1]:{port}-{port + 1}:80", f"[::1]:{port + 1}:81"]), "x")


def test_a_clash_with_a_container_of_ours_names_that(stack: ExitStack) -> None:
    (one,) = held(stack, 80, owner="container 'db'")
    for said in (f"{one.number}:80", f"127.0.0.1:{one.number}:80", f"{one.number}-{one.number}:80"):
        with pytest.raises(PortInUseError, match="container 'db'") as raised:
            reserve(to_ports([said]), "x")
        assert raised.value.owner == "container 'db'"


def test_a_range_that_is_all_taken_says_so(stack: ExitStack) -> None:
    first = held(stack, f"{FREE}:80")[0].number
    held(stack, f"{first + 1}:80")
    with pytest.raises(PortInUseError, match=f"ports {first} to {first + 1} are all taken"):
        reserve(to_ports([f"{first}-{first + 1}:80"]), "x")


def test_what_fails_leaves_nothing_held(stack: ExitStack) -> None:
    taken = server(stack)
    before = sorted(os.listdir("/proc/self/fd"))
    for ports, error in (
        ([80, f"{taken}:80"], PortInUseError),
        ([80, "192.0.2.1:80:80"], UsageError),
        ([80, "[fe80::1]:8080:80"], UsageError),
        ([80, "[::ffff:127.0.0.1]:8080:80"], UsageError),
        ([80, "[2001:db8::9]:8080:80"], UsageError),
    ):
        with pytest.raises(error):
            reserve(to_ports(ports), "x")
        assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_shortage_of_descriptors_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr("socket.socket.bind", none_left)
    with pytest.raises(SetupError, match="hold port"):
        reserve(to_ports([80]), "x")


def test_a_forked_child_does_not_hold_ports(stack: ExitStack) -> None:
    (one,) = held(stack, 80)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        theirs.send(b"x")
        theirs.recv(1)  # until the parent has tried
        os._exit(0)
    theirs.close()
    try:
        assert ours.recv(1) == b"x"
        stack.close()
        with ExitStack() as again:
            assert held(again, f"{one.number}:80")[0].number == one.number
    finally:
        ours.close()
        os.waitpid(child, 0)


# ---- Values ----


def test_a_place_on_the_host_reads_as_one() -> None:
    assert str(HostPort("127.0.0.1", 80)) == "127.0.0.1:80"
    assert str(HostPort("::1", 80)) == "[::1]:80"


def test_what_an_image_exposes_is_added_to_what_is_said() -> None:
    said = to_ports(["8080:80"])
    assert with_exposed(said, ["80/tcp", "53/udp", "443", "53/udp"]) == (*said, Port(53, "udp"), Port(443))
    with pytest.raises(UsageError, match="sctp"):
        with_exposed((), ["80/sctp"])


TABLE = """\
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0
   1: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7 1 0
   2: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 9 1 0
   broken
   3: zz:zz 0 0 0 0 0 0 0 0 0
""".splitlines()


@pytest.mark.skipif(sys.byteorder != "little", reason="written on a little-endian machine")
def test_the_tables_of_sockets_are_read() -> None:
    assert [*parse_table(TABLE)] == [
        Bound(IPv4Address("127.0.0.1"), 8080, 4242, 0x0A),
        Bound(IPv4Address(0), 53, 7, 0x07),
        Bound(IPv6Address("::1"), 8080, 9, 0x0A),
    ]


@given(st.lists(st.text(max_size=200) | st.from_regex(r"\d: [0-9A-F]{8}:[-+]?[0-9A-F]{1,6} 0 0A 0 0 0 0 0 -?\d+"), max_size=5))
def test_no_table_breaks_its_reader(lines: list[str]) -> None:
    assert all(0 <= one.port <= 65535 for one in parse_table(lines))


def test_who_cannot_be_seen_is_said_to_be_that(stack: ExitStack) -> None:
    port = server(stack)
    bound = bound_to("tcp", port, None)
    assert [one.port for one in bound] == [port]
    assert owner_of([0, 1 << 62]) is None
    assert describe(bound, None) == "a process that cannot be seen from here"
    assert "ended" in describe([Bound(IPv4Address(0), port, 0, 0x06)], None)


# ---- Flows ----


def test_a_direction_fits_those_that_it_says_nothing_against() -> None:
    found = Direction(6, IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), 1000, 80)
    for same in (Direction(6), Direction(6, destination_port=80), Direction(6, source=IPv4Address("10.0.0.1")), found):
        assert same.fits(found)
    for other in (Direction(17), Direction(6, destination_port=81), Direction(6, source_port=80), Direction(6, destination=IPv4Address("10.0.0.1"))):
        assert not other.fits(found)


@given(st.binary(max_size=200))
def test_no_message_of_a_flow_breaks_its_reader(message: bytes) -> None:
    flow = parse(message)
    assert flow is None or flow.name
