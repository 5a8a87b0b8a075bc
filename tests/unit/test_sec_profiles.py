"""What the profiles promise: what programs and init need is allowed, what SECURITY promises to refuse is refused."""

from __future__ import annotations

import errno

import pytest

from sandbox.errors import UsageError
from sandbox.sec.policy import ALLOW, KILL_PROCESS, NOTIFY, Action, fail
from sandbox.sec.profiles import NAMESPACE_KINDS, Profile, namespace_limits_ops, profile_policy
from sandbox.sec.syscalls import Arch, syscall_number, table

EPERM, ENOSYS, UNSUPPORTED = fail(errno.EPERM), fail(errno.ENOSYS), fail(errno.EAFNOSUPPORT)
BOTH = pytest.mark.parametrize("profile", list(Profile), ids=lambda profile: profile.value)
ARCHES = pytest.mark.parametrize("arch", list(Arch), ids=lambda arch: arch.value)

NEW_USER, NEW_CGROUP, NEW_NS, NEW_TIME = 0x10000000, 0x02000000, 0x00020000, 0x80
VFORK = 0x4000 | 0x100 | 17
RUBBISH = 0x12345678 << 32  # in the high word, where the kernel takes an int

# What init calls under the filter (its own calls, and those of the libc it is linked with).
INIT = """
read write openat openat2 close close_range recvmsg sendmsg epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 ppoll signalfd4 wait4 waitid timer_create timer_settime kill
prlimit64 setresuid setresgid setgroups capset prctl chdir fchdir dup3 fcntl execve execveat setsid unlinkat mkdirat symlinkat fchown fchownat
fchmod fchmodat fstat newfstatat statx getdents64 lseek pidfd_open pidfd_send_signal timerfd_create timerfd_settime timerfd_gettime mmap munmap
mprotect madvise brk umask exit exit_group rt_sigprocmask rt_sigaction rt_sigreturn clock_gettime getpid gettid tgkill readlinkat renameat2
ftruncate fallocate linkat mknodat utimensat getrandom sendto recvfrom setitimer nanosleep clock_nanosleep futex set_tid_address rseq
"""
INIT_X86_64 = "dup2 epoll_wait poll open stat pause arch_prctl"


def decide(profile: Profile, name: str, *args: int, arch: Arch = Arch.X86_64, clone3: bool = False) -> Action:
    return profile_policy(profile, clone3=clone3).decide(arch, syscall_number(name, arch=arch), (*args, 0, 0, 0, 0, 0, 0)[:6])


@BOTH
@ARCHES
def test_init_can_do_its_work_under_the_filter(profile: Profile, arch: Arch):
    for name in (INIT + (INIT_X86_64 if arch is Arch.X86_64 else "")).split():
        assert decide(profile, name, arch=arch) == ALLOW, name
    # TIOCSCTTY, TIOCSPTLCK, TIOCGPTPEER, TIOCSWINSZ, SECCOMP_IOCTL_NOTIF_RECV, _SEND, _ID_VALID
    for command in (0x540E, 0x40045431, 0x5441, 0x5414, 0xC0502100, 0xC0182101, 0x40082102):
        assert decide(profile, "ioctl", 0, command, arch=arch) == ALLOW
    assert decide(profile, "clone", VFORK, arch=arch) == ALLOW
    assert decide(profile, "clone", VFORK | 0x1000, arch=arch) == ALLOW  # CLONE_PIDFD
    assert decide(profile, "unshare", NEW_CGROUP, arch=arch) == ALLOW
    assert decide(profile, "clone3", arch=arch, clone3=True) == ALLOW


@BOTH
@ARCHES
def test_namespaces_and_mounts_are_refused(profile: Profile, arch: Arch):
    refused = NOTIFY if profile is Profile.STRICT else EPERM
    for flag in (NEW_NS, NEW_CGROUP, 0x04000000, 0x08000000, NEW_USER, 0x20000000, 0x40000000):
        assert decide(profile, "clone", flag | 17, arch=arch) == refused
        assert decide(profile, "clone", RUBBISH | flag, arch=arch) == refused
    for flags in (NEW_NS, NEW_USER, NEW_TIME, NEW_USER | NEW_CGROUP, NEW_CGROUP | 1 << 32, 0, 0x400):
        assert decide(profile, "unshare", flags, arch=arch) == refused
    mounts = "mount umount2 pivot_root fsopen fsconfig fsmount fspick open_tree open_tree_attr move_mount mount_setattr setns"
    assert {decide(profile, name, arch=arch) for name in mounts.split()} == {refused}
    assert decide(profile, "clone3", arch=arch) == ENOSYS


@BOTH
@ARCHES
def test_kernel_surface_that_nobody_needs_is_refused(profile: Profile, arch: Arch):
    names = """
    add_key request_key keyctl userfaultfd bpf perf_event_open process_vm_readv process_vm_writev pidfd_getfd kexec_load kexec_file_load
    init_module finit_module delete_module reboot swapon swapoff acct quotactl quotactl_fd settimeofday clock_settime adjtimex clock_adjtime
    name_to_handle_at open_by_handle_at vhangup nfsservctl kcmp syslog sethostname setdomainname fanotify_init fanotify_mark lookup_dcookie
    migrate_pages move_pages process_madvise
    """
    for name in names.split():
        assert decide(profile, name, arch=arch) in ((EPERM, NOTIFY) if profile is Profile.STRICT else (EPERM,)), name
    for name in ("io_uring_setup", "io_uring_enter", "io_uring_register", "memfd_secret", "statmount", "listmount"):
        assert decide(profile, name, arch=arch) == ENOSYS


