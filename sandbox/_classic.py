"""Plans for kernels without mount_setattr(2): before Linux 5.12, or where a filter around us refuses it. Pure.

mount_setattr gives a mount its attributes while it is attached nowhere, so that it never is where it could be used without them. What there
was before, mount(2), takes only a mount that is attached (sandbox/_launch/c/classic.c). So each `SetAttr` waits until its mount is. Nobody can
use it in between: it is attached in the mount namespace of an init that has started no program yet. Two things are not the same:

- A copy of a shared mount stays its peer until then, so that what is mounted on the host in between, below a source, appears in the copy. A
  bind that is recursive gives that the same attributes.
- There are no id-mapped mounts (they came with mount_setattr); who needs one has been refused before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import evolve

from sandbox import _plan as plan


def without_mount_setattr(*parts: Sequence[plan.Op]) -> tuple[tuple[plan.Op, ...], ...]:
    """The operations of *parts*, which are carried out one after the other, with attributes set by mount(2)."""
    waiting: dict[plan.Slot, list[plan.SetAttr]] = {}
    attached = _attached_later(parts)
    return tuple(tuple(_of_part(part, next_, waiting)) for part, next_ in zip(parts, attached, strict=True))


def _attached_later(parts: Iterable[Sequence[plan.Op]]) -> list[list[bool]]:
    """For each operation, whether the mount that is in its slot then, if it is a SetAttr, has still to be attached."""
    known: set[plan.Slot] = set()
    found: list[list[bool]] = []
    for part in reversed(list(parts)):
        answers: list[bool] = []
        for op in reversed(part):
            answers.append(isinstance(op, plan.SetAttr) and op.slot in known)
            if isinstance(op, plan.Attach):
                known.add(op.slot)
            else:
                known.discard(getattr(op, "out", plan.HOST))  # an earlier one is about another mount
        found.append(answers[::-1])
    return found[::-1]


def _of_part(part: Sequence[plan.Op], attached_later: Sequence[bool], waiting: dict[plan.Slot, list[plan.SetAttr]]) -> Iterator[plan.Op]:
    for op, later in zip(part, attached_later, strict=True):
        if isinstance(op, plan.SetAttr) and not op.idmap:
            classic = evolve(op, classic=True)
            if later:
                waiting.setdefault(op.slot, []).append(classic)
            else:
                yield classic
        elif isinstance(op, plan.ReadOnlyPath):
            yield evolve(op, classic=True)
        else:
            yield op
        if isinstance(op, plan.Attach):
            if op.optional and op.slot in waiting:
                raise AssertionError(f"{op.describe()}: a mount that may be missing cannot be given attributes afterwards")
            yield from waiting.pop(op.slot, ())
