"""What a run may do and provably leave nothing behind: the filter of a traceless container.

Theory of operation
-------------------
A pool hands a container to the next user as it is, when nothing of the last one can be left in it. The proof is a second reading of the
policy. Of the system calls that the policy allows, `_CLEAN` and `_CLEAN_WHEN` list those which change nothing but the process that makes
them, and what ends with it. All others are reported to init before they are carried out; init notes that and lets them go on. So a container
about which nothing was reported is as it was before its first program, once all processes have ended, but for what init then sets anew
itself (the next process's number).

The list says what is harmless, never what is not: a call that is missing in it, or new in the kernel, costs a new container. Only
registers are looked at, as in every policy; of a call that is reported nothing is looked at, so it makes no difference what
another thread puts into its arguments meanwhile. That is also why this is no use of "continue" as a boundary (seccomp_unotify(2)): what may
be done at all the policy has said, in the same filter.

"Changes nothing" has three conditions, which `fs` and `sandbox.pool` see to: no access times (every mount that can be written to has
``noatime``), no file of the caller's that can be written to, and nobody sees init (``hidepid=invisible``; clocks of its CPU time are
refused here), for its counters tell what was run before.

Init lives under the same filter. Where it makes a call that would be reported, it passes by a number in the sixth argument, which
the kernel ignores: `TOKEN` stands for that number here, and init puts another one, that it draws, in its place.
"""

from __future__ import annotations

from errno import EINVAL
from functools import lru_cache
from typing import Final

import attrs

from sandbox.sec.policy import ALLOW, LOG, NOTIFY, Action, Condition, Policy, Rule, among, eq, fail, rule
from sandbox.sec.syscalls import all_names

__all__ = ["TOKEN", "traceless_policy"]

TOKEN: Final = 0x7C3A95D1_E26B4F08  # c/ops.h has its halves

# Their own memory, descriptors, threads, signals and timers; reading; waiting; writing to what they were given. Not here, though
# they might seem to belong: sockets (what is under way in one outlives the process for a moment, and counters for good), System V and
# POSIX IPC (numbers go on), flock and the like (on a descriptor that init keeps).
_CLEAN: Final = """
read write close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn pread64 pwrite64
readv writev access pipe select sched_yield mremap msync mincore madvise dup dup2 pause nanosleep getitimer alarm setitimer getpid sendfile
recvfrom sendmsg recvmsg fork vfork execve exit wait4 kill uname getdents getcwd chdir fchdir readlink umask gettimeofday getrlimit getrusage
sysinfo times getuid getgid setuid setgid geteuid getegid setpgid getppid getpgrp setsid setreuid setregid getgroups setgroups setresuid
getresuid setresgid getresgid getpgid setfsuid setfsgid getsid capget capset rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack statfs
fstatfs getpriority sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval mlock munlock
mlockall munlockall arch_prctl setrlimit gettid getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr tkill time futex
sched_getaffinity set_thread_area get_thread_area epoll_create getdents64 set_tid_address restart_syscall fadvise64 timer_settime
timer_gettime timer_getoverrun timer_delete exit_group epoll_wait epoll_ctl tgkill waitid ioprio_get newfstatat readlinkat faccessat
pselect6 ppoll set_robust_list epoll_pwait signalfd timerfd_create eventfd timerfd_settime timerfd_gettime signalfd4 eventfd2 epoll_create1
dup3 pipe2 preadv pwritev getcpu sched_getattr getrandom execveat membarrier mlock2 copy_file_range preadv2 pwritev2
pkey_mprotect pkey_alloc pkey_free statx rseq close_range faccessat2 epoll_pwait2 futex_waitv futex_wake futex_wait futex_requeue
clone3 personality
"""

_O_WRITES: Final = 0x400243  # O_ACCMODE, O_CREAT, O_TRUNC, __O_TMPFILE of <asm-generic/fcntl.h>: the same on both architectures
_F_CLEAN: Final = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
_IOCTL_CLEAN: Final = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX
# PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_CAPBSET_READ, PR_SET_NO_NEW_PRIVS,
# PR_GET_NO_NEW_PRIVS, PR_SET_VMA of <linux/prctl.h>
_PRCTL_CLEAN: Final = (1, 2, 3, 4, 15, 16, 23, 38, 39, 0x53564D41)
_CLONE_NEW: Final = 0x7E020000  # CLONE_NEW* that clone(2) knows
_CLONE_NEWCGROUP: Final = 0x02000000

_CLEAN_WHEN: Final[tuple[tuple[str, Condition], ...]] = (
    ("open", eq(1, 0, mask=_O_WRITES, bits=32)),
    ("openat", eq(2, 0, mask=_O_WRITES, bits=32)),
    ("fcntl", among(1, _F_CLEAN, bits=32)),
    ("ioctl", among(1, _IOCTL_CLEAN, bits=32)),
    ("prctl", among(0, _PRCTL_CLEAN, bits=32)),
    ("prlimit64", eq(0, 0, bits=32)),  # of its own
    ("sched_setaffinity", eq(0, 0, bits=32)),
    ("clone", eq(0, 0, mask=_CLONE_NEW, bits=32)),
    ("unshare", eq(0, _CLONE_NEWCGROUP)),
    *((name, among(0, range(16), bits=32)) for name in ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create")),
)

# A clock of a process's CPU time is ~pid << 3 and three bits for its kind (<linux/posix-timers.h>): these are init's.
_INITS_CLOCKS: Final = eq(0, 0xFFFFFFF0, mask=0xFFFFFFF8, bits=32)
_OWN: Final = eq(5, TOKEN)
_ALLOWING: Final = (ALLOW, LOG)


@lru_cache(maxsize=64)
def traceless_policy(policy: Policy) -> Policy:
    """Return *policy* as the filter that reports whatever it allows and could leave something behind."""
    rules: list[Rule] = [rule("clock_gettime clock_getres clock_nanosleep timer_create", fail(EINVAL), _INITS_CLOCKS)]
    for item in policy.rules:
        rules += _reported(item.names, item.action, item.when)
    if policy.default in _ALLOWING:
        rules += _reported(tuple(sorted(all_names())), policy.default, ())
    return attrs.evolve(
        policy, rules=tuple(rules), default=_or_notify(policy.default), unknown=_or_notify(policy.unknown), foreign=_or_notify(policy.foreign)
    )


def _or_notify(action: Action) -> Action:
    return NOTIFY if action in _ALLOWING else action


def _reported(names: tuple[str, ...], action: Action, when: tuple[Condition, ...]) -> list[Rule]:
    """One rule as those that take its place."""
    if action not in _ALLOWING:
        return [Rule(names, action, when)]
    clean = frozenset(_CLEAN.split())
    harmless, others = tuple(name for name in names if name in clean), tuple(name for name in names if name not in clean)
    return [
        Rule(harmless, action, when),
        *(Rule((name,), action, (*when, condition)) for name, condition in _CLEAN_WHEN if name in others),
        Rule(others, ALLOW, (*when, _OWN)),
        Rule(others, NOTIFY, when),
    ]
