"""The spec and its operations: closed by default, one opt-out opens one thing, contradictions are refused; Landlock by ABI."""

from __future__ import annotations

import errno

import pytest

from sandbox._plan import DropBounding, Landlock, NoNewPrivs, Op, Seccomp, WriteProc
from sandbox.errors import UnsupportedError, UsageError
from sandbox.sec import (
    ALLOW,
    KILL_PROCESS,
    Arch,
    Policy,
    Profile,
    Security,
    capability_mask,
    fail,
    landlock_op,
    ops,
    profile_policy,
    rule,
    unenforced,
)
from sandbox.sec import capabilities as caps
from sandbox.sec import landlock as ll
from sandbox.sec.compiler import compile_policy
from sandbox.sec.syscalls import syscall_number

KINDS = [WriteProc, DropBounding, NoNewPrivs, Landlock, Seccomp]


def plan(security: Security | None = None, *, abi: int = 7, **options: object) -> tuple[Op, ...]:
    return ops(security or Security(), proc="proc", root="root", landlock_abi=abi, arch=Arch.X86_64, **options)  # type: ignore[arg-type]


def kinds(plan: tuple[Op, ...]) -> list[type[Op]]:
    return list(dict.fromkeys(type(op) for op in plan))


def one(plan: tuple[Op, ...], kind: type[Op]) -> Op:
    (found,) = [op for op in plan if isinstance(op, kind)]
    return found


def decide(security: Security, name: str, *args: int) -> object:
    policy = security.policy(clone3=False)
    assert policy is not None
    return policy.decide(Arch.X86_64, syscall_number(name, arch=Arch.X86_64), (*args, 0, 0, 0, 0, 0, 0)[:6])


def test_every_wall_stands_by_default_and_seccomp_comes_last():
    assert kinds(plan()) == KINDS
    assert isinstance(plan()[-1], Seccomp)


@pytest.mark.parametrize(
    ("opened", "missing"),
    [
        (Security(seccomp=False), [Seccomp]),
        (Security(no_new_privs=False), [NoNewPrivs]),
        (Security(landlock=False), [Landlock]),
        (Security(nesting=True), [WriteProc, Landlock]),
        (Security(masks=False), []),
    ],
)
def test_an_opt_out_opens_one_thing(opened: Security, missing: list[type[Op]]):
    assert kinds(plan(opened)) == [kind for kind in KINDS if kind not in missing]


def test_the_filter_is_the_profiles():
    for profile in Profile:
        op = one(plan(Security(profile)), Seccomp)
        assert op == Seccomp(compile_policy(profile_policy(profile), Arch.X86_64), flags=4, listen=profile is Profile.STRICT)
    assert one(plan(clone3=True), Seccomp) != one(plan(), Seccomp)
    assert Security("strict") == Security(Profile.STRICT)


def test_a_policy_of_ones_own_replaces_the_profile():
    policy = Policy((rule("read", KILL_PROCESS),), default=ALLOW)
    assert one(plan(Security(seccomp=policy)), Seccomp) == Seccomp(compile_policy(policy, Arch.X86_64), flags=4)


def test_system_calls_are_added_and_taken_by_name():
    security = Security(allow_syscalls=["keyctl", "mount"], deny_syscalls=["ptrace"])
    assert decide(security, "keyctl") == decide(security, "mount") == ALLOW
    assert decide(security, "ptrace") == fail(errno.EPERM)
    assert decide(security, "bpf") == fail(errno.EPERM)
    assert decide(Security(deny_syscalls=["clone"]), "clone", 17) == fail(errno.EPERM)


def test_nesting_opens_namespaces_and_mounts_only():
    security = Security("strict", nesting=True)
    assert decide(security, "unshare", 0x10000000) == decide(security, "mount") == decide(security, "clone3") == ALLOW
    assert decide(security, "bpf") != ALLOW
    assert decide(Security(nesting=True, deny_syscalls=["clone3"]), "clone3") == fail(errno.EPERM)


def keep(security: Security, *, host_view: bool = False) -> int:
    op = one(plan(security, host_view=host_view), DropBounding)
    assert isinstance(op, DropBounding)
    return op.keep


def test_capabilities_are_none_for_the_host_view_and_dockers_less_three_for_images():
    assert keep(Security(), host_view=True) == 0
    assert keep(Security()) == caps.DEFAULT


def test_an_empty_list_of_capabilities_means_none():
    assert keep(Security(capabilities=[])) == 0


