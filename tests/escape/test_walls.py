"""Attacks from inside, each harmless: what a hostile program tries must fail, and the host must not have changed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import sandbox
from sandbox import Bind, Container, Security, Status, Tmpfs
from tests.support import needs

pytestmark = [needs("userns"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]
SH = "/bin/sh"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the attacks' programs, compiled from C."""
    directory = tmp_path_factory.mktemp("attacks")
    directory.chmod(0o755)
    for name, code in PROGRAMS.items():
        source = directory / f"{name}.c"
        source.write_text(PRELUDE + code)
        subprocess.run(["gcc", "-O1", "-static", "-o", directory / name, source], check=True)
    return directory


PRELUDE = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#define TRY(call) do { errno = 0; long r = (long)(call); printf("%s: %s\\n", #call, r >= 0 ? "ALLOWED" : strerror(errno)); fflush(stdout); } while (0)
"""
PROGRAMS = {
    "surface": """
int main(void) {
    TRY(syscall(SYS_unshare, CLONE_NEWUSER)); TRY(syscall(SYS_unshare, CLONE_NEWNS)); TRY(syscall(SYS_unshare, CLONE_NEWNET));
    TRY(syscall(SYS_unshare, CLONE_NEWCGROUP)); TRY(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    unsigned long args[8] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
    TRY(syscall(SYS_clone3, &args, sizeof args));
    TRY(mount("none", "/tmp", "tmpfs", 0, 0)); TRY(umount2("/proc", MNT_DETACH)); TRY(syscall(SYS_pivot_root, "/tmp", "/tmp"));
    TRY(syscall(SYS_fsopen, "tmpfs", 0)); TRY(syscall(SYS_open_tree, -100, "/", 1)); TRY(syscall(SYS_setns, 0, 0));
    TRY(syscall(SYS_keyctl, 0, -3, 0)); TRY(syscall(SYS_add_key, "user", "x", "y", 1, -3)); TRY(syscall(SYS_bpf, 0, 0, 0));
    TRY(syscall(SYS_io_uring_setup, 4, 0)); TRY(syscall(SYS_userfaultfd, 0)); TRY(syscall(SYS_perf_event_open, 0, 0, -1, -1, 0));
    TRY(syscall(SYS_open_by_handle_at, -100, 0, 0)); TRY(syscall(SYS_reboot, 0, 0, 0)); TRY(syscall(SYS_kexec_load, 0, 0, 0, 0));
    TRY(syscall(SYS_init_module, 0, 0, "")); TRY(syscall(SYS_swapon, "/tmp/x", 0)); TRY(syscall(SYS_acct, 0));
    TRY(syscall(SYS_settimeofday, 0, 0)); TRY(syscall(SYS_process_vm_readv, 1, 0, 0, 0, 0, 0));
    TRY(socket(AF_ALG, SOCK_SEQPACKET, 0)); TRY(socket(AF_VSOCK, SOCK_STREAM, 0)); TRY(socket(AF_PACKET, SOCK_RAW, 0));
    TRY(socket(AF_NETLINK, SOCK_RAW, 12)); TRY(socket(AF_INET, SOCK_RAW, 1));
    TRY(mknod("/tmp/disk", S_IFBLK | 0600, makedev(8, 0))); TRY(chroot("/tmp"));
    TRY(ptrace(PTRACE_ATTACH, 1, 0, 0)); TRY(open("/proc/1/mem", O_RDWR)); TRY(open("/proc/1/environ", O_RDONLY));
    TRY(open("/proc/1/exe", O_WRONLY)); TRY(open("/proc/self/exe", O_WRONLY)); TRY(chdir("/proc/1/cwd")); TRY(chdir("/proc/1/root"));
    TRY(open("/proc/sysrq-trigger", O_WRONLY)); TRY(open("/proc/sys/kernel/core_pattern", O_WRONLY)); TRY(open("/proc/kcore", O_RDWR));
    TRY(open("/sys/fs/cgroup", O_RDONLY)); TRY(setresuid(0, 0, 0)); TRY(setpriority(PRIO_PROCESS, 0, -5));
    struct rlimit more = {1 << 20, 1 << 20}; TRY(setrlimit(RLIMIT_NOFILE, &more)); TRY(sethostname("x", 1));
    return 0;
}""",
    "tiocsti": """
int main(void) {
    char c = 'x';
    TRY(ioctl(0, 0x5412, &c)); TRY(syscall(SYS_ioctl, 0, 0x100005412UL, &c)); TRY(ioctl(0, 0x541C, &c));
    return 0;
}""",
    "int80": """
int main(void) {
    long result = -1;
#ifdef __x86_64__
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory");  // getpid of i386
#endif
    printf("%ld\\n", result);
    return 0;
}""",
    "signals": """
int main(void) {
    kill(getppid(), SIGKILL); kill(1, SIGKILL); kill(-1, SIGTERM); kill(0, SIGTERM);
    return 0;
}""",
}


# What a program may do without harm: these answers are the kernel's usual ones for anybody.
HARMLESS = {"socket(AF_NETLINK, SOCK_RAW, 12)"}


@needs("program:gcc", "arch:x86_64")
@pytest.mark.parametrize("user", ["1000:1000", pytest.param("0:0", marks=needs("root"))])
def test_the_kernel_surface_is_closed(build: Path, user: str) -> None:
    with Container(mounts=[Bind(build, "/attacks", read_only=True), Tmpfs("/tmp")], user=user) as c:
        result = c.exec(["/attacks/surface"])
    lines = dict(line.rsplit(": ", 1) for line in result.stdout.decode().splitlines())
    assert len(lines) > 45, result
    allowed = {call for call, answer in lines.items() if answer == "ALLOWED"}
    # To become uid 0 is no change for root inside, who has no capability in this user namespace beyond nothing.
    expected = {'open("/proc/self/exe", O_WRONLY)'} & allowed
    if user == "0:0":
        expected |= {"setresuid(0, 0, 0)"}
    assert allowed <= expected, sorted(allowed - expected)


@needs("program:gcc", "arch:x86_64")
def test_terminal_input_cannot_be_faked(build: Path) -> None:
    with Container(mounts=[Bind(build, "/attacks", read_only=True)]) as c:
        p = c.popen(["/attacks/tiocsti"], tty=True)
        out, _ = p.communicate(timeout=20)
        p.close()
    assert out.count(b"Operation not permitted") == 3, out


@needs("program:gcc", "arch:x86_64")
def test_the_32_bit_entry_is_closed(build: Path) -> None:
    with Container(mounts=[Bind(build, "/attacks", read_only=True)]) as c:
        result = c.exec(["/attacks/int80"])
    assert result.status is not Status.EXITED or int(result.stdout) < 0


@needs("program:gcc")
def test_signals_reach_neither_init_nor_the_host(build: Path) -> None:
    with Container(mounts=[Bind(build, "/attacks", read_only=True)]) as c:
        other = c.popen(["sleep", "60"])
        c.exec(["/attacks/signals"])
        assert c.exec(["echo", "alive"]).stdout == b"alive\n"
        other.kill()
        other.wait()
        other.close()


@needs("program:gcc", "arch:x86_64")
def test_strict_names_the_forbidden_system_call(build: Path) -> None:
    with Container(mounts=[Bind(build, "/attacks", read_only=True)], security=Security("strict")) as c:
        result = c.exec(["/attacks/surface"], timeout=20)
        assert result.status is Status.SYSCALL_DENIED, result
        assert result.syscall is not None
        assert c.exec(["echo", "next"]).stdout == b"next\n"


def test_two_containers_share_nothing() -> None:
    with Container() as a, Container() as b:
        a.exec([SH, "-c", "echo x > /dev/shm/note; echo x > /tmp/note"])
        assert b.exec([SH, "-c", "cat /dev/shm/note /tmp/note"]).stdout == b""
        kinds = "ipc net pid uts user mnt cgroup"
        script = f"for k in {kinds}; do readlink /proc/self/ns/$k; done"
        assert not set(a.exec([SH, "-c", script]).stdout.split()) & set(b.exec([SH, "-c", script]).stdout.split())


def test_the_hosts_loopback_is_out_of_reach() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"import socket; s = socket.socket(); s.settimeout(2); print(s.connect_ex(('127.0.0.1', {port})))"
        if not os.path.exists("/usr/bin/python3"):
            pytest.skip("needs program:python3 in /usr/bin")
        assert sandbox.run(["/usr/bin/python3", "-c", script]).stdout.strip() not in {b"0", b""}


def test_closing_one_program_does_not_stop_the_deadlines_of_others() -> None:
    with Container() as c:
        sleeper = c.popen(["sleep", "30"], timeout=0.5)
        other = c.popen([SH, "-c", "trap '' TERM; sleep 30"])
        other.close()
        assert sleeper.wait(10).status is Status.TIMEOUT
        sleeper.close()
