from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox._sys import calls, constants
from sandbox.errors import UnsupportedError
from tests.support import needs


def test_importing_the_package_does_not_load_ctypes():
    code = "import sys, sandbox._sys.calls, sandbox._sys.features, sandbox.ns; sys.exit('ctypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_openat2_stays_in_the_root(tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    folder = os.open(tmp_path, constants.O_PATH)
    try:
        with pytest.raises(OSError, match="openat2: No such file") as caught:
            calls.openat2("link/passwd", os.O_RDONLY, dir_fd=folder, resolve=constants.RESOLVE_IN_ROOT)
        assert caught.value.errno == errno.ENOENT
        with pytest.raises(OSError, match="openat2") as caught:
            calls.openat2("../x", os.O_RDONLY, dir_fd=folder, resolve=constants.RESOLVE_BENEATH)
        assert caught.value.errno == errno.EXDEV
    finally:
        os.close(folder)


def test_openat2_descriptor_is_close_on_exec():
    fd = calls.openat2("/", constants.O_PATH)
    try:
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_openat2_refuses_nul():
    with pytest.raises(ValueError, match="null byte"):
        calls.openat2("/etc\0/passwd", os.O_RDONLY)


def test_statx_agrees_with_stat(tmp_path):
    found, expected = calls.statx(tmp_path), tmp_path.stat()
    assert (found.ino, found.dev, found.mode) == (expected.st_ino, expected.st_dev, expected.st_mode)


def test_statx_knows_mount_roots():
    assert calls.statx("/proc").attributes & constants.STATX_ATTR_MOUNT_ROOT
    assert not calls.statx("/proc/self").attributes & constants.STATX_ATTR_MOUNT_ROOT


def test_statx_mount_id_is_that_of_fdinfo(tmp_path):
    fd = os.open(tmp_path, constants.O_PATH)
    try:
        info = dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines())
        assert calls.statx("", dir_fd=fd, flags=constants.AT_EMPTY_PATH, mask=constants.STATX_MNT_ID).mnt_id == int(info["mnt_id"])
    finally:
        os.close(fd)


def test_pidfd_of_the_dead_refuses_signals():
    with subprocess.Popen(["true"]) as process:
        pidfd = calls.pidfd_open(process.pid)
        process.wait()
    try:
        with pytest.raises(ProcessLookupError, match="pidfd_send_signal"):
            calls.pidfd_send_signal(pidfd, 0)
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("said", [errno.EINVAL, errno.ESRCH])
def test_the_number_of_a_group_without_its_leader_is_no_process(monkeypatch, said):
    def of_an_older_kernel(pid, flags):
        raise OSError(said, os.strerror(said))

    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!"], stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        member = int(leader.stdout.readline())
        leader.wait()
        try:
            for _ in range(2):
                with pytest.raises(ProcessLookupError):
                    calls.pidfd_open(leader.pid)
                monkeypatch.setattr("os.pidfd_open", of_an_older_kernel)
            for pid, flags in ((0, 0), (leader.pid, 1)):
                with pytest.raises(OSError, match=os.strerror(said)):
                    calls.pidfd_open(pid, flags)
        finally:
            os.kill(member, signal.SIGKILL)


def test_pidfd_sends_a_signal():
    with subprocess.Popen(["sleep", "60"]) as process:
        pidfd = calls.pidfd_open(process.pid)
        calls.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    os.close(pidfd)


def test_memfd_takes_seals():
    from fcntl import F_ADD_SEALS, fcntl

    fd = calls.memfd_create("test", constants.MFD_CLOEXEC | constants.MFD_ALLOW_SEALING)
    try:
        fcntl(fd, F_ADD_SEALS, constants.F_SEAL_WRITE)
        with pytest.raises(PermissionError):
            os.write(fd, b"x")
    finally:
        os.close(fd)


def test_clone3_refuses_arguments_that_could_succeed():
    with pytest.raises(ValueError, match="launcher"):
        calls.clone3(bytes(64))
    with pytest.raises(ValueError, match="launcher"):
        calls.clone3(bytes(88))


def test_prctl_answers():
    with open("/proc/self/status", encoding="ascii") as file:
        status = dict(line.split(":\t", 1) for line in file.read().splitlines())
    assert calls.prctl(constants.PR_GET_NO_NEW_PRIVS) == int(status["NoNewPrivs"])
    bounding = int(status["CapBnd"], 16)
    assert [calls.prctl(constants.PR_CAPBSET_READ, cap) for cap in range(10)] == [bounding >> cap & 1 for cap in range(10)]


def test_an_unknown_machine_is_named():
    with pytest.raises(UnsupportedError, match="riscv64"):
        calls.number("openat2", "riscv64")


@needs("root")
def test_a_detached_mount_is_made_and_set_read_only():
    context = calls.fsopen("tmpfs", constants.FSOPEN_CLOEXEC)
    calls.fsconfig(context, constants.FSCONFIG_SET_STRING, "size", "64k")
    calls.fsconfig(context, constants.FSCONFIG_CMD_CREATE)
    mount = calls.fsmount(context, constants.FSMOUNT_CLOEXEC, 0)
    try:
        os.mkdir("a", dir_fd=mount)
        calls.mount_setattr(mount, "", constants.AT_EMPTY_PATH, attr_set=constants.MOUNT_ATTR_RDONLY)
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir("b", dir_fd=mount)
    finally:
        os.close(mount)
        os.close(context)


def test_threads_bind_and_call_at_once():
    code = """
import threading, sys
from sandbox._sys import calls
start = threading.Barrier(16)
wrong = []
def ask():
    start.wait()
    for _ in range(50):
        try:
            calls.pidfd_getfd(-1, 0)
            wrong.append("no error")
        except OSError as error:
            if error.errno != 9:
                wrong.append(error)
threads = [threading.Thread(target=ask) for _ in range(16)]
[t.start() for t in threads]; [t.join() for t in threads]
sys.exit(repr(wrong) if wrong else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
