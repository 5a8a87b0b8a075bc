"""A Redis for each test: started in milliseconds in a container of its own, gone with it, whatever the test does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from visits import Visits

from sandbox.pytest_plugin import Service, ServiceContainer

# Debian's redis-server, as the view of the host shows it. It stays in the foreground, and writes into its container only.
REDIS = ("redis-server", "--port", "6379", "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", "/tmp")


def start_redis(container: ServiceContainer) -> Service:
    # Not for the port: Redis listens before it has read its data, and answers LOADING until then.
    return container.serve(REDIS).wait_for(log="Ready to accept connections")


@pytest.fixture
def redis(container: ServiceContainer) -> Service:
    return start_redis(container)


@pytest.fixture
def visits(redis: Service) -> Iterator[Visits]:
    client = Visits(redis.connect(6379))
    yield client
    client.close()
