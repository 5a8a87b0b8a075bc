"""Namespaces of an ordinary user's own containers: listed and opened though init is not dumpable; and not shared with another one."""

from __future__ import annotations

import os

import pytest

from sandbox import ClosedError, Container, UnsupportedError, UsageError, ns
from sandbox.errors import SetupError
from tests.support import needs

pytestmark = [needs("userns"), pytest.mark.usefixtures("no_leftovers"), pytest.mark.unprivileged]
FILES = {"mount": "mnt"}


@pytest.mark.parametrize("security", ["default", "strict"])
def test_a_container_tells_its_namespaces_as_its_programs_see_them(security: str) -> None:
    with Container(security=security) as c:
        found = c.namespaces()
        assert found.keys() == ns.list_namespaces().keys()
        for kind in ("ipc", "mnt", "net", "pid", "user", "uts"):
            assert c.exec(["readlink", f"/proc/self/ns/{kind}"], text=True, check=True).stdout == f"{kind}:[{found[kind]}]\n"
            assert found[kind] != ns.list_namespaces()[kind]


def test_each_of_them_is_opened() -> None:
    with Container(hostname="alpha") as c:
        found = c.namespaces()
        for kind in ns.KINDS:
            with c.namespace(kind) as opened:
                assert (opened.kind, opened.id) == (kind, found[FILES.get(kind, kind)])
        with c.namespace("net") as net, c.namespace("user") as user, net.user() or user as owner:
            assert owner == user
            assert user.owner_uid() == os.geteuid()


def test_what_is_none_is_refused() -> None:
    container = Container()
    with container as c, pytest.raises(UsageError, match="none of"):
        c.namespace("network")
    for use in (container.namespaces, lambda: container.namespace("net")):
        with pytest.raises(ClosedError):
            use()


@pytest.mark.skipif(os.geteuid() == 0, reason="root sees all")
def test_by_its_pid_the_error_says_how() -> None:
    with Container() as c:
        for look in (lambda: ns.list_namespaces(c.pid), lambda: ns.Namespace.of(c.pid, "net")):
            with pytest.raises(SetupError, match=r"EACCES.*Container\.namespaces\(\)"):
                look()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_another_container_s_are_not_shared_and_the_error_says_why() -> None:
    with Container() as one, one.namespace("uts") as names:
        for share in ({"ipc": one}, {"uts": one}, {"uts": names}, {"time": one}):
            for strict in (True, False):
                with pytest.raises(UnsupportedError, match=r"belongs to that one's user namespace.*run as root"), Container(share=share, strict=strict):
                    pass
        with pytest.raises(UnsupportedError, match=r"Network\(\)"), Container(net=one):
            pass
        assert one.exec(["true"]).ok
