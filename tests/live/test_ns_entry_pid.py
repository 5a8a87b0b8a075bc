"""Pid and user namespaces that others made are entered, as root and as an ordinary user; those of our own containers say why not."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Generator

import pytest

import sandbox
from sandbox import _plan as plan
from sandbox import ns
from sandbox._launch import codec, wire
from sandbox._refusals import setup_error
from sandbox._sys.constants import CLONE_NEWNET, CLONE_NEWPID
from sandbox.errors import SetupError
from tests.support import needs

pytestmark = [needs("userns", "program:unshare"), pytest.mark.usefixtures("no_leftovers"), pytest.mark.unprivileged]


@contextlib.contextmanager
def another(*options: str) -> Generator[int]:
    """A container of unshare(1), with a user and a pid namespace and a /proc of its own; gives the pid of its first process."""
    command = ["unshare", "--user", "--map-root-user", "--pid", "--mount-proc", "--fork", "--kill-child", *options, "sh", "-c", "echo up; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
                yield int(file.read())
        finally:
            process.kill()


@contextlib.contextmanager
def inside(pid: int, *kinds: str) -> Generator[ns.Entered]:
    with contextlib.ExitStack() as stack:
        yield ns.enter(*[stack.enter_context(ns.Namespace.of(pid, kind)) for kind in kinds])


@pytest.mark.parametrize("kinds", [("pid", "user"), ("user", "mount", "pid"), ("pid", "time", "mount", "user")])
def test_a_pid_namespace_is_entered_and_what_runs_there_has_one_of_its_own_in_it(kinds: tuple[str, ...]) -> None:
    with another("--time", "--boottime", "1000000") as pid, inside(pid, *kinds) as entered:
        said = entered.run(["sh", "-c", "echo $$; readlink /proc/self/ns/pid; cat /proc/uptime; ls -d /proc/[0-9]* | wc -l"], text=True, check=True)
        own, number, uptime, _, seen = said.stdout.split()
        assert own == "2"  # the first is our init
        assert number not in {f"pid:[{ns.list_namespaces(pid)['pid']}]", os.readlink("/proc/self/ns/pid")}
        assert (float(uptime) > 1e6) is ("time" in kinds)
        assert (int(seen) < 10) is ("mount" in kinds)  # its /proc shows the few that live in it
        made = entered.run(["stat", "-Lc", "%i", "/proc/self/ns/user"], text=True, check=True).stdout
        assert int(made) == ns.list_namespaces(pid)["user"]


def test_what_was_started_in_a_pid_namespace_of_others_ends_with_the_run() -> None:
    with another() as pid, inside(pid, "pid", "user", "mount") as entered:
        entered.run(["sh", "-c", "setsid sleep 1000 & setsid sh -c 'sleep 1000 & wait' &"], check=True)
        alive = entered.run(["sh", "-c", "cat /proc/[0-9]*/comm"], text=True, check=True).stdout.split()
        assert alive.count("sleep") == 1  # the container's own


def test_a_deadline_and_the_end_of_the_others_container_are_told() -> None:
    with another() as pid, inside(pid, "pid", "user") as entered:
        assert entered.run(["sleep", "1000"], timeout=0.05).status is sandbox.Status.TIMEOUT
        first = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([first], [], [], 10)
        os.close(first)
        with pytest.raises(SetupError, match="the first process of the pid namespace has ended"):
            entered.run(["true"])


@needs("root")
def test_a_pid_namespace_of_the_hosts_user_namespace_is_entered_alone() -> None:
    command = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "echo up; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file, ns.Namespace.of(int(file.read()), "pid") as pids:
                around = pids.enter().run(["readlink", "/proc/self/ns/pid"], text=True, check=True).stdout
                assert around not in {f"pid:[{pids.id}]\n", os.readlink("/proc/self/ns/pid")}
        finally:
            process.kill()


@needs("root")
@pytest.mark.parametrize(("kinds", "number", "way"), [(("pid",), "EINVAL", r"pid\.user\(\)"), (("pid", "user"), "ENOSPC", "allow none"), (("user",), "ENOSPC", "allow none")])
def test_into_a_container_of_ours_leads_exec_as_the_error_says(kinds: tuple[str, ...], number: str, way: str) -> None:
    with sandbox.Container() as c, inside(c.pid, *kinds) as entered, pytest.raises(SetupError, match=f"{number}.*{way}.*Container.exec"):
        entered.run(["true"])


def test_only_what_hangs_on_the_namespaces_that_were_entered_is_put_down_to_them() -> None:
    joined = plan.Plan(clone_flags=CLONE_NEWPID, joins=(("ns.net", CLONE_NEWNET),))
    said = str(setup_error(codec.Failed(wire.Phase.CLONE, 0, 0, 22), joined, 0))
    assert "were entered" not in said
