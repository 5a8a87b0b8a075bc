"""Compiled filters do what the policy says: for random policies, and for every call of the profiles on both architectures."""

from __future__ import annotations

import errno

import hypothesis
import pytest
from hypothesis import strategies as st

from sandbox.errors import UsageError
from sandbox.sec.bpf import decode
from sandbox.sec.compiler import compile_policy
from sandbox.sec.policy import ALLOW, KILL_PROCESS, LOG, NOTIFY, Action, Condition, Op, Policy, among, eq, fail, ge, gt, le, lt, ne, rule
from sandbox.sec.profiles import Profile, nesting_rules, profile_policy
from sandbox.sec.syscalls import Arch, all_names, syscall_number, table
from tests.unit.test_sec_bpf import execute, seccomp_data

AUDIT_ARCH_I386 = 0x40000003
AUDIT_ARCH_ARM = 0x40000028
X32 = 0x40000000
ARCHES = pytest.mark.parametrize("arch", list(Arch), ids=lambda arch: arch.value)

EDGES = (0, 1, 2, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, 1 << 63, (1 << 64) - 1)
words = st.one_of(st.sampled_from(EDGES), st.integers(0, (1 << 64) - 1))
actions = st.one_of(st.sampled_from([ALLOW, NOTIFY, KILL_PROCESS, LOG]), st.integers(0, 4095).map(fail))


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    bits = draw(st.sampled_from([32, 64]))
    most = (1 << bits) - 1
    fitting = words.map(lambda word: word & most)
    op = draw(st.sampled_from(Op))
    count = draw(st.integers(0, 4)) if op in (Op.IN, Op.NOT_IN) else 1
    values = tuple(draw(st.lists(fitting, min_size=count, max_size=count)))
    return Condition(draw(st.integers(0, 5)), op, values, draw(st.one_of(st.just(most), fitting)), bits)


# Few names, so that rules meet one another and runs are broken.
NAMES = ("read", "write", "open", "close", "ioctl", "clone", "personality", "io_uring_setup", "file_setattr", "mlock2")
rules = st.builds(
    lambda names, action, when: rule(names, action, *when),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4),
    actions,
    st.lists(conditions(), max_size=3),
)
policies = st.builds(
    lambda rules, default, unknown, foreign: Policy(tuple(rules), default, unknown, foreign), st.lists(rules, max_size=12), actions, actions, actions
)


def run(policy: Policy, arch: Arch, number: int, args: tuple[int, ...], audit: int | None = None) -> int:
    return execute(compile_policy(policy, arch), seccomp_data(number, arch.audit if audit is None else audit, args))[0]


@st.composite
def arguments(draw: st.DrawFn, policy: Policy) -> tuple[int, ...]:
    """Draw arguments near the values that the policy compares with: equal, one off, or with other bits in the high word."""
    near = [value for item in policy.rules for c in item.when for value in c.values] or [0]
    close = st.builds(
        lambda value, off, high: (value + off ^ high << 32) % (1 << 64),
        st.sampled_from(near),
        st.integers(-1, 1),
        st.sampled_from([0, 0, 1, 0xFFFFFFFF]),
    )
    return tuple(draw(st.one_of(close, words)) for _ in range(6))


@hypothesis.settings(max_examples=400)
@hypothesis.given(policies, st.sampled_from(Arch), st.data())
def test_a_compiled_filter_decides_as_the_policy_does(policy: Policy, arch: Arch, data: st.DataObject):
    numbers = [table(arch)[name] for name in NAMES if name in table(arch)]
    number = data.draw(st.one_of(st.sampled_from(numbers), st.integers(0, 500), st.sampled_from([X32, X32 | 1, 0xFFFFFFFF, 0x80000000, 0x3FFFFFFF])))
    args = data.draw(arguments(policy))
    audit = data.draw(st.sampled_from([arch.audit] * 4 + [AUDIT_ARCH_I386, AUDIT_ARCH_ARM, 0]))
    assert run(policy, arch, number, args, audit) == policy.decide(arch, number, args, audit_arch=audit).code


FLAGS = (1, 2, 10, 16, 17, 38, 40, 0x10000000, 0x02000000, 0x20000, 8, 0x0040000)
SAMPLES = [
    (0,) * 6,
    ((1 << 64) - 1,) * 6,
    *((value, other, 0, 0, 0, 0) for value in FLAGS for other in (1, 2, 3, 5, 0x5412, 0x541C, 0x5423)),
    *(
        (high | domain, kind, protocol, 0, 0, 0)
        for high in (0, 5 << 32)
        for domain in (1, 2, 10, 16)
        for kind in (1, 2, 3, 5, 0x80001)
        for protocol in (0, 6, 12, 17, 58, 132, 262)
    ),
    *((0, high | command, 0, 0, 0, 0) for high in (0, 1 << 32, 0xFFFFFFFF << 32) for command in (0x5412, 0x541C, 0x5423, 0x5413)),
]


@ARCHES
@pytest.mark.parametrize("profile", list(Profile), ids=lambda profile: profile.value)
@pytest.mark.parametrize("clone3", [False, True])
def test_profiles_decide_every_call_as_their_policy_does(profile: Profile, arch: Arch, clone3: bool):
    policy = profile_policy(profile, clone3=clone3)
    code = compile_policy(policy, arch)
    looked_at = {syscall_number(name, arch=arch) for item in policy.rules if item.when for name in item.names}
    for number in (*range(600), X32, X32 + 1, X32 + 512, 0xFFFFFFFE, 0xFFFFFFFF, 0x3FFFFFFF, 0x80000000):
        for args in SAMPLES if number in looked_at else SAMPLES[:2]:
            for audit in (arch.audit, AUDIT_ARCH_I386, AUDIT_ARCH_ARM):
                assert execute(code, seccomp_data(number, audit, args))[0] == policy.decide(arch, number, args, audit_arch=audit).code


