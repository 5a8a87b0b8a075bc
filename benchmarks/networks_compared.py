"""How networks behave here, of dockerd and of podman, asked of the real ones: ``python -m benchmarks.networks_compared [ours|docker|podman ...]``.

As root, with busybox (static), iproute2, nftables and, for the others, Debian's docker.io and podman. The host's part is played by a network
namespace of its own, with a mount namespace; another host's by one more: nothing of the machine's is touched. Every question is put to all in the
same words, and what is printed is what a program saw; docs/reference/networks-compared.md says what it means.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

from attrs import define, field

from benchmarks import docker
from sandbox import Container, Network, SandboxError

HOST, WORLD = "203.0.113.1", "203.0.113.2"
PORT: Final = 8080
_INSIDE: Final = "SANDBOX_COMPARED_INSIDE"
_WHO: Final = "#!/bin/sh\necho\necho $REMOTE_ADDR\n"
_APPLETS: Final = ("sh", "cat", "httpd", "wget", "nslookup", "ip", "sleep", "grep", "echo")
_FETCH: Final = "timeout 2 busybox wget -q -O - http://{}:{}/cgi-bin/who 2>&1 || echo no answer"
SERVE: Final = ("httpd", "-f", "-p", str(PORT), "-h", "/www")


class Engine(ABC):
    """One of those that are asked. Networks and containers have names, and last until `close`."""

    name: str

    @abstractmethod
    def network(self, name: str, *, internal: bool = False) -> None:
        """Make one."""

    @abstractmethod
    def run(self, name: str, *networks: str, ports: Sequence[str] = (), alias: str = "") -> str:
        """Start a container with a server; gives "", or the error."""

    @abstractmethod
    def inside(self, name: str, command: str) -> str:
        """What a line of shell says in there."""

    @abstractmethod
    def host_port(self, name: str) -> int:
        """Where the server is published."""

    @abstractmethod
    def crash(self) -> None:
        """Kill the engine by signal 9."""

    def address(self, name: str) -> str:
        return self.inside(name, "ip -4 -o addr show dev eth0").split()[3].partition("/")[0]


@define(eq=False)
class Ours(Engine):
    root: str
    stack: ExitStack
    name: str = "ours"
    _networks: dict[str, Network] = field(factory=dict[str, Network])
    _containers: dict[str, Container] = field(factory=dict[str, Container])

    def network(self, name: str, *, internal: bool = False) -> None:
        self._networks[name] = self.stack.enter_context(Network(name, internal=internal))

    def run(self, name: str, *networks: str, ports: Sequence[str] = (), alias: str = "") -> str:
        from sandbox import Join

        net = [Join(self._networks[network], aliases=[alias] if alias else []) for network in networks]
        try:
            c = self.stack.enter_context(Container(self.root, net=net or None, hostname=name, name=name, ports=ports))
        except SandboxError as error:
            return str(error)
        self._containers[name] = c
        self.stack.callback(c.popen(SERVE).kill)
        return ""

    def inside(self, name: str, command: str) -> str:
        said: str = self._containers[name].exec(["sh", "-c", command], text=True).stdout
        return said.strip()

    def host_port(self, name: str) -> int:
        return self._containers[name].ports[f"{PORT}/tcp"][0].port

    def crash(self) -> None:
        raise NotImplementedError  # see `left_by_ours`: another process


@define(eq=False)
class Cli(Engine):
    """Docker's words, which are podman's too."""

    name: str
    command: list[str]
    daemon: int | None = None
    more: tuple[str, ...] = ()  # options of run

    def _say(self, *words: str) -> str:
        done = subprocess.run([*self.command, *words], capture_output=True, text=True, check=False)
        if done.returncode == 0 or not done.stderr.strip():
            return done.stdout.strip()
        lines = done.stderr.strip().splitlines()
        return "error: " + next((line for line in lines if "rror" in line), lines[-1])

    def network(self, name: str, *, internal: bool = False) -> None:
        said = self._say("network", "create", *(["--internal"] if internal else []), name)
        if said.startswith("error"):
            raise RuntimeError(said)

    def run(self, name: str, *networks: str, ports: Sequence[str] = (), alias: str = "") -> str:
        first = ["--network", networks[0]] if networks else []
        words = [*first, *(["--network-alias", alias] if alias else []), *(word for port in ports for word in ("-p", port))]
        said = self._say("run", "-d", "--name", name, "--hostname", name, *self.more, *words, docker.IMAGE, *SERVE)
        for network in networks[1:]:
            self._say("network", "connect", network, name)
        return said if said.startswith("error") else ""

    def inside(self, name: str, command: str) -> str:
        return self._say("exec", name, "sh", "-c", command)

    def host_port(self, name: str) -> int:
        return int(self._say("port", name, str(PORT)).splitlines()[0].rpartition(":")[2])

    def crash(self) -> None:
        if self.daemon is None:
            raise NotImplementedError  # podman has no engine that could be killed
        os.kill(self.daemon, 9)


# ---- Questions ----


@define
class Places:
    """From where is asked: here, and from another host, of which *other* is the pid."""

    other: int

    def here(self, command: str) -> str:
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False).stdout.strip()

    def there(self, command: str) -> str:
        return self.here(f"nsenter --net=/proc/{self.other}/ns/net sh -c {shlex.quote(command)}")


@define
class Before:
    """What the host was like before the engine."""

    settings: dict[str, str]
    links: set[str]
    rules: int

    @classmethod
    def now(cls) -> Before:
        settings = {name: _setting(name) for name in ("net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet")}
        return cls(settings, _links(), len(_rules()))


def examine(engine: Engine, places: Places, before: Before) -> dict[str, str]:
    """Ask everything; what could not be asked has the error for an answer."""
    for name, internal in (("front", False), ("back", False), ("inside", True)):
        engine.network(name, internal=internal)
    if error := engine.run("web", "front", ports=[str(PORT)], alias="www"):
        raise RuntimeError(error)
    engine.run("sister", "front")
    engine.run("stranger", "back")
    engine.run("local", "front", ports=[f"127.0.0.1::{PORT}"])
    engine.run("hidden", "inside")
    engine.run("hidden2", "inside")
    engine.run("both", "inside", "front")
    questions: dict[str, Callable[[], object]] = {
        "interfaces of the host's that came": lambda: len(_links() - before.links),
        "lines of the host's rules that came": lambda: len(_rules()) - before.rules,
        "settings of the host's that changed": lambda: _changed(before),
        **_publishing(engine, places),
        **_reach(engine),
        **_names(engine),
    }
    return {question: _answer(ask) for question, ask in questions.items()}


def _changed(before: Before) -> str:
    return ", ".join(f"{name}: {value} to {_setting(name)}" for name, value in before.settings.items() if _setting(name) != value) or "none"


def _publishing(engine: Engine, places: Places) -> dict[str, Callable[[], object]]:
    port, local = engine.host_port("web"), engine.host_port("local")

    def past_the_host(name: str) -> str:
        address = engine.address(name)
        return places.there(f"ip route replace {address}/32 via {HOST}; {_FETCH.format(address, PORT)}")

    return {
        "published, from 127.0.0.1: who asks": lambda: places.here(_FETCH.format("127.0.0.1", port)),
        "published, from the host by its address: who asks": lambda: places.here(_FETCH.format(HOST, port)),
        "published, from another host: who asks": lambda: places.there(_FETCH.format(HOST, port)),
        "published, from the container itself by the host's address": lambda: engine.inside("web", _FETCH.format(HOST, port)),
        "published, from a container of another network": lambda: engine.inside("stranger", _FETCH.format(HOST, port)),
        "published at 127.0.0.1, from 127.0.0.1": lambda: places.here(_FETCH.format("127.0.0.1", local)),
        "published at 127.0.0.1, from another host by the host's address": lambda: places.there(_FETCH.format(HOST, local)),
        "published at 127.0.0.1, from another host that routes to the container": lambda: past_the_host("local"),
        "not published, from another host that routes to the container": lambda: past_the_host("sister"),
        "not published, from the host to the container's address": lambda: places.here(_FETCH.format(engine.address("sister"), PORT)),
        "a port that a container has": lambda: engine.run("clash", "front", ports=[f"{port}:{PORT}"]),
        "a port that a program has": lambda: _with_server(lambda taken: engine.run("clash2", "front", ports=[f"{taken}:{PORT}"])),
        "a range for one port": lambda: engine.run("range", "front", ports=[f"9000-9010:{PORT}"]) or engine.host_port("range"),
        "a port of an internal network": lambda: engine.run("in", "inside", ports=[f"9100:{PORT}"]) or places.here(_FETCH.format("127.0.0.1", 9100)),
    }


def _reach(engine: Engine) -> dict[str, Callable[[], object]]:
    gateway = "$(ip route | grep default | grep -o 'via [0-9.]*' | grep -o '[0-9.]*')"
    return {
        "a container of the same network": lambda: engine.inside("web", _FETCH.format(engine.address("sister"), PORT)),
        "a container of another network": lambda: engine.inside("stranger", _FETCH.format(engine.address("sister"), PORT)),
        "another host": lambda: engine.inside("web", _FETCH.format(WORLD, PORT)),
        "a service of the host's, by the host's address": lambda: engine.inside("web", _FETCH.format(HOST, 7000)),
        "a service of the host's, by the gateway": lambda: engine.inside("web", _FETCH.format(gateway, 7000)),
        "from an internal network: another host": lambda: engine.inside("hidden", _FETCH.format(WORLD, PORT)),
        "the default route of a container in an internal network and another": lambda: engine.inside("both", "ip route | grep default"),
        "IPv6 addresses where none was asked for": lambda: engine.inside("web", "ip -6 -o addr show dev eth0 | grep -c inet6"),
        "capabilities of its programs": lambda: engine.inside("web", "grep CapEff /proc/self/status").split()[-1],
    }


def _names(engine: Engine) -> dict[str, Callable[[], object]]:
    found = "timeout 5 busybox nslookup -type=a {0} 2>&1 | grep -A1 Name: | grep -o 'Address.*'"
    why = "timeout 5 busybox nslookup -type=a {0} 2>&1 | grep -o 'NXDOMAIN\\|SERVFAIL\\|REFUSED\\|timed out' || echo no answer in 5 s"
    look = f"{found} || {why} | head -n 1"
    return {
        "a container's name": lambda: engine.inside("web", look.format("sister")),
        "an alias": lambda: engine.inside("sister", look.format("www")),
        "a name of another network": lambda: engine.inside("stranger", look.format("sister")),
        "in an internal network: a container's name": lambda: engine.inside("hidden", look.format("hidden2")),
        "in an internal network: a name beyond": lambda: engine.inside("hidden", look.format("example.org")),
        "/etc/resolv.conf": lambda: engine.inside("web", "grep -v '^#' /etc/resolv.conf").replace("\n", "; "),
        "/etc/hosts": lambda: engine.inside("both", "cat /etc/hosts").replace("\n", "; "),
    }


def left(engine: Engine) -> str:
    """What is there 2 s after the engine was killed."""
    before, port = _links(), engine.host_port("web")
    engine.crash()
    time.sleep(2)
    reached = subprocess.run(["sh", "-c", _FETCH.format(HOST, port)], capture_output=True, text=True, check=False).stdout.strip()
    return f"{len(_links() & before)} interfaces, {len(_rules())} lines of rules; the published port answers: {reached}"


def left_by_ours(root: str) -> str:
    """The same of ours, whose engine is the process that imports it."""
    code = (
        "import signal, sys\nfrom sandbox import Container, Network\nnet = Network().create()\n"
        f"c = Container({root!r}, net=net, ports=['9200:{PORT}']).create()\nc.popen({SERVE!r})\nprint('up', flush=True)\nsignal.pause()\n"
    )
    before = _links()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    time.sleep(2)
    reached = subprocess.run(["sh", "-c", _FETCH.format(HOST, 9200)], capture_output=True, text=True, check=False).stdout.strip()
    return f"{len(_links() - before)} interfaces, {len(_rules())} lines of rules; the published port answers: {reached}"


def _answer(ask: Callable[[], object]) -> str:
    try:
        return " ".join(str(ask()).split()) or "nothing"
    except (SandboxError, RuntimeError, ValueError, IndexError, KeyError) as error:
        return f"({type(error).__name__}: {error})"


def _with_server(ask: Callable[[int], object]) -> object:
    import socket

    with socket.create_server(("", 0)) as server:
        return ask(server.getsockname()[1])


def _setting(name: str) -> str:
    with open(f"/proc/sys/{name}", encoding="ascii") as file:
        return file.read().strip()


def _links() -> set[str]:
    return {line.split()[1].partition("@")[0].rstrip(":") for line in _said("ip", "-o", "link").splitlines()}


def _rules() -> list[str]:
    return _said("nft", "list", "ruleset").splitlines()


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# ---- The stage ----


def main() -> int:
    asked = sys.argv[1:] or ["ours", "docker", "podman"]
    if _INSIDE not in os.environ:
        status = 0
        for each in asked:  # each on a host of its own
            command = ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, "-m", "benchmarks.networks_compared", each]
            status |= subprocess.call(command, env={**os.environ, _INSIDE: "1"})
        return status
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="compared-"))
        os.chmod(scratch, 0o755)
        root = _root(scratch)
        places = Places(_world(stack, root))
        before = Before.now()
        engine = _engine(asked[0], root, scratch, stack)
        print(f"== {engine.name}")
        for question, answer in examine(engine, places, before).items():
            print(f"{question}: {answer}", flush=True)
        if isinstance(engine, Cli) and engine.daemon is not None:
            print(f"after kill -9 of it: {left(engine)}")
            os.remove(f"{scratch}/docker/pid")  # which the one that was killed could not
            docker.daemon(scratch, stack, network=())  # takes up what the first one left, and so can remove it
            _remove_all(engine)
    return 0


def _root(scratch: str) -> str:
    """A root directory with busybox and a server that says who asks."""
    root = os.path.join(scratch, "root")
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "www/cgi-bin"):
        os.makedirs(os.path.join(root, name))
    found = shutil.which("busybox")
    if found is None:
        raise SystemExit("networks_compared: takes busybox (Debian: busybox-static)")
    shutil.copy(found, os.path.join(root, "bin/busybox"))
    for applet in (*_APPLETS, "timeout", "head"):
        os.symlink("busybox", os.path.join(root, "bin", applet))
    with open(os.path.join(root, "www/cgi-bin/who"), "w", encoding="ascii") as file:
        file.write(_WHO)
    os.chmod(file.name, 0o755)
    return root


def _world(stack: ExitStack, root: str) -> int:
    """Another host, with a server; and one of this host's. Gives the pid of what keeps the other one."""
    keeper = stack.enter_context(subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 100000"], stdout=subprocess.PIPE))
    stack.callback(keeper.kill)
    assert keeper.stdout is not None
    keeper.stdout.readline()
    inside = f"nsenter --net=/proc/{keeper.pid}/ns/net"
    for line in (
        "ip link set lo up",
        f"ip link add wan type veth peer name eth0 netns {keeper.pid}",
        f"ip address add {HOST}/24 dev wan",
        "ip link set wan up",
        f"{inside} ip link set lo up",
        f"{inside} ip address add {WORLD}/24 dev eth0",
        f"{inside} ip link set eth0 up",
        f"ip route add default via {WORLD}",
    ):
        subprocess.run(line.split(), check=True)
    with open("/proc/sys/net/ipv4/ip_forward", "w", encoding="ascii") as file:
        file.write(os.environ.get("FORWARDS", "1"))  # FORWARDS=0: a host that does not
    for prefix, port in ((inside.split(), PORT), ([], 7000)):
        server = stack.enter_context(subprocess.Popen([*prefix, "busybox", "httpd", "-f", "-p", str(port), "-h", f"{root}/www"]))
        stack.callback(server.kill)
    return keeper.pid


def _engine(name: str, root: str, scratch: str, stack: ExitStack) -> Engine:
    if name == "ours":
        print(f"after kill -9 of our process: {left_by_ours(root)}")
        return Ours(root, stack)
    if name == "docker":
        command = docker.daemon(scratch, stack, network=())
        with open(f"{scratch}/docker/pid", encoding="ascii") as file:
            engine = Cli("docker", command, int(file.read()))
    else:
        for place in ("/var/lib/cni", "/run/netns", "/etc/cni"):
            if not os.path.isdir(place):
                os.mkdir(place)
                stack.callback(os.rmdir, place)
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", place], check=False)
        os.makedirs("/etc/cni/net.d", exist_ok=True)
        home = f"{scratch}/podman"
        places = ["--root", f"{home}/data", "--runroot", f"{home}/run", "--tmpdir", f"{home}/tmp", "--network-config-dir", "/etc/cni/net.d"]
        # Debian's default, crun, refuses hosts with both kinds of control groups.
        engine = Cli("podman", ["podman", *places, "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", "runc"])
        engine.more = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")  # its own wish may be above what this host allows
    stack.callback(lambda: _remove_all(engine))
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run([*engine.command, "import", "-", docker.IMAGE], stdin=tar.stdout, capture_output=True, check=True)
    return engine


def _remove_all(engine: Cli) -> None:
    """Containers outlive the engine, and would the stage."""
    found = subprocess.run([*engine.command, "ps", "-aq"], capture_output=True, text=True, check=False).stdout.split()
    if found:
        subprocess.run([*engine.command, "rm", "-f", *found], capture_output=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
