"""The two seccomp profiles, as policies: what programs may ask of the kernel.

Both are allow-lists. They start from the system calls that Docker's default profile allows, and take away what reaches
kernel code that contained programs do not need. What is refused and known fails with EPERM, or with ENOSYS where
libraries ask first and fall back; what is not known here fails with ENOSYS, as on an older kernel.

``strict`` (judging) treats the clearly hostile calls otherwise: they are reported to the container's init, which ends
the program at once (Status.SYSCALL_DENIED, with the name). Only what no ordinary program or runtime ever tries is there:
io_uring, say, is not, for Node.js tries it at start. And sync(2) does nothing there: it would stop the program, and slow its
neighbours, until the host's disks have caught up.

The container's init lives under the same filter as its programs: what init itself calls must be allowed, and must never be
reported (init would wait for itself).
"""

from __future__ import annotations

import enum
from errno import EAFNOSUPPORT, EPERM
from functools import lru_cache
from typing import Final

from sandbox._plan import Slot, WriteProc
from sandbox.errors import UsageError
from sandbox.sec.policy import ABSENT, ALLOW, NOTIFY, Action, Condition, Policy, Rule, among, eq, fail, ne, rule

__all__ = ["NAMESPACE_KINDS", "Profile", "namespace_limits_ops", "nesting_rules", "profile_policy"]


class Profile(enum.Enum):
    """A named seccomp profile."""

    DEFAULT = "default"
    STRICT = "strict"


# Harmless without further look: files, memory, processes and threads, signals, time, sockets once made, System V and
# POSIX IPC (the IPC namespace is the container's own).
_PLAIN: Final = """
read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn pread64 pwrite64
readv writev access pipe select sched_yield mremap msync mincore madvise shmget shmat shmctl dup dup2 pause nanosleep getitimer alarm
setitimer getpid sendfile connect accept sendto recvfrom sendmsg recvmsg shutdown bind listen getsockname getpeername setsockopt getsockopt
fork vfork execve exit wait4 kill uname semget semop semctl shmdt msgget msgsnd msgrcv msgctl fcntl flock fsync fdatasync truncate ftruncate
getdents getcwd chdir fchdir rename mkdir rmdir creat link unlink symlink readlink chmod fchmod chown fchown lchown umask gettimeofday
getrlimit getrusage sysinfo times getuid getgid setuid setgid geteuid getegid setpgid getppid getpgrp setsid setreuid setregid getgroups
setgroups setresuid getresuid setresgid getresgid getpgid setfsuid setfsgid getsid capget capset rt_sigpending rt_sigtimedwait
rt_sigqueueinfo rt_sigsuspend sigaltstack utime mknod statfs fstatfs getpriority setpriority sched_setparam sched_getparam
sched_setscheduler sched_getscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval mlock munlock mlockall munlockall
prctl arch_prctl setrlimit sync gettid readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
removexattr lremovexattr fremovexattr tkill time futex sched_setaffinity sched_getaffinity set_thread_area get_thread_area io_setup
io_destroy io_getevents io_submit io_cancel io_pgetevents epoll_create remap_file_pages getdents64 set_tid_address restart_syscall
semtimedop fadvise64 timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_gettime clock_getres clock_nanosleep
exit_group epoll_wait epoll_ctl tgkill utimes mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr waitid ioprio_set
ioprio_get inotify_init inotify_add_watch inotify_rm_watch openat mkdirat mknodat fchownat futimesat newfstatat unlinkat renameat linkat
symlinkat readlinkat fchmodat faccessat pselect6 ppoll set_robust_list get_robust_list splice tee sync_file_range vmsplice utimensat
epoll_pwait signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime accept4 signalfd4 eventfd2 epoll_create1 dup3 pipe2
inotify_init1 preadv pwritev rt_tgsigqueueinfo recvmmsg prlimit64 syncfs sendmmsg getcpu sched_setattr sched_getattr renameat2 seccomp
getrandom memfd_create execveat membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx rseq
uretprobe uprobe pidfd_send_signal pidfd_open close_range openat2 faccessat2 epoll_pwait2 landlock_create_ruleset landlock_add_rule
landlock_restrict_self process_mrelease futex_waitv cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue mseal
setxattrat getxattrat listxattrat removexattrat
"""

# Libraries try these and fall back when the kernel is too old for them.
_NEW: Final = """
clone3 io_uring_setup io_uring_enter io_uring_register memfd_secret statmount listmount lsm_get_self_attr lsm_set_self_attr
lsm_list_modules file_getattr file_setattr
"""

# Only an attack, or a program that has no business in a judge, tries these.
_HOSTILE: Final = """
mount umount2 pivot_root fsopen fsconfig fsmount fspick open_tree open_tree_attr move_mount mount_setattr setns
ptrace process_vm_readv process_vm_writev pidfd_getfd add_key request_key keyctl bpf perf_event_open userfaultfd
kexec_load kexec_file_load init_module finit_module delete_module create_module reboot swapon swapoff acct iopl ioperm
open_by_handle_at settimeofday clock_settime
"""

# What containers inside a container need besides clone and unshare of any kind.
_NESTING: Final = """
clone clone3 unshare setns mount umount2 pivot_root fsopen fsconfig fsmount fspick open_tree open_tree_attr move_mount mount_setattr
statmount listmount sethostname setdomainname chroot
"""

# CLONE_NEW* of <linux/sched.h> that clone(2) knows: NS, CGROUP, UTS, IPC, USER, PID, NET. (NEWTIME, 0x80, lies in the byte
# of the exit signal there; only unshare and clone3 take it.)
_CLONE_NEW: Final = 0x7E020000
_CLONE_NEWCGROUP: Final = 0x02000000

