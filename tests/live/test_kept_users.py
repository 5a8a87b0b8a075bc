"""Networks that ordinary users keep: the same as root's, but for the namespace, which is there while somebody is in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import Container, Join, NetworkStore, UnsupportedError, UsageError
from sandbox._networks.kept import KeptNetwork
from tests.live.test_network_store import another_process, ask, await_true
from tests.live.test_network_store import store as store  # noqa: PLC0414 - a fixture
from tests.live.test_network_store import test_a_container_is_in_kept_and_other_networks_at_once as test_several_networks  # noqa: F401
from tests.live.test_network_store import test_a_container_that_has_ended_holds_nothing as test_ended  # noqa: F401
from tests.live.test_network_store import test_a_forked_child_has_containers_of_its_own_there as test_forked  # noqa: F401
from tests.live.test_network_store import test_a_network_is_made_found_listed_and_removed as test_made_found_removed  # noqa: F401
from tests.live.test_network_store import test_a_network_outlives_the_process_that_made_it as test_outlives  # noqa: F401
from tests.live.test_network_store import test_a_warm_network_stays_ready_and_lets_go_without_its_containers as test_warm  # noqa: F401
from tests.live.test_network_store import test_containers_of_two_processes_reach_each_other as test_two_processes  # noqa: F401
from tests.support import needs

pytestmark = [needs("user", "userns", "program:ip"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]


def holders(store: NetworkStore) -> list[list[int]]:
    return [[*map(int, line.split())] for line in Path(store.path, "shop", "holders").read_text().splitlines()]


def switch(container: Container) -> int:
    assert isinstance(container.network, KeptNetwork)
    return os.fstat(container.network.live.switch.fileno()).st_ino


def test_whoever_comes_after_a_killed_process_joins_those_who_are_still_there(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with another_process() as (first, address, _), Container(net="shop", hostname="client") as c:
        assert ask(c, "db").stdout == "hello\n"
        (of_first, *_), (mine, *_) = holders(store)
        assert (of_first, mine) == (first.pid, os.getpid())
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        await_true(lambda: [place.hostname for place in store.containers("shop")] == ["client"])
        with another_process() as (second, *_):
            assert ask(c, "server").stdout == "hello\n"
            assert [line[0] for line in holders(store)] == [os.getpid(), second.pid]
            assert len({line[3] for line in holders(store)}) == 1
    with Container(net=Join("shop", address=address)) as c:
        assert c.address == address


def test_the_last_who_leaves_or_is_killed_takes_the_namespace(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with another_process() as (process, _, pid):
        process.kill()
        process.wait()
        await_true(lambda: not os.path.exists(f"/proc/{pid}"))
    with Container(net="shop"):
        assert [line[0] for line in holders(store)] == [os.getpid()]
    assert holders(store) == []  # what else there is left is counted by the fixture


def test_what_a_holder_has_under_that_number_by_now_is_not_taken_for_the_network(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    file = Path(store.path, "shop", "holders")
    with Container(net="shop"):
        line = file.read_text().split()
    with open("/proc/self/ns/net") as hosts, open(os.devnull) as other:
        for fd in (hosts.fileno(), other.fileno(), 999):
            file.write_text(f"{line[0]} {line[1]} {fd} {line[3]}\n")
            with Container(net="shop") as c:
                assert switch(c) != os.fstat(hosts.fileno()).st_ino
    file.write_text("1 2\n")
    with pytest.raises(UsageError, match="damaged"), Container(net="shop"):
        pass


def test_what_is_not_there_is_refused_before_anything_is_touched(store: NetworkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox._networks.outlet.shutil.which", lambda _: None)
    with pytest.raises(UnsupportedError, match="apt install slirp4netns") as caught:
        store.create("shop")
    assert "internal=True" in str(caught.value)
    assert not os.path.exists(store.path)


def test_another_user_namespace_is_refused(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    code = "from sandbox import Container; Container(net='shop').create()"
    done = subprocess.run(["unshare", "--user", "--map-current-user", sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "another user namespace" in done.stderr) == (1, True), done.stderr


def test_the_command_line_keeps_networks_too(store: NetworkStore) -> None:
    def run(*words: str) -> str:
        return subprocess.run([sys.executable, "-m", "sandbox", *words], capture_output=True, text=True, check=True).stdout

    run("network", "create", "--internal", "shop")
    assert "shop" in run("network", "ls")
    with Container(net="shop", hostname="here") as c:
        assert run("run", "--rm", "--network", "shop", "getent", "hosts", "here").split()[0] == c.address
        assert "here" in run("network", "inspect", "shop")
    run("network", "prune", "-f")
    assert store.names() == []


def test_a_store_that_cannot_be_made_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="SANDBOX_NETWORKS"):
        NetworkStore(tmp_path / "file" / "networks").create("shop", internal=True)