def test_strict_reports_what_is_clearly_hostile():
    names = """
    mount umount2 pivot_root fsopen open_tree move_mount setns ptrace process_vm_readv bpf keyctl add_key kexec_load init_module finit_module
    userfaultfd perf_event_open open_by_handle_at reboot iopl ioperm
    """
    for name in names.split():
        assert decide(Profile.STRICT, name) == NOTIFY, name
    for command in (0x5412, 0x541C):
        assert decide(Profile.STRICT, "ioctl", 0, command) == NOTIFY


def test_strict_never_ends_a_program_for_what_runtimes_try():
    # Node.js sets an io_uring up, the JVM asks for memory policies, libc for clone3, systemd's libraries for file handles.
    for name in ("io_uring_setup", "get_mempolicy", "mbind", "clone3", "name_to_handle_at", "modify_ldt", "personality", "chroot", "syslog"):
        assert decide(Profile.STRICT, name, 0x1234) not in (NOTIFY, KILL_PROCESS), name


def test_strict_makes_sync_do_nothing():
    assert decide(Profile.STRICT, "sync") == decide(Profile.STRICT, "syncfs") == fail(0)
    assert decide(Profile.DEFAULT, "sync") == ALLOW


def test_default_lets_debuggers_work():
    assert decide(Profile.DEFAULT, "ptrace") == decide(Profile.DEFAULT, "chroot") == ALLOW


@BOTH
@ARCHES
@pytest.mark.parametrize("high", [0, RUBBISH])
def test_sockets_are_unix_internet_and_rtnetlink_only(profile: Profile, arch: Arch, high: int):
    cloexec = 0x80000
    allowed = [
        (1, 1, 0),
        (1, 5, 0),
        (2, 1, 0),
        (2, 1 | cloexec, 6),
        (10, 2, 17),
        (2, 2, 1),
        (10, 2, 58),
        (2, 1, 262),
        (2, 3, 1),
        (16, 3, 0),
        (16, 2, 0),
    ]
    for args in allowed:
        assert decide(profile, "socket", *(high | arg for arg in args), arch=arch) == ALLOW, args
    # AF_UNSPEC, AX25, APPLETALK, netlink: NETFILTER and KOBJECT_UEVENT; PACKET, RDS, CAN, TIPC, BLUETOOTH, ALG, NFC, KCM, VSOCK, QIPCRTR, SMC, XDP;
    # SCTP by its type and by its number, DCCP, UDP-Lite, L2TP
    refused = [(family, 1, 0) for family in (0, 3, 5, 17, 21, 29, 30, 31, 38, 39, 40, 41, 42, 43, 44, 45, 0xFFFFFFFF)]
    refused += [(16, 3, 12), (16, 3, 15), (2, 5, 0), (2, 5, 132), (2, 1, 132), (10, 6, 0), (2, 2, 136), (2, 2, 115), (2, 10, 0)]
    for args in refused:
        assert decide(profile, "socket", *(high | arg for arg in args), arch=arch) == UNSUPPORTED, args
    assert decide(profile, "socketpair", high | 1, 1, arch=arch) == ALLOW
    assert decide(profile, "socketpair", high | 2, 1, arch=arch) == UNSUPPORTED


@BOTH
@pytest.mark.parametrize("high", [0, 1 << 32, RUBBISH])
def test_terminals_cannot_be_typed_into(profile: Profile, high: int):
    for command in (0x5412, 0x541C, 0x5423):
        assert decide(profile, "ioctl", 0, high | command) in (EPERM, NOTIFY)
    assert decide(profile, "ioctl", 0, high | 0x5413) == ALLOW


@BOTH
def test_personalities_are_few(profile: Profile):
    assert {decide(profile, "personality", value) for value in (0, 0x20000, 0x40000, 0xFFFFFFFF, (1 << 64) - 1)} == {ALLOW}
    # PER_LINUX32, READ_IMPLIES_EXEC, MMAP_PAGE_ZERO
    assert {decide(profile, "personality", value) for value in (8, 0x0400000, 0x0100000)} == {EPERM}


@BOTH
@ARCHES
def test_other_abis_die_and_new_calls_are_absent(profile: Profile, arch: Arch):
    policy = profile_policy(profile)
    assert policy.decide(arch, 0, audit_arch=0x40000003 if arch is Arch.X86_64 else 0x40000028) == KILL_PROCESS
    assert policy.decide(arch, max(table(arch).values()) + 1) == ENOSYS
    assert policy.decide(arch, 0xFFFFFFFF) == ENOSYS
    assert policy.decide(Arch.X86_64, 0x40000000) == KILL_PROCESS
    assert policy.decide(Arch.AARCH64, 0x40000000) == ENOSYS


def test_namespace_limits_cover_all_but_cgroup():
    written = {op.path: op.data for op in namespace_limits_ops("proc")}
    assert written == {f"sys/user/max_{kind}_namespaces": b"0" for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "time")}
    assert "cgroup" not in NAMESPACE_KINDS
    assert {op.at for op in namespace_limits_ops("proc")} == {"proc"}


def test_namespace_limits_never_touch_the_host():
    with pytest.raises(UsageError, match="procfs"):
        namespace_limits_ops("")
