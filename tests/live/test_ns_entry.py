"""Namespaces on the real kernel: made, entered, shared, kept by name; always in children of the launcher."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import threading

import pytest
from attrs import evolve

import sandbox
from sandbox import ns
from sandbox._sys.constants import CLONE_NEWUTS
from sandbox.errors import CommandError, SetupError, UnsupportedError, UsageError
from sandbox.ns.entry import carry_out
from tests.support import needs

pytestmark = [needs("root"), pytest.mark.usefixtures("no_leftovers")]
ALONE = ["net", "uts", "ipc", "mount", "cgroup", "time"]


def file_of(kind: str) -> str:
    return "mnt" if kind == "mount" else kind


def own(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{file_of(kind)}")


def inside(entered: ns.Entered, kind: str) -> str:
    return entered.run(["readlink", f"/proc/self/ns/{file_of(kind)}"], check=True, text=True).stdout.strip()


@pytest.mark.parametrize("kind", ALONE)
def test_a_namespace_made_alone_is_new_and_can_be_entered(kind):
    with ns.Namespace.create(kind) as made, ns.Namespace.own(kind) as ours:
        assert made != ours
        assert made.kind == kind
        assert inside(made.enter(), kind) == f"{file_of(kind)}:[{made.id}]"
    assert own(kind).endswith(f"[{ours.id}]")


def test_the_loopback_of_a_made_network_is_up():
    with ns.Namespace.create("net") as made:
        result = made.enter().run(["cat", "/proc/net/if_inet6", "/proc/net/fib_trie"], check=True, text=True)
        assert "127.0.0.1" in result.stdout


@contextlib.contextmanager
def namespaces_of(pid: int, *kinds: str):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(ns.Namespace.of(pid, kind)) for kind in kinds]


def test_a_containers_network_is_entered():
    with sandbox.Container() as c, ns.Namespace.of(c.pid, "net") as network:
        assert inside(network.enter(), "net") == c.exec(["readlink", "/proc/self/ns/net"], text=True).stdout.strip()
        assert network.id == ns.list_namespaces(c.pid)["net"]


def test_a_containers_user_namespace_owns_its_others():
    with sandbox.Container() as c, namespaces_of(c.pid, "uts", "user") as (names, user):
        owner = names.user()
        assert owner is not None
        with owner, ns.Namespace.own("user") as ours:
            assert owner == user != ours


def test_a_containers_clocks_are_entered_together_with_others():
    with sandbox.Container(hostname="inner", time_offsets=(5e6, 0)) as c, namespaces_of(c.pid, "time", "uts", "net") as opened:
        words = "uname -n; cat /proc/self/timens_offsets; readlink /proc/self/ns/net; exec sh -c 'readlink /proc/self/ns/time'"
        said = ns.enter(*opened).run(["sh", "-c", words], check=True, text=True).stdout.split()
        assert (said[0], said[2], said[-2], said[-1]) == ("inner", "5000000", f"net:[{opened[2].id}]", f"time:[{opened[0].id}]")
    with ns.Namespace.create("time") as made:
        plan = ns.enter(made).plan()
        wrong = evolve(plan, joins=(*plan.joins, ("ns.time", CLONE_NEWUTS)))
        with pytest.raises(SetupError, match="join the uts namespace"):
            carry_out(wrong)


def test_several_namespaces_are_entered_at_once():
    kinds = ["net", "uts", "ipc", "cgroup"]
    with sandbox.Container(hostname="inner") as c, namespaces_of(c.pid, *kinds) as opened:
        entered = ns.enter(*opened)
        assert entered.run(["uname", "-n"], text=True).stdout.strip() == "inner"
        for kind in kinds:
            assert inside(entered, kind) == f"{kind}:[{ns.list_namespaces(c.pid)[kind]}]"
        assert inside(entered, "user") == own("user")


def test_the_caller_stays_where_it_is():
    before = ns.list_namespaces()
    with ns.Namespace.create("net") as made:
        made.enter().run(["true"], check=True)
    assert ns.list_namespaces() == before


def test_nothing_that_was_started_inside_outlives_the_run():
    with ns.Namespace.create("net") as made:
        made.enter().run(["sh", "-c", "setsid sleep 1000 & setsid sleep 1000 &"], check=True)
    # What is left would show in the snapshot that no_leftovers takes.


def test_a_failure_is_a_result_and_with_check_an_error():
    with ns.Namespace.create("net") as made:
        assert made.enter().run(["false"]).exit_code == 1
        with pytest.raises(CommandError):
            made.enter().run(["false"], check=True)
        with pytest.raises(UsageError):
            made.enter().run(["no-such-program"])


def test_threads_make_and_enter_at_once():
    ids, wrong = [], []

    def work():
        try:
            with ns.Namespace.create("net") as made:
                ids.append(made.id)
                assert inside(made.enter(), "net") == f"net:[{made.id}]"
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(ids) == 8


def test_a_handle_of_something_else_is_refused_by_the_kernel():
    with ns.Namespace.create("net") as made:
        entered = ns.enter(made)
        plan = entered.plan()
        assert plan.joins[0][0] == "ns.net"
        wrong = evolve(plan, joins=(("ns.net", CLONE_NEWUTS),))
        with pytest.raises(SetupError, match="join"):
            carry_out(wrong)


def test_importing_the_package_alone_is_enough():
    code = "from sandbox.ns import Namespace\nwith Namespace.create('net') as made: made.enter().run(['true'], check=True)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- names: in a mount namespace of the test's own, so that the machine's /run stays as it is


def in_own_run(code: str) -> str:
    """Run Python *code* where /run is a fresh tmpfs that nobody else sees."""
    script = f'mount -t tmpfs run /run && exec {sys.executable} -c "$0"'
    prologue = """
        import os, subprocess
        from sandbox import ns
        from sandbox.errors import UsageError
        def ip(*args): return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout
    """
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, textwrap.dedent(prologue) + textwrap.dedent(code)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs("program:ip")
def test_iproute2_sees_what_is_kept_and_forgets_it():
    in_own_run("""
        with ns.Namespace.create("net") as made:
            ns.keep(made, "box")
            number = made.id
        assert ip("netns", "list").split() == ["box"]
        assert ip("netns", "exec", "box", "readlink", "/proc/self/ns/net").strip() == f"net:[{number}]"
        with ns.Namespace.named("net", "box") as found:
            assert found.id == number
            assert found.enter().run(["readlink", "/proc/self/ns/net"], text=True).stdout.strip() == f"net:[{number}]"
        ip("netns", "del", "box")
        assert os.listdir("/run/netns") == []
    """)


@needs("program:ip")
def test_what_iproute2_keeps_is_found_and_forgotten():
    in_own_run("""
        ip("netns", "add", "theirs")
        with ns.Namespace.named("net", "theirs") as found:
            assert found.kind == "net"
        ns.forget("theirs")
        assert ip("netns", "list") == ""
        try:
            ns.forget("theirs")
        except UsageError:
            pass
        else:
            raise AssertionError
    """)


def test_the_directory_becomes_one_shared_mount():
    in_own_run("""
        from sandbox._sys.procfs import read_mountinfo
        with ns.Namespace.create("net") as made:
            for name in ("a", "b"):
                ns.keep(made, name)
        mounts = [m for m in read_mountinfo() if m.mount_point.startswith("/run/netns") and m.fstype in ("tmpfs", "nsfs")]
        assert [m.mount_point for m in mounts] == ["/run/netns", "/run/netns/a", "/run/netns/b"], mounts
        assert mounts[0].fields and mounts[0].fields[0].startswith("shared:"), mounts
        ns.forget("a"); ns.forget("b")
    """)


def test_a_taken_name_is_refused_and_a_leftover_can_be_forgotten():
    in_own_run("""
        os.makedirs("/run/netns")
        open("/run/netns/old", "w").close()
        with ns.Namespace.create("net") as made:
            for use in (lambda: ns.keep(made, "old"), lambda: ns.Namespace.named("net", "old")):
                try:
                    use()
                except UsageError as error:
                    assert "old" in str(error)
                else:
                    raise AssertionError(use)
        ns.forget("old")
        assert os.listdir("/run/netns") == []
    """)


def test_a_name_whose_mount_fails_leaves_no_file():
    in_own_run("""
        from sandbox.ns import net
        from sandbox.errors import SetupError
        plan = net.keep_plan
        net.keep_plan = lambda name, fd, **kw: plan("missing", fd, **kw)
        with ns.Namespace.create("net") as made:
            try:
                ns.keep(made, "a")
            except SetupError as error:
                assert "BindMount" in str(error), error
            else:
                raise AssertionError
        assert os.listdir("/run/netns") == []
    """)


def test_without_privileges_making_one_alone_is_refused():
    from sandbox._sys import features

    with features.pretend(privileged=False), pytest.raises(UnsupportedError, match="root"):
        ns.Namespace.create("net")
