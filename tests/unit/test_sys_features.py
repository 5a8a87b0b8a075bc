from __future__ import annotations

import errno
import os
import threading

import pytest

from sandbox._sys import features, procfs
from sandbox._sys.features import Obstacle
from sandbox.errors import UnsupportedError, UsageError
from tests.support import needs


@pytest.fixture(autouse=True)
def afresh():
    features.forget()
    yield
    features.forget()


def refuse(number: int):
    """A stand-in for a system call that always fails with *number*."""

    def call(*args, **kw):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("name", sorted(features.PROBES))
def test_every_probe_answers_and_says_what_it_asks(name):
    probe = features.PROBES[name]
    if name in ("overlay_in_userns", "overlay_lowerdir_add") and not features.user_namespaces():
        pytest.skip("no user namespaces")
    first = probe()
    assert probe() == first
    assert probe.__doc__


@pytest.mark.parametrize("name", sorted(features.PROBES))
def test_every_probe_can_be_forced(name):
    with features.pretend(**{name: False}):
        assert features.PROBES[name]() is False
        with features.pretend(**{name: 3}):
            assert features.PROBES[name]() == 3
        assert features.PROBES[name]() is False


@needs("root", "bpf")
def test_packet_programs_take_a_setting_of_conntrack_that_came_after_the_programs(monkeypatch):
    assert features.packet_programs()
    features.forget()
    monkeypatch.setattr(features, "IGNORE_INVALID_RST", "/proc/sys/net/netfilter/none")
    assert not features.packet_programs()


def test_packet_programs_are_none_where_there_is_no_netfilter(monkeypatch):
    monkeypatch.setattr(features.calls, "bpf", lambda *_: os.open("/dev/null", os.O_RDONLY))
    monkeypatch.setattr("socket.socket", refuse(errno.EPROTONOSUPPORT))
    assert not features.packet_programs()


def test_links_of_packet_programs_are_there_only_where_the_kernel_knows_them(monkeypatch):
    monkeypatch.setattr(features.calls, "bpf", lambda command, _: refuse(errno.EINVAL)() if command == 28 else os.open("/dev/null", os.O_RDONLY))
    assert not features.packet_links()
    features.forget()
    monkeypatch.setattr(features.calls, "bpf", lambda command, _: refuse(errno.ENODEV)() if command == 28 else os.open("/dev/null", os.O_RDONLY))
    assert features.packet_links()


def test_a_probe_that_is_none_is_refused():
    with pytest.raises(UsageError, match="no such probe: clone4"), features.pretend(clone4=False):
        pass


def test_pretending_ends_with_an_exception():
    truth = features.openat2()
    with pytest.raises(KeyError), features.pretend(openat2=not truth):
        raise KeyError
    assert features.openat2() is truth


def test_probing_makes_no_process_thread_or_descriptor():
    harmless = [probe for name, probe in features.PROBES.items() if name not in ("overlay_in_userns", "overlay_lowerdir_add")]
    for probe in harmless:
        probe()  # imports and bindings
    features.forget()
    before = sorted(os.listdir("/proc/self/fd")), threading.active_count(), os.readlink("/proc/self/ns/user")
    for probe in harmless:
        probe()
    assert (sorted(os.listdir("/proc/self/fd")), threading.active_count(), os.readlink("/proc/self/ns/user")) == before


# Which answers of the kernel mean "no": ENOSYS from an old one, EPERM from a seccomp filter around us.
@pytest.mark.parametrize("number", [1, 38])
@pytest.mark.parametrize(
    ("probe", "call"),
    [
        ("clone3", "clone3"),
        ("clone_into_cgroup", "clone3"),
        ("openat2", "openat2"),
        ("new_mount_api", "open_tree"),
        ("new_mount_api", "fsconfig"),
        ("mount_setattr", "mount_setattr"),
        ("pidfd", "pidfd_open"),
        ("close_range", "close_range"),
        ("memfd_seals", "memfd_create"),
        ("seccomp_user_notify", "seccomp"),
        ("seccomp_wait_killable", "seccomp"),
    ],
)
def test_a_refused_call_is_a_missing_feature(monkeypatch, probe, call, number):
    monkeypatch.setattr(features.calls, call, refuse(number))
    assert features.PROBES[probe]() is False


def test_a_kernel_without_clone_into_cgroup_says_e2big(monkeypatch):
    monkeypatch.setattr(features.calls, "clone3", refuse(7))
    assert features.clone_into_cgroup() is False


def test_landlock_that_is_off_is_version_0(monkeypatch):
    monkeypatch.setattr(features.calls, "landlock_create_ruleset", refuse(95))
    assert features.landlock_abi() == 0


# --- user namespaces


def numbers(monkeypatch, **settings: int):
    monkeypatch.setattr(features, "read_number", lambda path: settings.get(os.path.basename(path)))


def reason() -> str:
    obstacle = features.userns_obstacle()
    assert isinstance(obstacle, Obstacle)
    assert obstacle.remedy
    return obstacle.reason


def test_a_filter_around_us_is_named(monkeypatch):
    monkeypatch.setattr(features.calls, "unshare", refuse(1))
    assert "seccomp" in reason()
    assert not features.user_namespaces()


def test_max_user_namespaces_0_is_named_for_root_too(monkeypatch):
    numbers(monkeypatch, max_user_namespaces=0)
    with features.pretend(privileged=True):
        assert "max_user_namespaces" in reason()


def test_debians_switch_is_named_and_does_not_bind_root(monkeypatch):
    numbers(monkeypatch, max_user_namespaces=100, unprivileged_userns_clone=0)
    monkeypatch.setattr(features.calls, "unshare", refuse(1))  # as that kernel does, before it looks at the flags
    with features.pretend(privileged=False):
        assert "unprivileged_userns_clone" in reason()
    features.forget()
    monkeypatch.undo()
    numbers(monkeypatch, max_user_namespaces=100, unprivileged_userns_clone=0)
    with features.pretend(privileged=True):
        assert features.userns_obstacle() is None


def test_ubuntus_apparmor_is_named_for_unconfined_programs(monkeypatch):
    numbers(monkeypatch, max_user_namespaces=100, apparmor_restrict_unprivileged_userns=1)
    monkeypatch.setattr(features, "security_label", lambda: "unconfined")
    with features.pretend(privileged=False):
        assert "apparmor" in reason()
    features.forget()
    monkeypatch.setattr(features, "security_label", lambda: "my-judge")
    with features.pretend(privileged=False):
        assert features.userns_obstacle() is None


def test_privileged_is_what_status_says():
    effective = int(procfs.read_status()["CapEff"], 16)
    assert features.privileged() == all(effective >> cap & 1 for cap in (6, 7, 21))


# --- what needs a program


def test_without_unshare_the_answer_is_an_error_not_a_guess(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="util-linux"):
        features.overlay_in_userns()


@needs("root")
def test_procfs_cannot_be_idmapped_and_a_tmpfs_can():
    if not features.mount_setattr():
        pytest.skip("no mount_setattr")
    assert features.idmap_supported("/proc") is False
    assert features.idmap_supported("/dev/shm") is True


def test_nothing_is_idmapped_without_privileges():
    with features.pretend(privileged=False):
        assert features.idmap_supported("/") is False
