"""The threads that carry out the stages of a build."""

from __future__ import annotations

import signal
import threading
from functools import partial

import pytest

from sandbox.builder._tasks import Task, carry_out

pytestmark = pytest.mark.unprivileged


def test_a_task_may_wait_for_one_that_was_begun_before_it():
    first = Task(lambda: 1)
    second = Task(lambda: first.result() + 1)
    carry_out([first, second], threads=2, stop=lambda: None)
    assert (first.result(), second.result()) == (1, 2)


def test_more_tasks_than_threads_are_all_done_in_order():
    done: list[int] = []
    carry_out([Task(partial(done.append, number)) for number in range(20)], threads=1, stop=lambda: None)
    assert done == list(range(20))


def test_what_fails_is_raised_where_the_result_is_asked_for():
    def fail() -> int:
        raise ValueError("no")

    task = Task(fail)
    carry_out([task], threads=1, stop=lambda: None)
    assert isinstance(task.error, ValueError)
    with pytest.raises(ValueError, match="no"):
        task.result()


@pytest.mark.parametrize("interrupts", [1, 2])
def test_an_interrupt_stops_the_tasks_and_is_raised_when_they_are_over(interrupts):
    main = threading.get_ident()
    stopped, over = threading.Event(), threading.Event()

    def work() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        stopped.wait()
        if interrupts == 2:
            signal.pthread_kill(main, signal.SIGINT)
        threading.Event().wait(0.2)  # what is not waited for would be found undone
        over.set()

    with pytest.raises(KeyboardInterrupt):
        carry_out([Task(work)], threads=1, stop=stopped.set)
    assert over.is_set()
