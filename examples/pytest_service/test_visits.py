"""Run it with ``pytest examples/pytest_service``, and with ``-n 2`` where pytest-xdist is installed."""

from __future__ import annotations

import contextlib

import pytest
from conftest import start_redis
from visits import Visits

from sandbox.pytest_plugin import Service, ServiceContainer


def test_visits_are_counted(visits: Visits) -> None:
    assert [visits.add("home"), visits.add("home"), visits.add("about")] == [1, 2, 1]
    assert visits.of("home") == 2


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_each_test_has_a_redis_of_its_own(visits: Visits, attempt: int) -> None:
    assert visits.add("home") == 1, f"attempt {attempt} sees what another has counted"


def test_forgetting_starts_anew(visits: Visits) -> None:
    visits.add("home")
    visits.forget()
    assert visits.of("home") == 0


def test_counts_survive_a_restart(redis: Service, visits: Visits, container: ServiceContainer) -> None:
    visits.add("home")
    assert redis.stop().exit_code == 0
    with contextlib.closing(Visits(start_redis(container).connect(6379))) as again:
        assert again.of("home") == 1


def test_a_redis_that_dies_is_noticed(redis: Service, visits: Visits) -> None:
    redis.process.kill()
    redis.process.wait()
    with pytest.raises(ConnectionError):
        visits.add("home")


@pytest.mark.sandbox(memory="32M")
def test_the_limit_is_for_redis_and_not_for_us(redis: Service, visits: Visits) -> None:
    assert "Ready to accept connections" in redis.output
    assert visits.add("home") == 1


@pytest.mark.sandbox(inside=True)
def test_no_redis_of_the_host_is_reached_from_inside() -> None:
    """This function itself runs in a container, on a network of its own."""
    import socket

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 6379))
