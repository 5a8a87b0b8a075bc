"""Plans without mount_setattr: every attribute is set, each on a mount that is attached by then."""

from __future__ import annotations

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from sandbox import _plan as plan
from sandbox._classic import without_mount_setattr

SLOTS = st.sampled_from(["a", "b"])
OPS = st.one_of(
    st.builds(plan.CloneTree, out=SLOTS, src=st.just("from")),
    st.builds(plan.SetAttr, slot=SLOTS, set=st.integers(1, 15), idmap=st.booleans()),
    st.builds(plan.Attach, slot=SLOTS, path=st.just("x"), at=st.just("at")),
    st.builds(plan.ReadOnlyPath, path=st.just("x"), at=st.just("at")),
    st.builds(plan.NewFs, SLOTS, st.just("tmpfs"), st.just(())),
)


def test_they_wait_for_their_mount_to_be_attached_in_whichever_part_that_is() -> None:
    early = plan.CloneTree("a", "from"), plan.SetAttr("a", set=1), plan.SetAttr("a", set=2)
    late = plan.MakeDir("x", "at"), plan.Attach("a", "x", "at"), plan.SetAttr("a", set=4)
    one, two = without_mount_setattr(early, late)
    assert one == early[:1]
    first, second = (plan.SetAttr("a", set=number, classic=True) for number in (1, 2))
    assert two == (*late[:2], first, second, plan.SetAttr("a", set=4, classic=True))


def test_a_slot_that_is_filled_anew_is_another_mount() -> None:
    ops = plan.CloneTree("a", "from"), plan.SetAttr("a", set=1), plan.CloneTree("a", "from"), plan.Attach("a", "x", "at")
    (changed,) = without_mount_setattr(ops)
    assert changed == (ops[0], plan.SetAttr("a", set=1, classic=True), *ops[2:])


def test_an_id_mapped_mount_stays_what_it_is() -> None:
    ops = plan.CloneTree("a", "from"), plan.SetAttr("a", idmap=True), plan.Attach("a", "x", "at")
    assert without_mount_setattr(ops) == (ops,)


@given(st.lists(st.lists(OPS, max_size=6), max_size=3))
def test_nothing_is_lost_and_the_rest_keeps_its_order(parts: list[list[plan.Op]]) -> None:
    changed = without_mount_setattr(*parts)
    assert len(changed) == len(parts)
    before, after = [op for part in parts for op in part], [op for part in changed for op in part]
    kept = [op for op in before if not isinstance(op, plan.SetAttr) or op.idmap]
    assert [
        evolve(op, classic=False) if isinstance(op, plan.ReadOnlyPath) else op for op in after if not isinstance(op, plan.SetAttr) or op.idmap
    ] == kept
    for slot in ("a", "b"):
        asked, done = ([op.set for op in ops if isinstance(op, plan.SetAttr) and op.slot == slot and not op.idmap] for ops in (before, after))
        assert sorted(asked) == sorted(done)
    assert all(op.classic for op in after if isinstance(op, plan.ReadOnlyPath) or (isinstance(op, plan.SetAttr) and not op.idmap))