def test_capabilities_can_be_set_added_and_dropped():
    assert keep(Security(capabilities=["chown", "KILL"]), host_view=True) == capability_mask(["CHOWN", "KILL"])
    assert keep(Security(cap_add=["NET_RAW"])) == caps.DEFAULT | capability_mask(["NET_RAW"])
    assert keep(Security(cap_drop=["CHOWN"])) == caps.DEFAULT & ~capability_mask(["CHOWN"])
    assert keep(Security(cap_drop=["ALL"], cap_add=["CHOWN"])) == capability_mask(["CHOWN"])
    assert keep(Security(cap_drop=["SYS_ADMIN"], cap_add=["ALL"])) == caps.ALL & ~capability_mask(["SYS_ADMIN"])
    assert keep(Security(cap_add=["NET_RAW"]), host_view=True) == capability_mask(["NET_RAW"])


@pytest.mark.parametrize(
    "options",
    [
        {"profile": "lax"},
        {"profile": None},
        {"seccomp": None},
        {"seccomp": "default"},
        {"allow_syscalls": ["nonsense"]},
        {"allow_syscalls": "mount"},
        {"deny_syscalls": ["nonsense"]},
        {"allow_syscalls": ["mount"], "deny_syscalls": ["mount"]},
        {"seccomp": False, "allow_syscalls": ["mount"]},
        {"capabilities": ["nonsense"]},
        {"capabilities": "CHOWN"},
        {"cap_add": ["CHOWN"], "cap_drop": ["CHOWN"]},
        {"landlock": "yes"},
        {"landlock": True, "nesting": True},
        {"no_new_privs": None},
        {"masks": 0},
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object]):
    with pytest.raises(UsageError):
        Security(**options)  # type: ignore[arg-type]


def test_the_same_spec_gives_the_same_operations():
    assert plan(Security(cap_add=["CHOWN"])) is plan(Security(cap_add=["CAP_CHOWN"]))


@pytest.mark.parametrize("abi", [-1, 0, 1])
def test_without_landlock_it_is_left_out_and_said_or_demanded_and_refused(abi: int):
    assert Landlock not in kinds(plan(abi=abi))
    (sentence,) = unenforced(Security(), landlock_abi=abi)
    assert sentence.startswith("landlock: off")
    assert unenforced(Security(landlock=False), landlock_abi=abi) == ()
    with pytest.raises(UnsupportedError, match="Landlock"):
        plan(Security(landlock=True), abi=abi)


def test_what_an_older_landlock_does_not_cover_is_said():
    assert unenforced(Security(), landlock_abi=7) == unenforced(Security(), landlock_abi=6) == ()
    assert "truncating" in unenforced(Security(), landlock_abi=2)[0]
    assert "truncating" not in unenforced(Security(), landlock_abi=4)[0]


@pytest.mark.parametrize(
    ("abi", "fs", "scoped"), [(2, 0x3FFF, 0), (3, 0x7FFF, 0), (4, 0x7FFF, 0), (5, 0xFFFF, 0), (6, 0xFFFF, 3), (7, 0xFFFF, 3), (9, 0xFFFF, 3)]
)
def test_landlock_asks_only_for_what_its_abi_knows(abi: int, fs: int, scoped: int):
    op = landlock_op(abi, root="root", writable=["tmp", "root"], writable_files=["file"], devices=["dev"])
    assert op is not None
    assert (op.handled_fs, op.handled_net, op.scoped) == (fs, 0, scoped)
    for _, access in op.rules:
        assert access & ~fs == 0


def test_landlock_writes_only_where_mounts_are_writable_and_makes_no_device():
    op = landlock_op(7, root="root", writable=["tmp"], writable_files=["file"], devices=["dev"])
    assert op is not None
    rules = dict(op.rules)
    assert rules["root"] == ll.EXECUTE | ll.READ_FILE | ll.READ_DIR
    assert rules["tmp"] == op.handled_fs & ~(ll.MAKE_CHAR | ll.MAKE_BLOCK)
    # The kernel refuses any other right for what is no directory (EINVAL).
    assert rules["file"] & ~(ll.EXECUTE | ll.WRITE_FILE | ll.READ_FILE | ll.TRUNCATE | ll.IOCTL_DEV) == 0
    assert rules["dev"] & (ll.MAKE_REG | ll.REMOVE_FILE | ll.EXECUTE) == 0
    assert op.handled_fs & ll.MAKE_CHAR
    assert op.handled_fs & ll.MAKE_BLOCK


def test_landlock_merges_the_rules_of_one_slot():
    op = landlock_op(7, root="root", writable=["root"])
    assert op is not None
    assert [slot for slot, _ in op.rules] == ["root"]


def test_landlock_wants_slots():
    with pytest.raises(UsageError, match="root"):
        landlock_op(7, root="")
    with pytest.raises(UsageError, match="slot"):
        landlock_op(7, root="root", writable=[""])
