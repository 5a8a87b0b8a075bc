"""Handles of namespaces that exist; no launcher takes part."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from sandbox import _plan as plan
from sandbox import ns
from sandbox._sys import constants as sys
from sandbox.errors import ClosedError, SetupError, UnsupportedError, UsageError
from sandbox.ns import entry, net
from sandbox.ns.namespace import FLAGS
from tests.support import needs


def shown(name: str, pid: int | str = "self") -> int:
    return int(os.readlink(f"/proc/{pid}/ns/{name}").partition("[")[2][:-1])


@pytest.fixture
def stranger():
    """A process in a user and a net namespace of its own."""
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo ready; read end"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.stdin.close()


@pytest.mark.parametrize("kind", ns.KINDS)
def test_a_handle_has_the_id_that_proc_shows(kind):
    if not os.path.lexists(f"/proc/self/ns/{'mnt' if kind == 'mount' else kind}"):
        pytest.skip("the kernel has none")
    with ns.Namespace.own(kind) as namespace:
        assert namespace.kind == kind
        assert namespace.id == shown("mnt" if kind == "mount" else kind)
        assert f"{kind}:[{namespace.id}]" in repr(namespace)
        assert not os.get_inheritable(namespace.fileno())


def test_the_list_is_that_of_proc():
    listed = ns.list_namespaces()
    assert listed == {name: shown(name) for name in os.listdir("/proc/self/ns")}
    assert "pid_for_children" in listed
    assert listed == ns.list_namespaces(os.getpid())


def test_two_handles_of_one_namespace_are_equal():
    with ns.Namespace.own("net") as one, ns.Namespace.own("net") as two, ns.Namespace.own("uts") as other:
        assert one == two
        assert len({one, two, other}) == 2
        assert one != other
        assert one != one.id


@needs("userns")
def test_a_strangers_namespace_is_another_one(stranger):
    with ns.Namespace.of(stranger.pid, "net") as theirs, ns.Namespace.own("net") as ours:
        assert theirs != ours
        assert theirs.id == shown("net", stranger.pid) == ns.list_namespaces(stranger.pid)["net"]


@needs("userns")
def test_owner_and_parent(stranger):
    with ns.Namespace.of(stranger.pid, "net") as network, ns.Namespace.of(stranger.pid, "user") as theirs, ns.Namespace.own("user") as ours:
        assert network.user() == theirs
        assert theirs.parent() == ours
        assert network.owner_uid() == theirs.owner_uid() == os.geteuid()


def test_what_lies_outside_is_hidden():
    # The parent of our own user namespace: there is none, or we may not see it.
    with ns.Namespace.own("user") as ours:
        assert ours.parent() is None


def test_only_user_and_pid_nest():
    with ns.Namespace.own("net") as network, pytest.raises(UsageError, match="do not nest"):
        network.parent()


def test_the_namespaces_for_children_are_of_the_plain_kind():
    with ns.Namespace.of(os.getpid(), "pid_for_children") as children:
        assert children.kind == "pid"


@needs("userns")
def test_a_handle_outlives_the_process(stranger):
    with ns.Namespace.of(stranger.pid, "net") as namespace:
        stranger.kill()
        stranger.wait()
        assert os.fstat(namespace.fileno()).st_ino == namespace.id
        with pytest.raises(UsageError, match="no process"):
            ns.Namespace.of(stranger.pid, "net")
        with pytest.raises(UsageError, match="no process"):
            ns.list_namespaces(stranger.pid)


def test_a_zombie_has_no_namespaces():
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(UsageError, match="ended"):
            ns.Namespace.of(process.pid, "net")


@pytest.mark.parametrize("pid", [0, -1, 1 << 30])
def test_what_is_no_pid_is_refused(pid):
    with pytest.raises(UsageError, match="no process"):
        ns.Namespace.of(pid, "net")


def test_without_a_descriptor_to_be_had_it_is_not_said_that_nobody_is_there(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    for look in (lambda: ns.Namespace.of(os.getpid(), "net"), lambda: ns.Resident.of(os.getpid())):
        with pytest.raises(SetupError, match=r"EMFILE .*RLIMIT_NOFILE"):
            look()


def test_one_that_ends_while_its_namespace_is_opened_has_ended(monkeypatch):
    process = subprocess.Popen(["sleep", "60"])

    def too_late(path, *_):  # as the kernel says when the process goes between the walk of the path and the link's end
        process.kill()
        process.wait()
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "open", too_late)
    with pytest.raises(UsageError, match=f"process {process.pid} has ended"):
        ns.Namespace.of(process.pid, "net")


@pytest.mark.parametrize("kind", ["", "network", "../net", "net/", "Net"])
def test_what_is_no_kind_is_refused(kind):
    with pytest.raises(UsageError, match="kind"):
        ns.Namespace.of(os.getpid(), kind)


def test_a_file_is_no_namespace_and_is_closed(tmp_path):
    for path in (tmp_path, "/dev/null", "/proc/self/status"):
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(UsageError, match="not a namespace"):
            ns.Namespace.adopt(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_use_after_close_raises_closed():
    namespace = ns.Namespace.own("net")
    namespace.close()
    namespace.close()
    for use in (namespace.fileno, namespace.user, namespace.owner_uid, ns.enter(namespace).plan):
        with pytest.raises(ClosedError):
            use()
    with ns.Namespace.own("net") as again:
        assert namespace == again


def test_a_forgotten_handle_leaves_no_descriptor():
    before = os.listdir("/proc/self/fd")
    ns.Namespace.own("net")
    assert os.listdir("/proc/self/fd") == before


# --- names


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../etc", "a\0", "x" * 256, None])
def test_a_name_never_leaves_its_directory(name):
    for use in (lambda: ns.Namespace.named("net", name), lambda: net.forget_plan(name), lambda: net.keep_plan(name, 0, is_mount=True)):
        with pytest.raises(UsageError, match="name"):
            use()


def test_only_net_has_names():
    with pytest.raises(UsageError, match="'net'"):
        ns.Namespace.named("uts", "a")


def test_an_unknown_name_is_refused():
    with pytest.raises(UsageError, match="no network namespace is kept as 'sandbox-no-such'"):
        ns.Namespace.named("net", "sandbox-no-such")


def test_keeping_makes_the_directory_a_shared_mount_once():
    first, then = net.keep_plan("a", 7, is_mount=False), net.keep_plan("a", 7, is_mount=True)
    assert [type(op) for op in first.host_ops] == [plan.Open, plan.CloneTree, plan.SetAttr, plan.Attach, plan.BindMount]
    assert [type(op) for op in then.host_ops] == [plan.Open, plan.SetAttr, plan.BindMount]
    for made in (first, then):
        assert made.host_ops[-1] == plan.BindMount("kept", "/run/netns/a")
        assert made.fds == {"kept": 7}
        assert made.clone_flags == sys.CLONE_NEWPID
        assert [op.propagation for op in made.host_ops if isinstance(op, plan.SetAttr)] == [sys.MS_SHARED]


def test_forgetting_unmounts_and_removes():
    assert net.forget_plan("a").host_ops == (plan.Unmount("/run/netns/a", optional=True), plan.Unlink("/run/netns/a"))


def test_names_need_root(monkeypatch):
    from sandbox._sys import features

    with features.pretend(privileged=False), ns.Namespace.own("net") as namespace:
        with pytest.raises(UnsupportedError, match="root"):
            ns.keep(namespace, "a")
        with pytest.raises(UnsupportedError, match="root"):
            ns.forget("a")


# --- entering and making, planned


def test_entering_joins_all_and_takes_a_pid_namespace():
    with ns.Namespace.own("net") as network, ns.Namespace.own("uts") as names:
        made = ns.enter(network, names).plan()
        assert dict(made.joins) == {"ns.net": FLAGS["net"], "ns.uts": FLAGS["uts"]}
        assert made.fds == {"ns.net": network.fileno(), "ns.uts": names.fileno()}
        # Never without: what ends leftovers is kill(-1), which must not reach the host.
        assert made.clone_flags == sys.CLONE_NEWPID
        assert made.init_ops == ()
        assert network.enter() == ns.enter(network)


def test_entering_nothing_or_two_of_a_kind_is_refused():
    with pytest.raises(UsageError, match="at least one"):
        ns.enter()
    with ns.Namespace.own("net") as one, ns.Namespace.own("net") as two, pytest.raises(UsageError, match="kind net"):
        ns.enter(one, two)


@pytest.mark.parametrize("kind", ["net", "uts", "ipc", "mount", "cgroup", "time"])
def test_making_one_is_one_unshare(kind):
    made = entry.create_plan(kind)
    assert made.init_ops[0] == plan.Unshare(FLAGS[kind])
    assert made.clone_flags == sys.CLONE_NEWPID
    assert (plan.LoopbackUp() in made.init_ops) == (kind == "net")


@pytest.mark.parametrize("kind", ["user", "pid", "network"])
def test_what_cannot_be_made_alone_is_refused(kind):
    with pytest.raises(UsageError, match="create"):
        ns.Namespace.create(kind)


def test_a_bad_argv_is_refused_before_anything_starts():
    with ns.Namespace.own("net") as network, pytest.raises(UsageError, match="argv"):
        network.enter().run([])


def test_without_rights_the_error_says_which(monkeypatch):
    def refuse(path, *args, **kw):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SetupError, match="ptrace"):
        ns.Namespace.of(os.getpid(), "net")
