"""The filter of traceless containers: it allows what the policy allows, and reports whatever of that is not known to be harmless."""

from __future__ import annotations

import errno
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.sec import ALLOW, KILL_PROCESS, LOG, NOTIFY, Policy, Profile, compile_policy, eq, fail, profile_policy, rule
from sandbox.sec.policy import Action
from sandbox.sec.profiles import nesting_rules
from sandbox.sec.syscalls import Arch, syscall_number, table
from sandbox.sec.traces import TOKEN, traceless_policy
from tests.support import needs

pytestmark = pytest.mark.unprivileged
C = Path(__file__).parents[2] / "sandbox/_launch/c"
POLICIES = [
    profile_policy(Profile.DEFAULT),
    profile_policy(Profile.DEFAULT, clone3=True),
    profile_policy(Profile.STRICT),
    profile_policy(Profile.DEFAULT).first(*nesting_rules()),
    Policy((), default=ALLOW, unknown=LOG, foreign=ALLOW),
    Policy((rule("openat", KILL_PROCESS, eq(0, 3)),), default=LOG),
]
ARCHES = list(Arch)
# Numbers that mean something to some call, and any others.
VALUES = st.sampled_from([0, 1, 2, 3, 15, 16, 0x40, 0x241, 0x400000, 0x5401, 0x5412, 0x7E020000, 0xFFFFFFF0, 0xFFFFFFF7, 0xFFFFFFF8, TOKEN]) | st.integers(
    0, (1 << 64) - 1
)
CALLS = st.sampled_from(ARCHES).flatmap(lambda arch: st.tuples(st.just(arch), st.sampled_from(sorted(table(arch)))))
ARGUMENTS = st.tuples(*[VALUES] * 6)


def decide(policy: Policy, name: str, *args: int, arch: Arch = Arch.X86_64) -> Action:
    return policy.decide(arch, syscall_number(name, arch=arch), (*args, *[0] * (6 - len(args))))


@given(st.sampled_from(POLICIES), CALLS, ARGUMENTS)
def test_it_forbids_what_is_forbidden_and_never_hides_it(policy: Policy, call: tuple[Arch, str], args: tuple[int, ...]) -> None:
    arch, name = call
    ours, theirs = decide(traceless_policy(policy), name, *args, arch=arch), decide(policy, name, *args, arch=arch)
    if theirs in (ALLOW, LOG):
        is_clock = name in {"clock_gettime", "clock_getres", "clock_nanosleep", "timer_create"}
        assert ours in (theirs, ALLOW, NOTIFY) or (is_clock and ours == fail(errno.EINVAL))
    else:
        assert ours == theirs


@given(st.sampled_from(POLICIES), CALLS, ARGUMENTS)
def test_init_is_never_reported(policy: Policy, call: tuple[Arch, str], args: tuple[int, ...]) -> None:
    arch, name = call
    args = (*args[:5], TOKEN)
    if decide(policy, name, *args, arch=arch) in (ALLOW, LOG):
        assert decide(traceless_policy(policy), name, *args, arch=arch) != NOTIFY


@pytest.mark.parametrize("policy", POLICIES[:3])
@pytest.mark.parametrize(
    "call",
    [
        ("openat", 0, 0, 0x241), ("openat", 0, 0, 2), ("openat", 0, 0, 0x40), ("openat", 0, 0, 0x200), ("openat", 0, 0, 0x410002),
        ("openat", 0, 0, 1 << 32 | 1), ("open", 0, 1), ("openat2",), ("creat",), ("mkdir",), ("mkdirat",), ("unlinkat",), ("renameat2",), ("linkat",),
        ("symlinkat",), ("mknodat",), ("fchmod",), ("fchmodat",), ("fchownat",), ("utimensat",), ("setxattr",), ("fsetxattr",), ("removexattr",),
        ("truncate",), ("ftruncate",), ("fallocate",), ("shmget",), ("shmat",), ("shmctl",), ("semget",), ("semop",), ("msgget",), ("msgsnd",),
        ("mq_open",), ("mq_unlink",), ("socket", 1), ("socket", 2, 1), ("socketpair", 1), ("connect",), ("bind",), ("fcntl", 0, 4), ("fcntl", 0, 8),
        ("fcntl", 0, 1024), ("fcntl", 0, 1 << 32 | 4), ("flock",), ("ioctl", 0, 0x5421), ("ioctl", 0, 1 << 32 | 0x5421), ("prlimit64", 1),
        ("sched_setaffinity", 1), ("sched_setscheduler", 0), ("setpriority",), ("ioprio_set",), ("prctl", 35), ("io_setup",), ("inotify_init1",),
        ("memfd_create",), ("pidfd_open",), ("clock_gettime", 0xFFFFFFEE), ("rt_sigqueueinfo",), ("splice",), ("seccomp",), ("landlock_create_ruleset",),
    ],
)  # fmt: skip
def test_what_could_leave_something_is_reported(policy: Policy, call: tuple[str, *tuple[int, ...]]) -> None:
    name, *args = call
    assert decide(policy, name, *args) == ALLOW, "else this says nothing"
    assert decide(traceless_policy(policy), name, *args) == NOTIFY


