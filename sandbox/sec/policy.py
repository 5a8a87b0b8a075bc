"""A seccomp policy as plain data: what becomes of each system call. `decide` says what it means, `compiler` makes BPF of it.

How a system call is judged:
1. It enters through another ABI than the architecture's own 64-bit one (32-bit code, ``int 0x80``, x32): `Policy.foreign`.
2. Its number has no name in `syscalls` (newer than this library, or a gap): `Policy.unknown`.
3. The rules that name it, in order: the first whose conditions all hold says the action.
4. None does: `Policy.default`.

Conditions see the arguments as the registers hold them, never what a pointer points at (that could change after the
look). Where the kernel takes an ``int``, it drops the high 32 bits: such an argument must be compared with ``bits=32``,
or a caller would pass by with rubbish in the high word (CVE-2019-7303).
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterable, Sequence
from typing import Final

import attrs
from attrs import field, frozen

from sandbox.errors import UsageError
from sandbox.sec.syscalls import Arch, all_names, syscall_name

__all__ = [
    "ALLOW",
    "KILL_PROCESS",
    "LOG",
    "NOTIFY",
    "Action",
    "Condition",
    "Op",
    "Policy",
    "Rule",
    "among",
    "eq",
    "fail",
    "ge",
    "gt",
    "le",
    "lt",
    "ne",
    "rule",
]

X32_BIT: Final = 0x40000000  # __X32_SYSCALL_BIT of <asm/unistd.h>
NO_NUMBER: Final = 0xFFFFFFFF  # syscall(-1), as tracers and tests do it: an unknown number, not x32
_MAX_ERRNO: Final = 4095  # MAX_ERRNO of the kernel; a larger one is cut to it


@frozen
class Action:
    """What becomes of a system call: `code` is what the filter returns to the kernel (SECCOMP_RET_* and its data)."""

    code: int
    name: str = field(eq=False)

    def __str__(self) -> str:
        return self.name


# <linux/seccomp.h>
ALLOW: Final = Action(0x7FFF0000, "allow")
LOG: Final = Action(0x7FFC0000, "allow and log")
NOTIFY: Final = Action(0x7FC00000, "notify")  # the container's init ends the program: Status.SYSCALL_DENIED
KILL_PROCESS: Final = Action(0x80000000, "kill")


def fail(number: int) -> Action:
    """Make the system call return *number* as its error (``errno.EPERM``); 0: it does nothing and reports success."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= _MAX_ERRNO:
        raise UsageError(f"errno: {number!r} is out of range; give 0 to {_MAX_ERRNO}")
    return Action(0x00050000 | number, errno.errorcode.get(number, f"errno {number}"))


ABSENT: Final = fail(errno.ENOSYS)  # as if the kernel were too old for it


class Op(enum.Enum):
    """How a condition compares, unsigned."""

    IN = "in"
    NOT_IN = "not in"
    GE = ">="
    GT = ">"
    LE = "<="
    LT = "<"


@frozen
class Condition:
    """Compare ``argument[index] & mask``, cut to *bits*, with *values* (one value but for IN and NOT_IN)."""

    index: int
    op: Op
    values: tuple[int, ...]
    mask: int
    bits: int

    def __attrs_post_init__(self) -> None:
        most = (1 << self.bits) - 1
        if not 0 <= self.index <= 5:
            raise UsageError(f"condition: argument {self.index} does not exist; a system call has arguments 0 to 5")
        if self.bits not in (32, 64) or not 0 <= self.mask <= most:
            raise UsageError(f"condition: {self.bits} bits with mask {self.mask:#x}; bits are 32 or 64, and the mask fits into them")
        if len(self.values) != 1 and self.op not in (Op.IN, Op.NOT_IN):
            raise UsageError(f"condition: '{self.op.value}' compares with one value, not {len(self.values)}")
        for value in self.values:
            if not 0 <= value <= most:
                raise UsageError(f"condition: {value:#x} does not fit into {self.bits} bits; negative numbers are given as the register holds them")

    def holds(self, args: Sequence[int]) -> bool:
        """Say whether it holds for the six *args*."""
        value, least = args[self.index] & self.mask, self.values[0] if self.values else 0
        match self.op:
            case Op.IN:
                return value in self.values
            case Op.NOT_IN:
                return value not in self.values
            case Op.GE:
                return value >= least
            case Op.GT:
                return value > least
            case Op.LE:
                return value <= least
            case Op.LT:
                return value < least

    def __str__(self) -> str:
        full = self.mask == (1 << self.bits) - 1
        left = f"arg{self.index}{'' if full else f' & {self.mask:#x}'}"
        values = ", ".join(f"{value:#x}" for value in self.values)
        return f"{left} {self.op.value} {{{values}}}" if self.op in (Op.IN, Op.NOT_IN) else f"{left} {self.op.value} {values}"