@ARCHES
def test_the_default_profile_is_short_and_fast(arch: Arch):
    code = compile_policy(profile_policy(Profile.DEFAULT), arch)
    assert len(decode(code)) < 150
    constant = {name for name in table(arch) if not any(name in item.names and item.when for item in profile_policy(Profile.DEFAULT).rules)}
    assert max(execute(code, seccomp_data(table(arch)[name], arch.audit))[1] for name in constant) <= 12


def test_a_policy_of_one_fate_compiles():
    policy = Policy((), default=ALLOW, unknown=ALLOW, foreign=ALLOW)
    for arch in Arch:
        assert run(policy, arch, 0, (0,) * 6) == run(policy, arch, 9999, (0,) * 6, 0) == ALLOW.code


def test_no_rules_allow_nothing():
    policy = Policy((), default=fail(errno.EPERM))
    assert {run(policy, arch, number, (0,) * 6) for arch in Arch for number in table(arch).values()} == {fail(errno.EPERM).code}


def test_the_first_matching_rule_wins():
    policy = Policy(
        (rule("ioctl", KILL_PROCESS, eq(1, 5)), rule("ioctl", ALLOW, lt(1, 10)), rule("ioctl", NOTIFY), rule("ioctl", LOG)), default=fail(1)
    )
    assert [run(policy, Arch.X86_64, 16, (0, value, 0, 0, 0, 0)) for value in (5, 6, 10)] == [KILL_PROCESS.code, ALLOW.code, NOTIFY.code]
    assert run(policy.first(rule("ioctl", LOG)), Arch.X86_64, 16, (0, 5, 0, 0, 0, 0)) == LOG.code


@pytest.mark.parametrize(
    ("condition", "yes", "no"),
    [
        (eq(0, 1 << 40), [1 << 40], [0, (1 << 40) + 1, 1 << 41]),
        (ne(0, 1 << 40), [0, 1], [1 << 40]),
        (lt(0, 1 << 32), [0, 0xFFFFFFFF], [1 << 32, (1 << 32) + 1]),
        (le(0, 1 << 32), [0, 1 << 32], [(1 << 32) + 1, 2 << 32]),
        (gt(0, (1 << 32) + 5), [(1 << 32) + 6, 2 << 32], [6, (1 << 32) + 5]),
        (ge(0, (1 << 32) + 5), [(1 << 32) + 5, 2 << 32], [6, (1 << 32) + 4]),
        (eq(0, 5, bits=32), [5, 5 | 7 << 32], [6, 6 | 7 << 32]),
        (eq(0, 0x10, mask=0xF0), [0x10, 0x1F, 1 << 63 | 0x10], [0x20]),
        (eq(0, 0x1F, mask=0xF0), [], [0x10, 0x1F]),
        (ne(0, 0x1F, mask=0xF0), [0x10, 0x1F], []),
        (among(0, ()), [], [0, 1]),
        (among(0, (1, 1 << 32, 7)), [1, 7, 1 << 32], [0, (1 << 32) + 1, (1 << 32) + 7]),
    ],
    ids=str,
)
def test_conditions_compare_all_64_bits(condition: Condition, yes: list[int], no: list[int]):
    policy = Policy((rule("read", ALLOW, condition),), default=KILL_PROCESS)
    for arch in Arch:
        number = syscall_number("read", arch=arch)
        for value, action in [*((v, ALLOW) for v in yes), *((v, KILL_PROCESS) for v in no)]:
            args = (value, 0, 0, 0, 0, 0)
            assert policy.decide(arch, number, args) == action
            assert run(policy, arch, number, args) == action.code


@pytest.mark.parametrize(
    "make",
    [
        lambda: rule("raed", ALLOW),
        lambda: rule(["read", "raed"], ALLOW),
        lambda: fail(-1),
        lambda: fail(4096),
        lambda: eq(6, 0),
        lambda: eq(-1, 0),
        lambda: eq(0, -1),
        lambda: eq(0, 1 << 32, bits=32),
        lambda: eq(0, 0, bits=16),
        lambda: eq(0, 0, mask=1 << 32, bits=32),
        lambda: Condition(0, Op.LT, (1, 2), 1, 32),
    ],
)
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(UsageError):
        make()


def test_compiling_again_costs_nothing():
    first = compile_policy(profile_policy(Profile.STRICT), Arch.X86_64)
    assert compile_policy(Policy(profile_policy(Profile.STRICT).rules, fail(errno.EPERM)), Arch.X86_64) is first


def test_notifies_says_whether_a_listener_is_needed():
    assert profile_policy(Profile.STRICT).notifies
    assert not profile_policy(Profile.DEFAULT).notifies


@ARCHES
def test_nesting_rules_allow_what_they_name(arch: Arch):
    policy = profile_policy(Profile.DEFAULT).first(*nesting_rules())
    for name, flags in (("clone", 0x7E020011), ("unshare", 0x7E020000), ("mount", 0), ("setns", 0), ("clone3", 0)):
        assert policy.decide(arch, syscall_number(name, arch=arch), (flags, 0, 0, 0, 0, 0)) == ALLOW


def test_actions_say_what_they_are():
    assert [str(a) for a in (ALLOW, NOTIFY, KILL_PROCESS, fail(errno.EPERM), fail(0))] == ["allow", "notify", "kill", "EPERM", "errno 0"]
    assert fail(errno.EPERM) == Action(0x00050001, "anything")
    assert all_names() >= {"open", "openat"}
