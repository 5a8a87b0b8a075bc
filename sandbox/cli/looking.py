"""Looking at containers that outlive their command, in Docker's words: ``sandbox ps|inspect|port``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from sandbox import ContainerNotFoundError, UsageError
from sandbox.cli import kept as by_name
from sandbox.cli import tables
from sandbox.cli.outcome import complain
from sandbox.cli.parser import Parser, WrongUseError
from sandbox.keep import SHORT_ID, Config, Kept, State, containers, find, to_result

Carry = Callable[[argparse.Namespace], int]
_FILTERS: Final = ("ancestor", "before", "exited", "health", "id", "label", "name", "network", "publish", "since", "status", "volume")
_CHOICES: Final = {
    "status": ("created", "running", "paused", "restarting", "exited", "dead"),
    "health": ("starting", "healthy", "unhealthy", "none"),
}
_WIDTH: Final = 20  # of COMMAND, as Docker cuts it
_COLUMNS: Final = {
    "CONTAINER ID": "ID", "IMAGE": "Image", "COMMAND": "Command", "CREATED": "RunningFor", "STATUS": "Status", "PORTS": "Ports", "NAMES": "Names",
}


def add_ps(parser: Parser) -> Carry:
    parser.add_argument("--all", "-a", action="store_true", help="also those that do not run")
    parser.add_argument("--quiet", "-q", action="store_true", help="ids only")
    parser.add_argument("--latest", "-l", action="store_const", const="1", dest="last", help="the one that was made last, whether or not it runs")
    parser.add_argument("--last", "-n", metavar="N", help="the N that were made last")
    parser.add_argument("--no-trunc", action="store_true", help="whole ids and commands")
    parser.add_argument("--filter", "-f", metavar="WHAT=VALUE", action="append", default=[], help=f"one of {', '.join(_FILTERS)}")
    tables.add_format(parser)
    return _ps


def _ps(parsed: argparse.Namespace) -> int:
    filters = [_to_filter(text) for text in parsed.filter]
    last = None if parsed.last is None else _to_whole("--last", parsed.last)
    shows_all = parsed.all or last is not None or any(name in ("exited", "status") for name, _ in filters)
    rows: list[dict[str, str]] = []
    for kept in containers():
        try:
            config, state = kept.config, kept.state
        except ContainerNotFoundError:  # it has just gone
            continue
        except UsageError as error:
            complain("sandbox ps", str(error))
            continue
        if (shows_all or state.is_up) and _matches(config, state, filters):
            rows.append(_row(config, state, whole=parsed.no_trunc))
    rows = rows[:last]
    if parsed.quiet:
        print("".join(f"{row['ID']}\n" for row in rows), end="")
    else:
        tables.show(rows, _COLUMNS, form=parsed.format)
    return 0


def _to_filter(text: str) -> tuple[str, str]:
    name, value = by_name.pair("--filter", text, needs_value=True)
    if name not in _FILTERS:
        raise WrongUseError(f"--filter: {name!r} is unknown; there are {', '.join(_FILTERS)}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise WrongUseError(f"--filter: {name}={value!r} is none of {', '.join(_CHOICES[name])}")
    if name == "exited":
        _to_whole("--filter exited", value)
    if name in ("before", "since"):
        return name, str(find(value).config.created)
    return name, value


def _to_whole(option: str, text: str) -> int:
    from sandbox.cli.options import to_whole

    return to_whole(option, text)


def _matches(config: Config, state: State, filters: Iterable[tuple[str, str]]) -> bool:
    """Docker's rule: of a kind, one value is enough; labels must all be there."""
    wanted: dict[str, list[str]] = {}
    for name, value in filters:
        wanted.setdefault(name, []).append(value)
    tests: dict[str, Callable[[str], bool]] = {
        "ancestor": lambda value: _tagged(value) == _tagged(config.image),
        "before": lambda value: config.created < float(value),
        "exited": lambda value: state.status == "exited" and _code(state) == int(value),
        "health": lambda value: value == _health(state),
        "id": config.id.startswith,
        "name": lambda value: value in config.name,
        "network": lambda value: value in (state.networks or config.options.get("network", ())),
        "publish": lambda value: any(value in (port, *_ports_of_host(port, places)) for port, places in _with_plain(state).items()),
        "since": lambda value: config.created > float(value),
        "status": lambda value: value == state.status,
        "volume": lambda value: any(value in (mount.get("Name"), mount["Destination"]) for mount in _mounts(config)),
    }
    labels = wanted.pop("label", [])
    return all(map(config.has_label, labels)) and all(any(map(tests[name], values)) for name, values in wanted.items())


def _tagged(image: str) -> str:
    return image if not image or ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"


def _with_plain(state: State) -> dict[str, Any]:
    """Ports inside, and what the host has for them; those of TCP by their number alone, too."""
    return {**state.ports, **{port.removesuffix("/tcp"): places for port, places in state.ports.items()}}


def _ports_of_host(port: str, places: Iterable[Mapping[str, str]]) -> list[str]:
    _, slash, protocol = port.partition("/")
    return [f"{place['HostPort']}{slash}{protocol}" for place in places]


def _mounts(config: Config) -> list[dict[str, Any]]:
    return [mount for mount in config.options.get("mounts", []) if isinstance(mount, dict)]


def _code(state: State) -> int:
    return 0 if state.result is None else to_result(state.result).shell_code


