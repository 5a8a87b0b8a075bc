"""Containers that outlive their command share namespaces with others by Docker's words."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from sandbox import Container, UsageError, keep
from tests.live.test_keep import Cli, remove_all
from tests.live.test_keep import cli as cli  # noqa: PLC0414 - fixtures
from tests.live.test_keep import store as store  # noqa: PLC0414
from tests.support import needs

pytestmark = [needs("root", "userns")]


@pytest.fixture(autouse=True)
def gone(no_leftovers: None, store: Path) -> Generator[None]:
    yield
    remove_all()


def test_ipc_and_uts_of_a_container_are_shared_by_its_name(cli: Cli) -> None:
    cli("run", "-d", "--name", "one", "--hostname", "alpha", "--ipc", "shareable", "--", "sh", "-c", "echo hi > /dev/shm/f; chmod 600 /dev/shm/f; sleep 1000")
    cli("exec", "one", "sh", "-c", "until [ -s /dev/shm/f ]; do :; done")
    cli("run", "-d", "--name", "two", "--ipc", "container:one", "--uts", "container:one", "--", "sleep", "1000")
    assert cli("exec", "two", "sh", "-c", "cat /dev/shm/f; hostname; cat /etc/hostname") == "hi\nalpha\nalpha\n"
    assert cli("run", "--ipc", "container:two", "--", "cat", "/dev/shm/f") == "hi\n"
    for kind in ("ipc", "uts"):
        assert cli("exec", "one", "readlink", f"/proc/self/ns/{kind}") == cli("exec", "two", "readlink", f"/proc/self/ns/{kind}")
    of_two = json.loads(cli("inspect", "two"))[0]["HostConfig"]
    assert (of_two["IpcMode"], of_two["UTSMode"], of_two["CgroupnsMode"]) == ("container:one", "container:one", "private")
    assert "share ipc with process" in cli("run", "--explain", "--ipc", "container:one", "--", "true")
    cli("rm", "-f", "one")
    assert cli("exec", "two", "cat", "/dev/shm/f") == "hi\n"
    assert "no container 'one'" in cli("run", "--ipc", "container:one", "--", "true", code=125)
    assert "no container 'one'" in cli("run", "-d", "--ipc", "container:one", "--", "true", code=125)


def test_what_is_not_offered_is_refused_in_the_background_too(cli: Cli) -> None:
    for words in (["--pid", "host"], ["--pid", "container:one"], ["--userns", "host"]):
        assert "is not offered" in cli("run", "-d", *words, "--", "true", code=125)
    assert "hostname" in cli("run", "-d", "--uts", "host", "--hostname", "beta", "--", "true", code=125)
    assert keep.containers() == []


def test_a_container_of_this_process_is_not_shared_with_one_that_outlives_it() -> None:
    with Container() as one, pytest.raises(UsageError, match="share: belongs to this process"):
        keep.start(["true"], share={"ipc": one})