@pytest.mark.parametrize("policy", POLICIES[:3])
@pytest.mark.parametrize(
    "call",
    [
        ("openat", 0, 0, 0x80000), ("open", 0, 0x10000), ("read",), ("write",), ("mmap",), ("brk",), ("execve",), ("exit_group",), ("fork",), ("clone", 17),
        ("wait4",), ("pipe2",), ("dup2",), ("fcntl", 0, 1030), ("ioctl", 0, 0x5401), ("clock_gettime", 1), ("clock_gettime", 3), ("futex",),
        ("prlimit64", 0, 3), ("getdents64",), ("readlink",), ("prctl", 15), ("rt_sigaction",), ("nanosleep",), ("epoll_wait",), ("kill",), ("setsid",),
    ],
)  # fmt: skip
def test_what_ordinary_programs_do_is_not(policy: Policy, call: tuple[str, *tuple[int, ...]]) -> None:
    name, *args = call
    assert decide(traceless_policy(policy), name, *args) == ALLOW


@pytest.mark.parametrize("clock", [0xFFFFFFF0 | kind for kind in range(8)])
def test_the_cpu_time_of_init_is_nobodys_to_ask_for(clock: int) -> None:
    for policy in POLICIES:
        for number in (clock, 0xABCD << 32 | clock):  # the kernel takes an int
            assert decide(traceless_policy(policy), "clock_gettime", number) == fail(errno.EINVAL)


def test_namespaces_of_their_own_are_reported_where_they_are_allowed() -> None:
    nesting = traceless_policy(POLICIES[3])
    assert decide(nesting, "clone", 0x10000011) == NOTIFY
    assert decide(nesting, "unshare", 0x10000000) == NOTIFY
    assert decide(nesting, "mount") == NOTIFY


def test_what_nobody_knows_is_reported_where_it_is_allowed() -> None:
    policy = traceless_policy(POLICIES[4])
    assert (policy.decide(Arch.X86_64, 5000), policy.decide(Arch.X86_64, 1, audit_arch=3), policy.default) == (NOTIFY, NOTIFY, NOTIFY)


# ---- Init's reading of the policy ----

JUDGE = """
#include <stdio.h>
#include <stdlib.h>
#include "judge.h"
int main(void) {
    static struct sock_filter program[4096];
    struct seccomp_data data;
    unsigned length, count;
    if (fread(&length, 4, 1, stdin) != 1 || fread(program, sizeof *program, length, stdin) != length || fread(&count, 4, 1, stdin) != 1)
        return 1;
    while (count-- && fread(&data, sizeof data, 1, stdin) == 1)
        printf("%u\\n", judge(program, length, &data));
    return 0;
}
"""


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("judge")
    (directory / "judge.c").write_text(JUDGE)
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    subprocess.run(["gcc", *flags, f"-I{C}", "-o", directory / "judge", directory / "judge.c"], check=True)
    return directory / "judge"


def judged(judge: Path, program: bytes, calls: list[tuple[int, int, tuple[int, ...]]]) -> list[int]:
    data = b"".join(struct.pack("<iIQ6Q", number, audit, 0, *args) for number, audit, args in calls)
    sent = struct.pack("<I", len(program) // 8) + program + struct.pack("<I", len(calls)) + data
    return [int(line) for line in subprocess.run([judge], input=sent, stdout=subprocess.PIPE, check=True).stdout.split()]


@needs("program:gcc")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("arch", ARCHES)
def test_init_reads_a_policy_as_it_is_meant(judge: Path, policy: Policy, arch: Arch) -> None:
    values = (0, 1, 3, 0x10000011, 0x5412, 0xDEAD << 32 | 0x5412, 0x0020000, 0xFFFFFFFF)
    calls = [(number, arch.audit, (a, b, 0, 0, 0, 0)) for number in (*table(arch).values(), 999) for a in values for b in (0, 1, 0x5412)]
    calls.append((1, 3, (0,) * 6))
    expected = [policy.decide(arch, number, args, audit_arch=audit).code for number, audit, args in calls]
    assert judged(judge, compile_policy(policy, arch), calls) == expected


@needs("program:gcc")
@pytest.mark.parametrize(
    "program",
    [b"", struct.pack("<HBBI", 0x20, 0, 0, 64), struct.pack("<HBBI", 0x20, 0, 0, 2), struct.pack("<HBBI", 0x05, 0, 0, 7), struct.pack("<HBBI", 0x16, 0, 0, 0)],
)
def test_what_is_no_program_forbids(judge: Path, program: bytes) -> None:
    assert judged(judge, program, [(1, 2, (0,) * 6)]) == [KILL_PROCESS.code]
