"""What is taken back, in which order, and what happens when that fails."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox._undo import Undo


def test_the_last_is_taken_back_first_and_once() -> None:
    done: list[int] = []
    with Undo() as undo:
        for number in range(3):
            undo.callback(done.append, number)
    undo.close()
    assert done == [2, 1, 0]


def test_what_is_kept_or_taken_over_waits_for_its_new_owner() -> None:
    done: list[str] = []
    with Undo() as outer:
        outer.callback(done.append, "outer")
        with Undo() as inner:
            inner.callback(done.append, "inner")
            outer.take(inner)
        kept = outer.keep()
    assert done == []
    kept.close()
    assert done == ["inner", "outer"]


def test_all_calls_are_made_and_the_first_failure_is_raised() -> None:
    done: list[str] = []

    def fail(error: BaseException) -> None:
        done.append(str(error))
        raise error

    undo = Undo()
    undo.callback(done.append, "last")
    undo.callback(fail, KeyError("second"))
    undo.callback(fail, KeyboardInterrupt("first"))
    with pytest.raises(KeyboardInterrupt, match="first"):
        undo.close()
    assert done == ["first", "'second'", "last"]
    undo.close()


def test_a_failure_on_the_way_back_tells_what_it_came_after() -> None:
    with pytest.raises(OSError, match="closing") as caught, Undo() as undo:  # noqa: PT012 - both of it are what is tried
        undo.callback(_raise, OSError("closing"))
        raise ValueError("within")
    assert isinstance(caught.value.__context__, ValueError)


def _raise(error: BaseException) -> None:
    raise error


class Interrupted(list[Any]):
    """A list in which Ctrl-C comes once, when something has been taken from it."""

    def __init__(self, items: list[Any]) -> None:
        super().__init__(items)
        self.interrupts = 1

    def pop(self, index: Any = -1) -> Any:
        item = super().pop(index)
        if len(self) == 1 and self.interrupts:
            self.interrupts = 0
            raise KeyboardInterrupt
        return item


def test_an_interrupt_between_two_calls_does_not_keep_the_rest_from_being_taken_back() -> None:
    done: list[str] = []
    stack = Undo()
    stack._calls = Interrupted([(done.append, ("first",)), (done.append, ("second",)), (done.append, ("last",))])
    with pytest.raises(KeyboardInterrupt):
        stack.close()
    assert done[::len(done) - 1] == ["last", "first"]
