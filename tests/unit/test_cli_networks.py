"""What the options of ``sandbox run`` about networks mean, and how wrong ones are refused; without starting anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandbox import Container, ContainerNotFoundError, Join, NetworkNotFoundError, UsageError
from sandbox.cli import main, networks, options
from sandbox.cli.arguments import parse, parse_bench
from sandbox.net import HostPort

pytestmark = pytest.mark.unprivileged


@pytest.fixture(autouse=True)
def no_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_NETWORKS", str(tmp_path / "networks"))


def container(*words: str) -> dict[str, Any]:
    return dict(options.to_request(parse([*words, "--", "true"]), {}).container)


def join(*words: str) -> Join:
    (found,) = container(*words)["net"]
    assert isinstance(found, Join)
    return found


@pytest.mark.parametrize(("words", "net"), [([], None), (["--network", "none"], None), (["--network", "host"], "host"), (["--net=host"], "host")])
def test_modes(words: list[str], net: str | None) -> None:
    assert container(*words)["net"] == net


def test_a_network_for_this_run_with_a_place_in_it() -> None:
    found = join("--network", "new", "--ip", "10.1.2.3", "--mac-address", "02:42:0a:59:00:02", "--network-alias", "db", "--network-alias", "store")
    assert (found.address, found.mac, found.aliases) == ("10.1.2.3", "02:42:0a:59:00:02", ("db", "store"))
    assert not found.network.is_kept
    same = join("--network", "name=new,ip=10.1.2.3,mac-address=02:42:0a:59:00:02,alias=db,alias=store")
    assert (same.address, same.mac, same.aliases) == (found.address, found.mac, found.aliases)


def test_what_is_made_for_a_run_is_told_from_what_is_kept() -> None:
    made = container("--network", "new")
    assert networks.new_networks(made) == [made["net"][0].network]
    assert networks.new_networks(container("--network", "host")) == []


@pytest.mark.parametrize("words", [["-p", "8080:80"], ["-P"], ["-p", "53/udp", "--ip", "10.1.2.3"]])
def test_who_publishes_and_names_no_network_has_one_for_this_run(words: list[str]) -> None:
    made = container(*words)
    assert networks.new_networks(made) == [made["net"][0].network]
    assert networks.explained(made)[0].startswith("network new")
    assert container()["net"] is None
    assert networks.meant({"publish": ["80"], "link": []}) == ["new"]
    assert networks.meant({"publish_all": True, "network": ["shop"]}) == ["shop"]
    assert networks.meant({"dns": ["10.0.0.53"]}) == []


def test_networks_are_explained() -> None:
    made = container("--network", "new", "--ip", "10.1.2.3", "--network-alias", "db", "-p", "8080:80")
    assert networks.explained(made) == ["network new address=10.1.2.3 aliases=db", "publish 8080:80"]
    assert networks.explained(container()) == []
    at_a_free_port = " (at a free port of the host: standard error tells which)"
    made = container("--network", "new", "-p", "53/udp", "-P")
    assert networks.explained(made) == ["network new", f"publish 53/udp{at_a_free_port}", f"publish all ports of the image{at_a_free_port}"]


def test_ports_are_told_whose_place_on_the_host_was_not_said() -> None:
    ports = {"80/tcp": (HostPort("0.0.0.0", 8080), HostPort("0.0.0.0", 49153)), "53/udp": (HostPort("127.0.0.1", 53),), "9/tcp": (HostPort("0.0.0.0", 7),)}
    wanted = container("--network", "new", "-p", "8080:80", "-p", "80", "-p", "127.0.0.1::53/udp")  # and 9/tcp by -P
    assert networks.chosen_ports(wanted, ports) == ["80/tcp -> 0.0.0.0:49153", "53/udp -> 127.0.0.1:53", "9/tcp -> 0.0.0.0:7"]
    assert networks.chosen_ports(container("--network", "new"), {}) == []


def test_names_ports_and_servers_are_the_containers_own_words() -> None:
    found = container("--dns", "10.0.0.53", "--dns", "::1", "--dns-search", "a.example", "--add-host", "db:10.0.0.9", "--add-host", "six=[fd00::1]")
    assert (found["dns"], found["dns_search"]) == (["10.0.0.53", "::1"], ["a.example"])
    assert found["extra_hosts"] == {"db": "10.0.0.9", "six": "fd00::1"}
    assert Container(**found).spec.resolver.hosts == (("10.0.0.9", "db"), ("fd00::1", "six"))
    found = container("--network", "new", "-p", "8080:80", "--publish", "53/udp")
    assert found["ports"] == ["8080:80", "53/udp"]
    assert container("--network", "new", "-P")["publish_all"] is True
    assert networks.hosts(["six:fd00::1"]) == {"six": "fd00::1"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--network", "bridge"], "'new' is one for this run"),
        (["--network", "host", "--network", "new"], "goes with no other network"),
        (["--network", "none", "--network", "none"], "goes with no other network"),
        (["--ip", "10.1.2.3"], "only in a network"),
        (["--network", "host", "--network-alias", "a"], "only in a network"),
        (["--network", "new", "--network", "new", "--ip", "10.1.2.3"], "of which network"),
        (["--network", "name=new,ip=10.1.2.3", "--ip", "10.1.2.4"], "say it in one place"),
        (["--network", "name=new,ip=10.1.2.3,ip=10.1.2.4"], "said twice"),
        (["--network", "ip=10.1.2.3"], "has no name="),
        (["--network", "name=new,driver=x"], "none of name="),
        (["--network", "new", "--ip", "ten"], "not an address of IPv4"),
        (["--network", "new", "--mac-address", "x"], "six octets"),
        (["--network", "netns:../x"], "not a file name"),
        (["-p", "80", "--network", "none"], "not with --network none"),
        (["-P", "--network", "host"], "not with --network host"),
        (["--add-host", "db"], "not NAME:ADDRESS"),
        (["--add-host", ":10.0.0.1"], "not NAME:ADDRESS"),
        (["--add-host", "db:host-gateway"], "not offered"),
    ],
)
def test_what_makes_no_sense_is_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=said):
        container(*words)
    assert main(["run", *words, "--", "true"]) == 125
    assert capsys.readouterr().err.startswith("sandbox run: ")


def test_what_there_is_not_is_told() -> None:
    with pytest.raises(NetworkNotFoundError, match="no network 'shop'"):
        container("--network", "shop")
    for words in (["--network", "container:db"], ["--network", "new", "--link", "db"]):
        with pytest.raises(ContainerNotFoundError, match="no container 'db'"):
            container(*words)
    with pytest.raises(UsageError, match="goes with no other"):
        container("--network", "new", "--network", "container:db")


@pytest.mark.parametrize("word", ["new", "name=new,alias=db"])
def test_measuring_takes_no_network_of_its_own(word: str) -> None:
    with pytest.raises(UsageError, match="for sandbox run"):
        options.to_bench_request(parse_bench(["--network", word, "--", "true"]), {})


@pytest.mark.parametrize(
    "words",
    [[], ["none"], ["create"], ["create", "a", "b"], ["create", "--opt", "mtu", "x"], ["create", "--label", "=x", "y"], ["ls", "--filter", "size=3"],
     ["ls", "--filter", "x"], ["ls", "--filter", "dangling=x"], ["ls", "--format", "xml"], ["inspect"], ["rm"], ["prune", "-f", "--filter", "name=x"],
     ["prune", "-f", "--filter", "label=a", "--filter", "label=b"], ["ls", "--qui"]],
)  # fmt: skip
def test_wrong_use_of_the_command_for_networks(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["network", *words]) == 2
    assert "see sandbox network --help" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["connect", "disconnect"])
def test_a_container_that_is_not_there_is_told(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["network", command, "shop", "db"]) == 1
    assert "no container 'db'" in capsys.readouterr().err


def test_an_empty_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["network", "ls"]) == main(["network", "prune", "-f"]) == main(["network", "rm", "-f", "none"]) == 0
    assert capsys.readouterr().out.splitlines() == ["NETWORK ID   NAME   DRIVER   SCOPE", "none"]
    assert main(["network", "inspect", "none"]) == main(["network", "rm", "none"]) == 1
    assert capsys.readouterr().err.startswith("sandbox network: no network 'none'")
    assert main(["network", "--help"]) == main(["network", "create", "--help"]) == 0
