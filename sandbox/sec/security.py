"""What a container's programs are allowed, as one spec, and the plan operations that make it so."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from attrs import field, frozen

from sandbox._plan import DropBounding, NoNewPrivs, Op, Seccomp, Slot
from sandbox._types import to_bool, to_items
from sandbox.errors import UnsupportedError, UsageError
from sandbox.sec import capabilities as caps
from sandbox.sec.compiler import compile_policy
from sandbox.sec.landlock import MIN_ABI, landlock_op
from sandbox.sec.policy import ALLOW, Policy, Rule, fail, rule
from sandbox.sec.profiles import Profile, namespace_limits_ops, nesting_rules, profile_policy
from sandbox.sec.syscalls import Arch
from sandbox.sec.traces import traceless_policy

__all__ = ["Security", "ops", "unenforced"]

# SECCOMP_FILTER_FLAG_SPEC_ALLOW: before Linux 5.16 a filter slowed its process down (SSBD) to no use; later kernels never do
# (commit 2f46993d83ff "x86: change default to spec_store_bypass_disable=prctl spectre_v2_user=prctl").
_SPEC_ALLOW: Final = 1 << 2
_EPERM: Final = 1


def _to_profile(value: Profile | str) -> Profile:
    for profile in Profile:
        if value in (profile, profile.value):
            return profile
    raise UsageError(f"profile: {value!r} is unknown; give {' or '.join(repr(p.value) for p in Profile)}")


def _to_names(value: Iterable[str]) -> tuple[str, ...]:
    names = value if isinstance(value, str) else to_items(value, what="capabilities", like="['CHOWN']")
    return caps.capability_names(caps.capability_mask(names))


def _to_optional_names(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if value is None else _to_names(value)


def _to_syscalls(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise UsageError(f"system calls: {value!r} is one string; give a list such as [{value!r}]")
    names = to_items(value, what="system calls", like="['io_uring_setup']")
    rule(names, ALLOW)  # knows every name, or says which not
    return names


def _check_bool(instance: object, attribute: object, value: object) -> None:
    del instance
    to_bool(value, what=getattr(attribute, "name", "value"))


@frozen(cache_hash=True)
class Security:
    """What a container's programs are allowed. The defaults are closed; each opt-out is one word, and opens one thing.

    profile: ``"default"``, or ``"strict"`` for judging (hostile system calls end the run as SYSCALL_DENIED).
    seccomp: True: the profile's filter; a `Policy`: that one instead; False: none.
    allow_syscalls, deny_syscalls: names added to or (EPERM) taken from the filter, whatever their arguments.
    no_new_privs: False lets set-user-id programs and file capabilities work, within the bounding set.
    capabilities: all that root inside can ever have. None: none in a view of the host, `capabilities.DEFAULT` in an image.
        Programs of other users have none in any case: ambient capabilities are never set.
    cap_add, cap_drop: changes to that, as Docker's (``cap_drop=["ALL"], cap_add=["CHOWN"]`` leaves CHOWN).
    landlock: None: where the kernel has it; True: fail without; False: off.
    masks: False leaves the kernel's files in /proc and /sys that Docker masks open to view (`fs` does the masking).
    nesting: True lets programs make namespaces and mounts: containers in the container. Landlock is off then, for it forbids mounts.

    Raises: UsageError: an unknown name or value, or two that contradict each other.
    """

    profile: Profile = field(default=Profile.DEFAULT, converter=_to_profile)
    seccomp: bool | Policy = field(default=True, kw_only=True)
    allow_syscalls: tuple[str, ...] = field(default=(), kw_only=True, converter=_to_syscalls)
    deny_syscalls: tuple[str, ...] = field(default=(), kw_only=True, converter=_to_syscalls)
    no_new_privs: bool = field(default=True, kw_only=True, validator=_check_bool)
    capabilities: tuple[str, ...] | None = field(default=None, kw_only=True, converter=_to_optional_names)
    cap_add: tuple[str, ...] = field(default=(), kw_only=True, converter=_to_names)
    cap_drop: tuple[str, ...] = field(default=(), kw_only=True, converter=_to_names)
    landlock: bool | None = field(default=None, kw_only=True)
    masks: bool = field(default=True, kw_only=True, validator=_check_bool)
    nesting: bool = field(default=False, kw_only=True, validator=_check_bool)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.seccomp, (bool, Policy)):
            raise UsageError(f"seccomp: {self.seccomp!r} is neither True, False nor a Policy")
        if self.landlock is not None and not isinstance(self.landlock, bool):
            raise UsageError(f"landlock: {self.landlock!r} is neither True, False nor None")
        if self.seccomp is False and (self.allow_syscalls or self.deny_syscalls):
            raise UsageError("allow_syscalls, deny_syscalls: there is no filter to change with seccomp=False")
        if self.nesting and self.landlock:
            raise UsageError("landlock=True forbids all mounts, nesting=True asks for them; give one of the two")
        self._refuse_both("allow_syscalls", self.allow_syscalls, "deny_syscalls", self.deny_syscalls)
        if len(self.cap_add) < len(caps.NAMES) and len(self.cap_drop) < len(caps.NAMES):  # ALL with exceptions is no contradiction
            self._refuse_both("cap_add", self.cap_add, "cap_drop", self.cap_drop)

    @staticmethod
    def _refuse_both(what: str, one: tuple[str, ...], other_what: str, other: tuple[str, ...]) -> None:
        if both := sorted(set(one) & set(other)):
            raise UsageError(f"{what}, {other_what}: {both[0]!r} is in both")

    @property
    def wants_capabilities(self) -> bool:
        """Whether any capability was asked for by name."""
        return bool(self.capabilities or self.cap_add or self.nesting)

    def bounding_mask(self, *, host_view: bool) -> int:
        """Return the capabilities that root inside can ever have, as a mask; *host_view*: the root is a view of the host's programs."""
        add, drop = caps.capability_mask(self.cap_add), caps.capability_mask(self.cap_drop)
        if add == caps.ALL:
            return caps.ALL & ~drop
        base = caps.capability_mask(self.capabilities) if self.capabilities is not None else 0 if host_view else caps.DEFAULT
        return (base & ~drop) | add

    def policy(self, *, clone3: bool) -> Policy | None:
        """Return the seccomp policy in force, None when it is off. *clone3*: init needs it (see `profile_policy`); a `Policy` of
        the caller's own must allow by itself what init needs.
        """
        if self.seccomp is False:
            return None
        base = self.seccomp if isinstance(self.seccomp, Policy) else profile_policy(self.profile, clone3=clone3)
        changes: list[Rule] = []
        if self.deny_syscalls:
            changes.append(rule(self.deny_syscalls, fail(_EPERM)))
        if self.allow_syscalls:
            changes.append(rule(self.allow_syscalls, ALLOW))
        return base.first(*changes, *(nesting_rules() if self.nesting else ()))

    def always_allows(self, *names: str) -> bool:
        """Say whether a program may make the system calls *names*, whatever their arguments. Cached."""
        return _always_allows(self, names)


