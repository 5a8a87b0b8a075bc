"""What the kernel refuses in a set-up is told in words that name who did it and what helps."""

from __future__ import annotations

import errno

import pytest

from sandbox import SetupError, UnsupportedError, features
from sandbox import _plan as plan
from sandbox._launch import codec, wire
from sandbox._refusals import setup_error
from sandbox._sys import outer
from sandbox._sys.features import Obstacle
from sandbox._sys.procfs import parse_mountinfo
from sandbox.errors import ProtocolError
from sandbox.ns.namespace import FLAGS

pytestmark = pytest.mark.unprivileged
UNSHARE, PROC, PIVOT = plan.Unshare(1), plan.NewFs("p", "proc"), plan.Pivot("root")
OBSTACLE = Obstacle("kernel.apparmor_restrict_unprivileged_userns is 1", "as root: sysctl -w ...=0")


def failed(op: plan.Op, number: int, phase: wire.Phase = wire.Phase.INIT):
    return setup_error(codec.Failed(phase, 0, 0, number), plan.Plan(init_ops=(op,), host_ops=(op,)), 0)


@pytest.fixture(autouse=True)
def nobody_around(monkeypatch):
    monkeypatch.setattr(outer, "is_filtered", lambda: False)
    monkeypatch.setattr(outer, "confinement", lambda: "")


@pytest.mark.parametrize("phase", [wire.Phase.CLONE, wire.Phase.MAPS, wire.Phase.INIT])
@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.ENOSPC])
def test_ubuntus_restriction_is_named_wherever_it_shows(phase, number):
    # There the clone succeeds, and its first use of a capability fails: the maps, or unshare.
    with features.pretend(userns_obstacle=OBSTACLE):
        error = failed(UNSHARE, number, phase)
    assert isinstance(error, UnsupportedError)
    assert error.feature == "user_namespaces"
    assert OBSTACLE.reason in str(error)
    assert error.remedy == OBSTACLE.remedy


@pytest.mark.parametrize(("op", "number"), [(PIVOT, errno.EPERM), (UNSHARE, errno.ENOMEM)])
def test_other_failures_are_not_blamed_on_user_namespaces(op, number):
    with features.pretend(userns_obstacle=OBSTACLE):
        error = failed(op, number)
    assert isinstance(error, SetupError)
    assert error.errno == number


@pytest.mark.parametrize("kind", ["net", "user", "uts"])
def test_a_namespace_that_cannot_be_joined_is_named_and_user_namespaces_are_not_blamed(kind):
    joins = (("other", FLAGS["mount"]), ("it", FLAGS[kind]))
    with features.pretend(userns_obstacle=OBSTACLE):
        error = setup_error(codec.Failed(wire.Phase.CLONE, 2, 0, errno.EPERM), plan.Plan(joins=joins), 0)
    assert isinstance(error, SetupError)
    assert error.operation == f"join the {kind} namespace"
    assert "CAP_SYS_ADMIN" in error.hint
    assert "user namespaces are forbidden" not in str(error)


def test_where_nothing_forbids_user_namespaces_the_errno_is_told():
    with features.pretend(userns_obstacle=None):
        error = failed(UNSHARE, errno.ENOSPC, wire.Phase.CLONE)
    assert isinstance(error, SetupError)
    assert "user.max_user_namespaces" in error.hint


def test_a_proc_that_is_not_whole_is_named_with_what_hides_it(monkeypatch):
    monkeypatch.setattr(outer, "hidden_proc", lambda: tuple(f"/proc/{name}" for name in ("acpi", "kcore", "keys", "scsi")))
    error = failed(PROC, errno.EPERM)
    assert isinstance(error, UnsupportedError)
    assert error.feature == "procfs"
    assert "/proc/acpi, /proc/kcore, /proc/keys and more are hidden" in str(error)
    assert "systempaths=unconfined" in error.remedy


def test_what_hides_parts_of_proc_is_read_from_mountinfo(monkeypatch):
    lines = """\
20 1 0:20 / /proc rw - proc proc rw
21 20 0:21 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw
22 20 0:22 / /proc/kcore rw - tmpfs tmpfs rw
23 1 0:23 / /processes rw - tmpfs tmpfs rw
"""
    monkeypatch.setattr(outer, "read_mountinfo", lambda: parse_mountinfo(lines))
    assert outer.hidden_proc() == ("/proc/kcore",)


def test_a_filter_or_a_profile_around_us_is_suspected(monkeypatch):
    assert failed(PIVOT, errno.EPERM).hint == ""
    monkeypatch.setattr(outer, "is_filtered", lambda: True)
    monkeypatch.setattr(outer, "confinement", lambda: "docker-default")
    assert "seccomp=unconfined" in failed(PIVOT, errno.EPERM).hint
    denied = failed(PIVOT, errno.EACCES).hint
    assert "docker-default" in denied
    assert "apparmor=unconfined" in denied
    assert failed(PIVOT, errno.EINVAL).hint == ""


def test_an_unconfined_process_is_under_no_profile(monkeypatch):
    monkeypatch.undo()
    for label, profile in (("unconfined", ""), ("docker-default", "docker-default")):
        monkeypatch.setattr(outer.features, "security_label", lambda label=label: label)
        assert outer.confinement() == profile


def test_a_phase_that_is_none_is_a_broken_protocol():
    assert isinstance(setup_error(codec.Failed(99, 0, 0, 1), plan.Plan(), 0), ProtocolError)


@pytest.mark.parametrize("op", [plan.NewFs("o", "overlay"), plan.NewOverlay("o", (), plan.FdPath("o"))])
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENODEV])
def test_a_host_without_overlays_is_told_of_them_however_many_layers_there_are(op, number):
    error = failed(op, number)
    assert isinstance(error, UnsupportedError)
    assert error.feature == "overlay"


@pytest.mark.parametrize("op", [plan.NewFs("o", "overlay"), plan.NewOverlay("o", (), plan.FdPath("o"))])
def test_a_directory_that_no_overlay_lies_over_is_to_be_copied(op):
    error = failed(op, errno.EINVAL)
    assert isinstance(error, SetupError)
    assert "scratch='copy'" in error.hint


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR])
def test_a_volume_of_an_image_that_is_no_directory_is_named(number):
    error = failed(plan.MakeTarget("/etc/passwd/.", "root", "root"), number)
    assert isinstance(error, SetupError)
    assert "VOLUME" in error.hint


@pytest.mark.parametrize("op", [plan.MakeDir("d", "root"), plan.MakeTarget("t", "root", "item"), plan.WriteFile("f", b"x", "root"), plan.Symlink("l", "to", "root")])
def test_a_layer_that_is_full_before_anything_runs_says_what_to_enlarge(op: plan.Op) -> None:
    assert "scratch=" in str(failed(op, errno.ENOSPC))
    assert "scratch=" not in str(failed(op, errno.EROFS))


def test_a_group_that_cannot_be_made_ahead_says_what_is_used_up() -> None:
    error = failed(PROC, errno.EAGAIN, wire.Phase.GROUPS)
    assert isinstance(error, SetupError)
    assert "cgroup.max.descendants" in str(error)