# <asm-generic/ioctls.h>: bytes typed into the terminal of whoever started us (CVE-2017-5226, CVE-2019-7303), and the
# line disciplines' module loader (CVE-2020-14416, CVE-2023-6546 ...).
_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423

# <linux/personality.h>: PER_LINUX, UNAME26, ADDR_NO_RANDOMIZE (debuggers and sanitizers, for their own process), "tell me".
_PERSONALITIES: Final = (0, 0x0020000, 0x0040000, 0xFFFFFFFF)

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _NETLINK_ROUTE = 1, 2, 10, 16, 0
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_RAW, _SOCK_TYPE_MASK = 1, 2, 3, 0xF
_STREAM_PROTOCOLS: Final = (0, 6, 262)  # default, TCP, MPTCP; not SCTP (132), whose module the call would load
_DGRAM_PROTOCOLS: Final = (0, 17, 1, 58)  # default, UDP, ICMP and ICMPv6 (ping without rights); not UDP-Lite, L2TP ...

_REFUSED: Final = fail(EPERM)


def _socket_rules() -> tuple[Rule, ...]:
    """Allow Unix, TCP, UDP and ping sockets, and rtnetlink (getaddrinfo and ip(8) read addresses with it).

    Every argument is an int for the kernel, so only low words count. Raw sockets are for CAP_NET_RAW to allow.
    """
    inet = among(0, (_AF_INET, _AF_INET6), bits=32)

    def kind(number: int) -> tuple[Condition, ...]:
        return inet, eq(1, number, mask=_SOCK_TYPE_MASK, bits=32)

    return (
        rule("socket socketpair", ALLOW, eq(0, _AF_UNIX, bits=32)),
        rule("socket", ALLOW, *kind(_SOCK_STREAM), among(2, _STREAM_PROTOCOLS, bits=32)),
        rule("socket", ALLOW, *kind(_SOCK_DGRAM), among(2, _DGRAM_PROTOCOLS, bits=32)),
        rule("socket", ALLOW, *kind(_SOCK_RAW)),
        rule("socket", ALLOW, eq(0, _AF_NETLINK, bits=32), eq(2, _NETLINK_ROUTE, bits=32)),
        rule("socket socketpair", fail(EAFNOSUPPORT)),
    )


def _looked_at_rules(hostile: Action) -> tuple[Rule, ...]:
    """Judge the calls whose arguments decide."""
    return (
        # clone takes its flags from the low word; unshare's are an unsigned long. Init gives every exec a cgroup namespace of
        # its own with exactly this unshare; programs lack the CAP_SYS_ADMIN that it takes.
        rule("clone", ALLOW, eq(0, 0, mask=_CLONE_NEW, bits=32)),
        rule("unshare", ALLOW, eq(0, _CLONE_NEWCGROUP)),
        rule("clone unshare", hostile),
        rule("ioctl", hostile, among(1, (_TIOCSTI, _TIOCLINUX), bits=32)),
        rule("ioctl", ALLOW, ne(1, _TIOCSETD, bits=32)),
        rule("personality", ALLOW, among(0, _PERSONALITIES, bits=32)),
        *_socket_rules(),
    )


@lru_cache(maxsize=8)
def profile_policy(profile: Profile, *, clone3: bool = False) -> Policy:
    """Return the policy of a profile.

    *clone3*: allow it, because init starts programs with CLONE_INTO_CGROUP (cgroup v2). Its flags lie in memory, where no filter
    sees them, so programs could ask it for namespaces: `namespace_limits_ops` is the wall that stands behind.
    Without, it fails with ENOSYS, and every libc falls back to clone.
    """
    strict = profile is Profile.STRICT
    rules = [
        *((rule("clone3", ALLOW),) if clone3 else ()),
        *((rule("sync syncfs", fail(0)),) if strict else (rule("ptrace chroot", ALLOW),)),
        *_looked_at_rules(NOTIFY if strict else _REFUSED),
        rule(_PLAIN, ALLOW),
        rule(_NEW, ABSENT),
    ]
    if strict:
        rules.append(rule(_HOSTILE, NOTIFY))
    return Policy(tuple(rules), default=_REFUSED)


@lru_cache(maxsize=1)
def nesting_rules() -> tuple[Rule, ...]:
    """Return the rules that let programs make namespaces and mounts of their own: containers inside the container."""
    return (rule(_NESTING, ALLOW),)


# The files max_KIND_namespaces of /proc/sys/user that are set to 0. Not "cgroup": init makes those itself, one an exec.
NAMESPACE_KINDS: Final = ("user", "mnt", "pid", "net", "ipc", "uts", "time")


@lru_cache(maxsize=16)
def namespace_limits_ops(proc: Slot) -> tuple[WriteProc, ...]:
    """Forbid new namespaces in the container's user namespace, by its own limits: ENOSPC for whoever tries, by whatever call.

    The second wall behind seccomp, and the only one for clone3. The limits belong to the user namespace of the writer
    (kernel/ucount.c `set_permissions`: raising them takes CAP_SYS_RESOURCE in it), so these operations must be carried out by an
    init in a user namespace of its own, after it has made all its namespaces. *proc*: a procfs, of any pid namespace.
    """
    if not proc:
        raise UsageError("namespace limits: name the slot of a procfs; without one the path would be the host's")
    return tuple(WriteProc(f"sys/user/max_{kind}_namespaces", b"0", proc) for kind in NAMESPACE_KINDS)