@lru_cache(maxsize=64)
def _always_allows(security: Security, names: tuple[str, ...]) -> bool:
    policy = security.policy(clone3=False)
    return policy is None or all(map(policy.always_allows, names))


def ops(
    security: Security,
    *,
    proc: Slot,
    root: Slot,
    landlock_abi: int,
    writable: Iterable[Slot] = (),
    writable_files: Iterable[Slot] = (),
    devices: Iterable[Slot] = (),
    host_view: bool = False,
    clone3: bool = False,
    traceless: bool = False,
    arch: Arch | None = None,
) -> tuple[Op, ...]:
    """Return the operations that put *security* in force, the last of init's plan: after them nothing can be mounted. Cached.

    *proc*: slot of a procfs, through which namespaces are limited. *root*, *writable*, *writable_files*, *devices*: see
    `landlock.landlock_op`. *landlock_abi*: what the kernel offers, 0 for nothing. *host_view*: see `Security.bounding_mask`.
    *clone3*: see `profiles.profile_policy`; True where execs join their cgroup by CLONE_INTO_CGROUP. *traceless*: have init told of
    what could leave something behind (see `traces`); only with a filter.

    Raises: UnsupportedError: Landlock was demanded and is missing, or there is no filter for this architecture.
    """
    places = (proc, root, tuple(writable), tuple(writable_files), tuple(devices))
    return _ops(security, places, landlock_abi=landlock_abi, host_view=host_view, clone3=clone3, traceless=traceless, arch=arch)