def _row(config: Config, state: State, *, whole: bool) -> dict[str, str]:
    """What ``docker ps --format json`` says."""
    command = " ".join(f"'{word}'" if " " in word else word for word in config.command)
    return {
        "Command": f'"{command if whole or len(command) <= _WIDTH else command[: _WIDTH - 1] + "…"}"',
        "CreatedAt": datetime.fromtimestamp(config.created, UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC"),
        "ID": config.id if whole else config.id[:SHORT_ID],
        "Image": config.image or "<host>",
        "Labels": ",".join(f"{name}={text}" for name, text in config.labels.items()),
        "Mounts": ",".join(mount.get("Name") or mount["Source"] or mount["Destination"] for mount in _mounts(config)),
        "Names": config.name,
        "Networks": ",".join(state.networks or config.options.get("network", ())),
        "Ports": _ports(state),
        "RunningFor": f"{tables.duration(time.time() - config.created)} ago",
        "State": state.status,
        "Status": _status(state),
    }


def _ports(state: State) -> str:
    return ", ".join(f"{place['HostIp']}:{place['HostPort']}->{port}" for port, places in state.ports.items() for place in places)


def _status(state: State) -> str:
    match state.status:
        case "running" | "paused":
            word = _health(state)
            told = "Paused" if state.status == "paused" else "health: starting" if word == "starting" else "" if word == "none" else word
            return f"Up {tables.duration(time.time() - state.started)}{f' ({told})' if told else ''}"
        case "restarting":
            return f"Restarting ({_code(state)}) {tables.duration(time.time() - state.finished)} ago"
        case "exited":
            return f"Exited ({_code(state)}) {tables.duration(time.time() - state.finished)} ago"
        case _:
            return state.status.capitalize()


def _health(state: State) -> str:
    return "none" if state.health is None else str(state.health.get("Status"))


def add_inspect(parser: Parser) -> Carry:
    by_name.add_inspect_format(parser)
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")

    def carry_out(parsed: argparse.Namespace) -> int:
        look = partial(complain, "sandbox inspect")
        return by_name.inspect(parsed.containers, lambda name: inspected(find(name)), look, form=parsed.format)

    return carry_out


def inspected(kept: Kept) -> dict[str, Any]:
    """All that is known of a container, by Docker's names where it has one."""
    config, state = kept.config, kept.state
    said: Mapping[str, Any] = config.options
    return {
        "Id": config.id,
        "Name": config.name,
        "Created": _time(config.created),
        "Path": config.command[0] if config.command else "",
        "Args": config.command[1:],
        "State": {
            "Status": state.status,
            "Running": state.is_up,
            "Paused": state.status == "paused",
            "Restarting": state.status == "restarting",
            "OOMKilled": bool(state.result and state.result["oom_killed"]),
            "Dead": state.status == "dead",
            "Pid": state.init,
            "ExitCode": _code(state),
            "Error": state.error,
            "StartedAt": _time(state.started),
            "FinishedAt": _time(state.finished),
            **({} if state.health is None else {"Health": state.health}),
            "Result": state.result,
        },
        "Image": config.image,
        "KeeperPid": config.keeper if state.status != "dead" else 0,
        "RunCount": state.runs,
        "RestartCount": state.restarts,
        "Mounts": _mounts(config),
        "Config": {
            "Hostname": said.get("hostname", "sandbox"),
            "User": said.get("user", ""),
            "WorkingDir": said.get("cwd", ""),
            "Tty": config.tty,
            "OpenStdin": config.interactive,
            "Env": [f"{name}={value}" for name, value in said.get("env", {}).items()],
            "Cmd": config.command,
            "Image": config.image,
            "Labels": config.labels,
            **({"Healthcheck": said["healthcheck"]} if "healthcheck" in said else {}),
        },
        "HostConfig": {
            "AutoRemove": config.remove,
            "RestartPolicy": _policy(config),
            "ReadonlyRootfs": said.get("read_only", False),
            "LogConfig": {"MaxSize": config.log_size},
            **{key: said.get(name, "private") for key, name in (("IpcMode", "ipc"), ("UTSMode", "uts"), ("CgroupnsMode", "cgroupns"))},
            **{key: said[name] for key, name in (("Memory", "memory"), ("Swap", "swap"), ("Cpus", "cpus"), ("PidsLimit", "pids")) if name in said},
        },
        "NetworkSettings": {"Ports": state.ports, "Networks": state.networks or {word: {} for word in said.get("network", [])}},
    }


def _policy(config: Config) -> dict[str, Any]:
    name, _, most = config.restart.partition(":")
    return {"Name": name, "MaximumRetryCount": int(most or 0)}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z") if seconds else "0001-01-01T00:00:00Z"


def add_port(parser: Parser) -> Carry:
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("port", metavar="PORT[/PROTOCOL]", nargs="?", help="where this one leads from")
    return _port


def _port(parsed: argparse.Namespace) -> int:
    kept = find(parsed.container)
    found = kept.state.ports
    if parsed.port is None:
        print("".join(f"{name} -> {_host_port(place)}\n" for name, places in found.items() for place in places), end="")
        return 0
    wanted = parsed.port if "/" in parsed.port else f"{parsed.port}/tcp"
    if wanted not in found:
        raise UsageError(f"port {wanted} of {kept.name} is not published")
    print("".join(f"{_host_port(place)}\n" for place in found[wanted]), end="")
    return 0


def _host_port(place: Mapping[str, str]) -> str:
    address = place["HostIp"]
    return f"{f'[{address}]' if ':' in address else address}:{place['HostPort']}"
