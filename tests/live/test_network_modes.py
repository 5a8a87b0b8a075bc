"""What a container's network is: none, the host's, another container's, a namespace that is kept, and how wrong ones are refused."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import ClosedError, Container, UsageError, ns
from sandbox.ns.net import forget, keep
from tests.support import needs

pytestmark = [needs("root", "userns", "program:ip"), pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
def name(no_leftovers: None) -> Generator[str]:
    """A network namespace with an address, kept where ``ip netns`` keeps them."""
    had_directory, had_mount = os.path.isdir("/run/netns"), " /run/netns " in Path("/proc/self/mountinfo").read_text()
    name = f"sandbox-test-{uuid.uuid4().hex[:8]}"
    with ns.Namespace.create("net") as namespace:
        keep(namespace, name)
    subprocess.run(["ip", "-n", name, "address", "add", "192.0.2.7/32", "dev", "lo"], check=True)
    yield name
    forget(name)
    if not had_mount:
        subprocess.run(["umount", "/run/netns"], check=True)
    if not had_directory:
        os.rmdir("/run/netns")


def namespace_of(container: Container) -> str:
    return os.readlink(f"/proc/{container.pid}/ns/net")


def addresses(container: Container) -> str:
    return container.exec(["ip", "-brief", "address"], text=True, check=True).stdout


def test_none_is_a_namespace_of_its_own_with_loopback_up() -> None:
    with Container() as one, Container(net=None) as two:
        assert len({namespace_of(one), namespace_of(two), os.readlink("/proc/self/ns/net")}) == 3
        for container in (one, two):
            ((link, _, *found),) = [line.split() for line in addresses(container).splitlines()]
            assert (link, found[:1]) == ("lo", ["127.0.0.1/8"])


def test_host_is_the_hosts() -> None:
    with Container(net="host") as c:
        assert namespace_of(c) == os.readlink("/proc/self/ns/net")


def test_another_containers_is_that_one_also_through_several() -> None:
    with Container() as one, Container(net=one) as two, Container(net=two) as three:
        assert namespace_of(one) == namespace_of(two) == namespace_of(three) != os.readlink("/proc/self/ns/net")


def test_a_kept_namespace_is_joined_and_stays(name: str) -> None:
    with ns.Namespace.named("net", name) as kept:
        with Container(net=kept) as one, Container(net=kept) as two:
            assert namespace_of(one) == namespace_of(two) == f"net:[{kept.id}]"
            assert "192.0.2.7/32" in addresses(one)
            assert (one.network, one.address, dict(one.endpoints)) == (None, None, {})
        assert not kept.closed
    assert "192.0.2.7" in subprocess.run(["ip", "-n", name, "address"], capture_output=True, text=True, check=True).stdout


def test_programs_in_a_kept_namespace_have_no_rights_over_it(name: str) -> None:
    with ns.Namespace.named("net", name) as kept, Container(net=kept, user=0) as c:
        assert b"not permitted" in c.exec(["ip", "address", "add", "192.0.2.8/32", "dev", "lo"]).stderr


def test_a_namespace_that_is_not_kept_lives_as_long_as_its_container() -> None:
    with ns.Namespace.create("net") as made:
        container = Container(net=made).create()
    with container:
        assert namespace_of(container) == f"net:[{made.id}]"
        assert container.exec(["true"]).ok


def test_asyncio_joins_a_kept_namespace_too(name: str) -> None:
    import asyncio

    async def main(kept: ns.Namespace) -> None:
        async with sandbox.aio.Container(net=kept) as c:
            assert b"192.0.2.7" in (await c.exec(["ip", "address"])).stdout

    with ns.Namespace.named("net", name) as kept:
        asyncio.run(main(kept))


def test_what_is_no_network_is_refused_before_anything_is_touched() -> None:
    with ns.Namespace.own("uts") as wrong, ns.Namespace.own("net") as ours, ns.Namespace.create("net") as other:
        cases: list[tuple[Any, dict[str, Any], str]] = [
            (wrong, {}, "kind 'uts'"),
            (ours, {}, "net='host'"),
            (other, {"ports": [80]}, "whoever made"),
            (other, {"links": {"db": Container()}}, "whoever made"),
            (7, {}, "net: 7"),
            ([], {}, "empty list"),
        ]
        for net, options, said in cases:
            with pytest.raises(UsageError, match=said):
                Container(net=net, **options)
        with pytest.raises(UsageError, match="net=None"):
            sandbox.Pool(net=other)


def test_a_namespace_that_was_closed_and_a_container_that_does_not_run_are_refused() -> None:
    with ns.Namespace.create("net") as made:
        pass
    with pytest.raises(ClosedError), Container(net=made):
        pass
    with pytest.raises(ClosedError), Container(net=Container()):
        pass
