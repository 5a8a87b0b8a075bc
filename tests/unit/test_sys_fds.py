from __future__ import annotations

import os
import threading

import pytest

from sandbox._sys.fds import Fd
from sandbox.errors import ClosedError


def null() -> int:
    return os.open("/dev/null", os.O_RDONLY)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_the_block_closes_it():
    with Fd(null()) as fd:
        number = fd.fileno()
        assert is_open(number)
    assert not is_open(number)
    assert fd.closed


def test_closing_twice_closes_nobody_elses_file():
    fd = Fd(null())
    number = fd.fileno()
    fd.close()
    other = null()
    try:
        assert other == number  # the kernel gives the lowest free number
        fd.close()
        assert is_open(other)
    finally:
        os.close(other)


def test_detach_hands_over():
    fd = Fd(null())
    number = fd.detach()
    fd.close()
    assert is_open(number)
    os.close(number)


@pytest.mark.parametrize("use", [Fd.fileno, Fd.detach])
def test_use_after_close_raises_closed(use):
    fd = Fd(null())
    fd.close()
    with pytest.raises(ClosedError):
        use(fd)


def test_it_is_close_on_exec_from_birth():
    inheritable = null()
    os.set_inheritable(inheritable, True)
    with Fd(inheritable) as fd, Fd.copy(fd.fileno()) as copy:
        assert not os.get_inheritable(fd.fileno())
        assert not os.get_inheritable(copy.fileno())
        assert copy.fileno() != fd.fileno()


def test_what_is_no_descriptor_is_refused():
    with pytest.raises(OSError, match="Bad file descriptor"):
        Fd(1 << 20)


def test_one_of_many_threads_detaches():
    for _ in range(50):
        fd, got = Fd(null()), []
        barrier = threading.Barrier(4)

        def take(fd=fd, got=got, barrier=barrier):
            barrier.wait()
            try:
                got.append(fd.detach())
            except ClosedError:
                got.append(None)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (number,) = [number for number in got if number is not None]
        os.close(number)


def test_a_forgotten_one_is_closed_with_a_warning():
    fd = Fd(null())
    number = fd.fileno()
    with pytest.warns(ResourceWarning, match="unclosed"):
        del fd
    assert not is_open(number)