_Places = tuple[Slot, Slot, tuple[Slot, ...], tuple[Slot, ...], tuple[Slot, ...]]


@lru_cache(maxsize=256)
def _ops(
    security: Security, at: _Places, *, landlock_abi: int, host_view: bool, clone3: bool, traceless: bool, arch: Arch | None
) -> tuple[Op, ...]:
    proc, root, writable, writable_files, devices = at
    result: list[Op] = []
    if not security.nesting:
        result += namespace_limits_ops(proc)
    result.append(DropBounding(security.bounding_mask(host_view=host_view)))
    # Before Landlock and seccomp: without it, both would need CAP_SYS_ADMIN.
    if security.no_new_privs:
        result.append(NoNewPrivs())
    if _wants_landlock(security, landlock_abi):
        walls = landlock_op(landlock_abi, root=root, writable=writable, writable_files=writable_files, devices=devices)
        result += [walls] if walls else []
    # Last: the filter need not allow what only the set-up does.
    policy = security.policy(clone3=clone3)
    if clone3 and policy is not None and not policy.always_allows("clone3"):
        raise UnsupportedError(
            "the seccomp policy does not allow clone3, by which init puts programs into their control groups on cgroup v2",
            feature="seccomp:clone3",
            remedy="allow it in the policy (profile_policy(..., clone3=True) does); what it may make is limited by user.max_*_namespaces inside",
        )
    if policy is not None:
        result.append(_filter(policy, arch or Arch.here(), traceless=traceless))
    return tuple(result)


def _filter(policy: Policy, arch: Arch, *, traceless: bool) -> Seccomp:
    program = compile_policy(policy, arch)
    if not traceless:
        return Seccomp(program, flags=_SPEC_ALLOW, listen=policy.notifies)
    return Seccomp(compile_policy(traceless_policy(policy), arch), flags=_SPEC_ALLOW, listen=True, policy=program)


def _wants_landlock(security: Security, abi: int) -> bool:
    if security.landlock and abi < MIN_ABI:
        raise UnsupportedError(
            f"Landlock was asked for, and the kernel offers {f'ABI {abi} only' if abi > 0 else 'none'}",
            feature="landlock",
            remedy=f"boot Linux 5.19 or later (ABI {MIN_ABI}) with landlock in the lsm= list, or leave landlock=None",
        )
    return security.landlock is not False and not security.nesting


def unenforced(security: Security, *, landlock_abi: int) -> tuple[str, ...]:
    """Say what of *security* this kernel cannot enforce, a sentence each: what ``c.degraded`` lists."""
    if security.landlock is False or security.nesting:
        return ()
    if landlock_abi < MIN_ABI:
        return (f"landlock: off, for the kernel offers {f'ABI {landlock_abi}' if landlock_abi > 0 else 'none'}; it takes ABI {MIN_ABI} (Linux 5.19)",)
    later = ((3, "truncating (Linux 6.2)"), (5, "ioctls of devices (Linux 6.10)"), (6, "signals and abstract sockets (Linux 6.12)"))
    missing = [what for abi, what in later if landlock_abi < abi]
    return (f"landlock: ABI {landlock_abi} does not cover {', '.join(missing)}",) if missing else ()