def _condition(index: int, op: Op, values: tuple[int, ...], mask: int | None, bits: int) -> Condition:
    return Condition(index, op, values, (1 << bits) - 1 if mask is None else mask, bits)


def eq(index: int, value: int, *, mask: int | None = None, bits: int = 64) -> Condition:
    """Hold when argument *index* (only the bits of *mask*, when given) is *value*."""
    return _condition(index, Op.IN, (value,), mask, bits)


def ne(index: int, value: int, *, mask: int | None = None, bits: int = 64) -> Condition:
    """Hold when argument *index* is not *value*."""
    return _condition(index, Op.NOT_IN, (value,), mask, bits)


def among(index: int, values: Iterable[int], *, mask: int | None = None, bits: int = 64) -> Condition:
    """Hold when argument *index* is one of *values*; no values: never."""
    return _condition(index, Op.IN, tuple(values), mask, bits)


def ge(index: int, value: int, *, mask: int | None = None, bits: int = 64) -> Condition:
    """Hold when argument *index*, unsigned, is at least *value*."""
    return _condition(index, Op.GE, (value,), mask, bits)


def gt(index: int, value: int, *, mask: int | None = None, bits: int = 64) -> Condition:
    """Hold when argument *index*, unsigned, is above *value*."""
    return _condition(index, Op.GT, (value,), mask, bits)


def le(index: int, value: int, *, mask: int | None = None, bits: int = 64) -> Condition:
    """Hold when argument *index*, unsigned, is at most *value*."""
    return _condition(index, Op.LE, (value,), mask, bits)


def lt(index: int, value: int, *, mask: int | None = None, bits: int = 64) -> Condition:
    """Hold when argument *index*, unsigned, is below *value*."""
    return _condition(index, Op.LT, (value,), mask, bits)


@frozen
class Rule:
    """The system calls of *names* end in *action* when all of *when* hold (none: always)."""

    names: tuple[str, ...]
    action: Action
    when: tuple[Condition, ...] = ()

    def __attrs_post_init__(self) -> None:
        unknown = [name for name in self.names if name not in all_names()]
        if unknown:
            raise UsageError(f"seccomp: {unknown[0]!r} is no system call known here; see syscalls(2) for the names")


def rule(names: str | Iterable[str], action: Action, *when: Condition) -> Rule:
    """Make a `Rule`; *names* may be one string with spaces in between.

    Raises: UsageError: a name that no architecture has.
    """
    return Rule(tuple(names.split() if isinstance(names, str) else names), action, when)


@frozen(cache_hash=True)
class Policy:
    """What becomes of every system call; how it is judged stands at the top of this module.

    Names that an architecture does not have are skipped there: one policy serves both.
    """

    rules: tuple[Rule, ...]
    default: Action
    unknown: Action = ABSENT
    foreign: Action = KILL_PROCESS

    def first(self, *rules: Rule) -> Policy:
        """Return a policy in which *rules* are asked before these."""
        return attrs.evolve(self, rules=(*rules, *self.rules)) if rules else self

    @property
    def notifies(self) -> bool:
        """Whether some system call is reported to the container's init instead of failing."""
        return NOTIFY in (self.default, self.unknown, self.foreign) or any(r.action == NOTIFY for r in self.rules)

    def always_allows(self, name: str) -> bool:
        """Say whether system call *name* is allowed whatever its arguments."""
        for item in self.rules:
            if name in item.names:
                if item.action != ALLOW:
                    return False
                if not item.when:
                    return True
        return self.default == ALLOW

    def decide(self, arch: Arch, number: int, args: Sequence[int] = (0,) * 6, *, audit_arch: int | None = None) -> Action:
        """Say what becomes of system call *number* with *args* on *arch*; *audit_arch*: entered through that ABI (AUDIT_ARCH_*)."""
        if audit_arch not in (None, arch.audit):
            return self.foreign
        if arch is Arch.X86_64 and X32_BIT <= number < NO_NUMBER:
            return self.foreign
        name = syscall_name(number, arch=arch)
        if name not in all_names():
            return self.unknown
        for item in self.rules:
            if name in item.names and all(condition.holds(args) for condition in item.when):
                return item.action
        return self.default
