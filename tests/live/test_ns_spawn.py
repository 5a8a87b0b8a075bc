"""Namespaces on their own: made, entered, kept by name, listed."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

import pytest

import sandbox
from sandbox import ns
from tests.support import needs

pytestmark = [needs("root"), pytest.mark.usefixtures("no_leftovers")]


@pytest.mark.parametrize("kind", ["net", "uts", "ipc", "mount", "cgroup"])
def test_a_namespace_is_made_and_entered(kind: str) -> None:
    file = "mnt" if kind == "mount" else kind
    with ns.Namespace.create(kind) as made:
        result = ns.enter(made).run(["/bin/readlink", f"/proc/self/ns/{file}"])
        assert result.ok, result
        inside = int(result.stdout.split(b"[")[1].rstrip(b"]\n"))
        assert inside == made.id
        assert f"[{inside}]" not in os.readlink(f"/proc/self/ns/{file}")


def test_the_namespaces_of_a_container_can_be_entered() -> None:
    with sandbox.Container(hostname="inner") as c, ns.Namespace.of(c.pid, "uts") as uts, ns.Namespace.of(c.pid, "net") as net:
        result = ns.enter(uts, net).run(["/bin/sh", "-c", "hostname; readlink /proc/self/ns/net"], timeout=20)
        assert result.stdout.splitlines()[0] == b"inner"
        assert result.stdout.splitlines()[1].decode() == os.readlink(f"/proc/{c.pid}/ns/net")


def test_listing_is_what_proc_shows() -> None:
    listed = ns.list_namespaces(os.getpid())
    for kind, number in listed.items():
        assert f"[{number}]" in os.readlink(f"/proc/self/ns/{'mnt' if kind == 'mount' else kind}")


@needs("program:ip")
def test_a_network_namespace_kept_by_name_is_seen_by_iproute2() -> None:
    had_directory, had_mount = os.path.isdir("/run/netns"), " /run/netns " in Path("/proc/self/mountinfo").read_text()
    name = f"sandbox-test-{uuid.uuid4().hex[:8]}"
    try:
        with ns.Namespace.create("net") as made:
            ns.keep(made, name)
            assert name in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
            with ns.Namespace.named("net", name) as found:
                assert found == made
        assert subprocess.run(["ip", "netns", "exec", name, "true"], check=False).returncode == 0
        ns.forget(name)
        assert name not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    finally:
        if os.path.exists(f"/run/netns/{name}"):
            ns.forget(name)
        if not had_mount:
            subprocess.run(["umount", "/run/netns"], check=False, stderr=subprocess.DEVNULL)
        if not had_directory and os.path.isdir("/run/netns"):
            os.rmdir("/run/netns")


def test_a_missing_program_is_said() -> None:
    with ns.Namespace.create("uts") as made, pytest.raises(sandbox.ProgramNotFoundError):
        ns.enter(made).run(["no-such-program"])
