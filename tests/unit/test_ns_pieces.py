"""The pieces of a plan that namespaces hand up: pure, so most of it needs no kernel."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import _plan as plan
from sandbox import ns
from sandbox._sys import constants as sys
from sandbox.errors import ClosedError, UnsupportedError, UsageError
from sandbox.ns import time, uts
from sandbox.ns.namespace import FLAGS

KINDS_IN_INIT = sys.CLONE_NEWNS | sys.CLONE_NEWNET | sys.CLONE_NEWUTS | sys.CLONE_NEWIPC | sys.CLONE_NEWCGROUP


@pytest.fixture
def own_net():
    with ns.Namespace.own("net") as namespace:
        yield namespace


def test_everything_is_private_by_default():
    pieces = ns.pieces(ns.Namespaces(), privileged=True)
    assert pieces.clone_flags == sys.CLONE_NEWUSER | sys.CLONE_NEWPID
    assert pieces.init_ops[0] == plan.Unshare(KINDS_IN_INIT)
    assert {plan.SetHostname("sandbox"), plan.LoopbackUp(), plan.MakePrivate()} == set(pieces.init_ops[1:])
    assert pieces.joins == ()


def test_equal_specs_share_their_pieces():
    assert ns.pieces(ns.Namespaces(), privileged=True) is ns.pieces(ns.Namespaces(), privileged=True)


@pytest.mark.parametrize(
    ("kind", "absent"),
    [("net", plan.LoopbackUp()), ("uts", plan.SetHostname("sandbox")), ("ipc", None), ("cgroup", None)],
)
def test_what_is_shared_with_the_host_is_neither_unshared_nor_changed(kind, absent):
    pieces = ns.pieces(ns.Namespaces(**{kind: ns.Host()}), privileged=True)
    assert pieces.unshare_flags == KINDS_IN_INIT & ~FLAGS[kind]
    assert absent not in pieces.init_ops


@pytest.mark.parametrize("kind", ["mount", "pid"])
def test_a_container_cannot_live_in_the_hosts(kind):
    with pytest.raises(UnsupportedError, match="host's"):
        ns.pieces(ns.Namespaces(**{kind: ns.Host()}), privileged=True)


def test_a_joined_namespace_is_handed_in_and_left_as_it_is(own_net):
    pieces = ns.pieces(ns.Namespaces(net=ns.Join(own_net)), privileged=True)
    assert pieces.joins == (("ns.net", sys.CLONE_NEWNET),)
    assert pieces.fds == {"ns.net": own_net.fileno()}
    assert not pieces.unshare_flags & sys.CLONE_NEWNET
    assert plan.LoopbackUp() not in pieces.init_ops


def test_a_joined_namespace_of_another_kind_is_refused(own_net):
    with pytest.raises(UsageError, match=r"ipc: .*net"):
        ns.pieces(ns.Namespaces(ipc=ns.Join(own_net)), privileged=True)


def test_a_joined_namespace_must_be_open(own_net):
    own_net.close()
    with pytest.raises(ClosedError):
        ns.pieces(ns.Namespaces(net=ns.Join(own_net)), privileged=True)


def test_plans_with_descriptors_are_not_remembered():
    for _ in range(2):
        with ns.Namespace.own("net") as namespace:
            pieces = ns.pieces(ns.Namespaces(net=ns.Join(namespace)), privileged=True)
            assert pieces.fds["ns.net"] == namespace.fileno()


def test_within_a_joined_pid_namespace_there_is_a_new_one():
    with ns.Namespace.own("pid") as namespace:
        pieces = ns.pieces(ns.Namespaces(pid=ns.Join(namespace)), privileged=True)
    assert pieces.clone_flags & sys.CLONE_NEWPID
    assert pieces.joins == (("ns.pid", sys.CLONE_NEWPID),)


@pytest.mark.parametrize(("privileged", "place"), [(True, -1), (False, 0)])
def test_the_user_namespace_is_joined_last_with_rights_and_first_without(privileged, place):
    joins = {kind: ns.Join.of(os.getpid(), kind) for kind in ("user", "net", "mount", "uts")}
    pieces = ns.pieces(ns.Namespaces(**joins), privileged=privileged)
    assert pieces.joins[place] == ("ns.user", sys.CLONE_NEWUSER)
    assert [slot for slot, _ in pieces.joins if slot != "ns.user"] == ["ns.uts", "ns.net", "ns.mount"]
    assert not pieces.clone_flags & sys.CLONE_NEWUSER


def test_without_privileges_the_owner_must_be_shared_too(own_net):
    with pytest.raises(UnsupportedError, match="user namespace"):
        ns.pieces(ns.Namespaces(net=ns.Join(own_net)), privileged=False)
    with pytest.raises(UnsupportedError, match="user namespace"):
        ns.pieces(ns.Namespaces(user=ns.Host()), privileged=False)


def test_a_plan_of_its_own_has_all_of_it():
    maps = ns.user.single_maps(uid=0, gid=0, euid=1000, egid=1000)
    made = ns.pieces(ns.Namespaces(user=ns.User(maps), uts=ns.Uts("box")), privileged=False).to_plan()
    assert (made.uid_map, made.gid_map, made.deny_setgroups) == ((plan.IdMap(0, 1000, 1),), (plan.IdMap(0, 1000, 1),), True)
    assert plan.SetHostname("box") in made.init_ops
    assert "uid_map=0:1000:1" in made.explain()


# --- names


@pytest.mark.parametrize("name", ["a", "box", "a.b.c", "judge-1", "my_box", "X" * 63, "1.2.3.4", "a" * 31 + "." + "b" * 32])
def test_host_names(name):
    assert uts.to_hostname(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", ".a", "a.", "a..b", "a b", "a\nb", "a\tb", "b\u00fcx", "a/b", "a:b", "a#b", "_a", "X" * 64, "a." * 40 + "a", "a\0", 5, None],
)
def test_what_is_no_host_name_is_refused(name):
    with pytest.raises(UsageError, match="hostname"):
        ns.Uts(name)


@given(st.text(max_size=70))
def test_no_host_name_can_leave_its_line_in_etc_hosts(name):
    try:
        checked = uts.to_hostname(name)
    except UsageError:
        return
    assert checked.isascii()
    assert len(checked.split()) == 1
    assert len(checked) <= 64
    assert "#" not in checked


@pytest.mark.parametrize("name", ["a b", "a\n", "\u00fc", "x" * 65, 5])
def test_what_is_no_domain_name_is_refused(name):
    with pytest.raises(UsageError, match="domainname"):
        ns.Uts(domainname=name)


def test_domain_names():
    pieces = ns.pieces(ns.Namespaces(uts=ns.Uts("box", "example.org")), privileged=True)
    assert plan.SetDomainname("example.org") in pieces.init_ops
    assert plan.SetDomainname("") in ns.pieces(ns.Namespaces(uts=ns.Uts("box", "")), privileged=True).init_ops


# --- clocks


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_offsets_are_written_as_the_kernel_reads_them(monotonic, boottime):
    ops = time.pieces(ns.Time(monotonic, boottime)).late_ops
    (write,) = [op for op in ops if isinstance(op, plan.WriteProc)]
    assert write.path == "self/timens_offsets"
    for line, clock, value in zip(write.data.decode().splitlines(), ("monotonic", "boottime"), (monotonic, boottime), strict=True):
        name, seconds, nanoseconds = line.split()
        assert name == clock
        assert 0 <= int(nanoseconds) < 1_000_000_000
        assert math.isclose(int(seconds) + int(nanoseconds) / 1e9, value, abs_tol=1e-6)


def test_offsets_are_written_before_init_enters():
    kinds = [type(op) for op in time.pieces(ns.Time(10)).late_ops]
    assert kinds == [plan.Unshare, plan.WriteProc, plan.Open, plan.Setns, plan.Close]


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e10, -1e10, True, "1", None])
def test_what_is_no_offset_is_refused(value):
    with pytest.raises(UsageError, match="time offset"):
        ns.Time(value)


def test_a_clock_before_0_is_refused_before_anything_is_touched():
    time.check_clocks(ns.Time(86400, 86400))
    with pytest.raises(UsageError, match=r"monotonic.* before 0"):
        time.check_clocks(ns.Time(monotonic=-4e9))
    with pytest.raises(UsageError, match=r"boottime.* before 0"):
        time.check_clocks(ns.Time(boottime=-4e9))


def test_no_time_namespace_unless_asked():
    assert time.pieces(ns.Host()).init_ops == ()
