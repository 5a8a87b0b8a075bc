"""From a `Policy` to BPF: a balanced search over runs of numbers with one fate, then the conditions of those that have any.

Theory of operation
-------------------
Every number has a *fate*: a chain of (conditions, action) that ends with an unconditional action. Adjacent numbers of
equal fate make one run; the runs are found by binary search (`jge`), so that a system call costs about seven
comparisons, and installing the filter little: since 5.11 the kernel follows each number through the program once, to
learn which calls are always allowed (kernel/seccomp.c `seccomp_cache_prepare`), and never runs it again for those.
The actions' returns stand at the end and are shared.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby

from sandbox.sec import bpf
from sandbox.sec.bpf import JEQ_K, JGE_K, JGT_K, Assembler, Label
from sandbox.sec.policy import NO_NUMBER, X32_BIT, Action, Condition, Op, Policy
from sandbox.sec.syscalls import Arch, table

__all__ = ["compile_policy"]

_Chain = tuple[tuple[tuple[Condition, ...], Action], ...]
_Runs = list[tuple[int, _Chain]]  # (first number, fate), by number


@lru_cache(maxsize=64)
def compile_policy(policy: Policy, arch: Arch) -> bytes:
    """Compile *policy* for *arch* into an array of struct sock_filter, as `_plan.Seccomp` takes it. Cached.

    Raises: BpfError: more than 4,096 instructions.
    """
    return _Compiler(policy, arch).compile()


def _fates(policy: Policy, arch: Arch) -> dict[int, _Chain]:
    chains: dict[str, list[tuple[tuple[Condition, ...], Action]]] = {name: [] for name in table(arch)}
    for item in policy.rules:
        for name in item.names:
            chain = chains.get(name)
            if chain is not None and (not chain or chain[-1][0]):  # what follows an unconditional action is never asked
                chain.append((item.when, item.action))
    return {table(arch)[name]: _ended(chain, policy.default) for name, chain in chains.items()}


def _ended(chain: list[tuple[tuple[Condition, ...], Action]], default: Action) -> _Chain:
    if not chain or chain[-1][0]:
        chain = [*chain, ((), default)]
    # Conditions before an end with the same action change nothing.
    while len(chain) > 1 and chain[-2][1] == chain[-1][1]:
        del chain[-2]
    return tuple(chain)


def _runs(policy: Policy, arch: Arch) -> _Runs:
    fates = _fates(policy, arch)
    unknown: _Chain = (((), policy.unknown),)
    end = max(fates) + 1
    steps = [(number, fates.get(number, unknown)) for number in range(end)]
    steps.append((end, unknown))
    if arch is Arch.X86_64:
        steps += [(X32_BIT, (((), policy.foreign),)), (NO_NUMBER, unknown)]
    return [next(group) for _, group in groupby(steps, key=lambda step: step[1])]


class _Compiler:
    def __init__(self, policy: Policy, arch: Arch) -> None:
        self._policy = policy
        self._arch = arch
        self._asm = Assembler()
        self._chains: dict[_Chain, Label] = {}
        self._returns: dict[Action, Label] = {}

    def compile(self) -> bytes:
        asm, native = self._asm, Label()
        asm.load(bpf.ARCH)
        asm.jump_if(JEQ_K, self._arch.audit, native, self._action(self._policy.foreign))
        asm.place(native)
        asm.load(bpf.NR)
        self._search(_runs(self._policy, self._arch))
        for chain, label in self._chains.items():
            asm.place(label)
            self._chain(chain)
        for action, label in self._returns.items():
            asm.place(label)
            asm.ret(action.code)
        return asm.assemble()

    def _action(self, action: Action) -> Label:
        return self._returns.setdefault(action, Label())

    def _fate(self, chain: _Chain) -> Label:
        if len(chain) == 1 and not chain[0][0]:
            return self._action(chain[0][1])
        return self._chains.setdefault(chain, Label())

    def _search(self, runs: _Runs) -> None:
        """Write the search through *runs*: one comparison for each but the first, the lower half right behind its comparison."""
        if len(runs) == 1:
            self._asm.jump(self._fate(runs[0][1]))  # the whole program has one fate
            return
        middle = len(runs) // 2
        low, high = runs[:middle], runs[middle:]
        low_label = self._fate(low[0][1]) if len(low) == 1 else Label()
        high_label = self._fate(high[0][1]) if len(high) == 1 else Label()
        self._asm.jump_if(JGE_K, high[0][0], high_label, low_label)
        for half, label in ((low, low_label), (high, high_label)):
            if len(half) > 1:
                self._asm.place(label)
                self._search(half)

    def _chain(self, chain: _Chain) -> None:
        *conditional, (_, last) = chain
        for index, (conditions, action) in enumerate(conditional):
            otherwise = Label() if index + 1 < len(conditional) else self._action(last)
            for condition in conditions[:-1]:
                holds = Label()
                _compare(self._asm, condition, holds, otherwise)
                self._asm.place(holds)
            _compare(self._asm, conditions[-1], self._action(action), otherwise)
            if index + 1 < len(conditional):
                self._asm.place(otherwise)


def _compare(asm: Assembler, c: Condition, holds: Label, fails: Label) -> None:
    if c.op in (Op.NOT_IN, Op.LT, Op.LE):  # not in, < and <= are in, >= and > with the ways exchanged
        holds, fails = fails, holds
    if c.op in (Op.IN, Op.NOT_IN):
        _among(asm, c, holds, fails)
    else:
        _order(asm, c, JGE_K if c.op in (Op.GE, Op.LT) else JGT_K, holds, fails)


def _among(asm: Assembler, c: Condition, holds: Label, fails: Label) -> None:
    """Test for equality with one of the values: those of one high word together."""
    by_high: dict[int, list[int]] = {}
    for value in sorted(set(c.values)):
        by_high.setdefault(value >> 32, []).append(value & 0xFFFFFFFF)
    if not by_high:
        asm.jump(fails)
        return
    if c.bits == 64:
        lows = {high: Label() for high in by_high}
        _load(asm, bpf.argument_high(c.index), c.mask >> 32)
        _equal(asm, lows, fails)
    else:
        lows = {0: Label()}
    for high, label in lows.items():
        asm.place(label)
        _load(asm, bpf.argument_low(c.index), c.mask & 0xFFFFFFFF)
        _equal(asm, dict.fromkeys(by_high[high], holds), fails)


def _equal(asm: Assembler, ways: dict[int, Label], otherwise: Label) -> None:
    *early, (last, last_label) = ways.items()
    for value, label in early:
        following = Label()
        asm.jump_if(JEQ_K, value, label, following)
        asm.place(following)
    asm.jump_if(JEQ_K, last, last_label, otherwise)


def _order(asm: Assembler, c: Condition, code: int, holds: Label, fails: Label) -> None:
    """Test for >= or > (*code*): the high words decide unless they are equal."""
    high, low = c.values[0] >> 32, c.values[0] & 0xFFFFFFFF
    if c.bits == 64:
        not_above, equal = Label(), Label()
        _load(asm, bpf.argument_high(c.index), c.mask >> 32)
        asm.jump_if(JGT_K, high, holds, not_above)
        asm.place(not_above)
        asm.jump_if(JEQ_K, high, equal, fails)
        asm.place(equal)
    _load(asm, bpf.argument_low(c.index), c.mask & 0xFFFFFFFF)
    asm.jump_if(code, low, holds, fails)


def _load(asm: Assembler, offset: int, mask: int) -> None:
    asm.load(offset)
    if mask != 0xFFFFFFFF:
        asm.and_with(mask)
