"""Containers that outlive their command, in Docker's words: ``sandbox ps|inspect|logs|start|stop|kill|rm``, and so on."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from sandbox import ContainerNotFoundError, SandboxError, UnsupportedError, UsageError
from sandbox.cli import kept as by_name
from sandbox.cli import tables
from sandbox.cli.arguments import Parser, WrongUseError
from sandbox.cli.outcome import FAILED, complain, one_line, outcome
from sandbox.cli.relay import write_all
from sandbox.keep import SHORT_ID, Config, ContainerStore, Kept, Record, State, containers, find, to_result

Carry = Callable[[argparse.Namespace], int]
_FILTERS: Final = ("exited", "health", "id", "label", "name", "status")
_WIDTH: Final = 20  # of COMMAND, as Docker cuts it
_COLUMNS: Final = {
    "CONTAINER ID": "ID", "IMAGE": "Image", "COMMAND": "Command", "CREATED": "RunningFor", "STATUS": "Status", "PORTS": "Ports", "NAMES": "Names",
}


def main_of(word: str) -> Callable[[list[str]], int]:
    """What carries out ``sandbox WORD``."""
    return container if word == "container" else partial(_run, word)


def container(arguments: Sequence[str]) -> int:
    """``sandbox container ...``: the same commands, and ``ls`` and ``prune``."""
    word = arguments[0] if arguments else ""
    if word in ("attach", "run", "exec", "commit", "cp", "diff"):
        from sandbox.cli import main

        return main(arguments)
    if word == "export":
        from sandbox.cli.container_files import main_of as files_of

        return files_of(word)(arguments[1:])
    if word in _COMMANDS or word == "ls":
        return _run("ps" if word == "ls" else word, arguments[1:], prefix="container ")
    return outcome("sandbox container", lambda: _no_command(word))


def _no_command(word: str) -> int:
    if word in ("-h", "--help"):
        print("usage: sandbox container COMMAND\n\n" + "".join(f"  {name:10}{text}\n" for name, (_, text) in _COMMANDS.items()), end="")
        return 0
    raise WrongUseError(f"unknown command {word!r}" if word else "no command")


def _run(name: str, arguments: Sequence[str], *, prefix: str = "") -> int:
    command = f"sandbox {prefix}{name}"
    add, text = _COMMANDS[name]
    parser = Parser(prog=command, description=text.capitalize() + ".", allow_abbrev=False)
    carry_out = add(parser)
    return outcome(command, lambda: carry_out(parser.parse_args(list(arguments))))


def _each(command: str, names: Iterable[str], work: Callable[[Kept], str | None]) -> int:
    """Do *work* for each, and print what it gives, or the name; one that fails is told, and keeps none of the others."""
    code = 0
    for name in names:
        try:
            said = work(find(name))
            print(one_line(name if said is None else said), flush=True)
        except (SandboxError, OSError) as error:
            complain(f"sandbox {command}", str(error))
            code = FAILED
    return code


def _several(parser: Parser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")


# ---- Their life ----


def _add_start(parser: Parser) -> Carry:
    from sandbox.cli.attach import add_start

    return add_start(parser, lambda parsed: _each("start", parsed.containers, lambda kept: kept.start()))


def _add_stop(parser: Parser) -> Carry:
    parser.add_argument("--time", "-t", "--timeout", metavar="SECONDS", default="10", help="then they are killed (10)")
    _several(parser)
    return lambda parsed: _each("stop", parsed.containers, partial(Kept.stop, timeout=_seconds(parsed.time)))


def _add_restart(parser: Parser) -> Carry:
    parser.add_argument("--time", "-t", "--timeout", metavar="SECONDS", default="10", help="then they are killed (10)")
    _several(parser)
    return lambda parsed: _each("restart", parsed.containers, partial(Kept.restart, timeout=_seconds(parsed.time)))


def _seconds(text: str) -> float:
    from sandbox.cli.options import to_time  # late, here and below: who lists containers does without networks and all that

    return 0.0 if text == "0" else to_time("--time", text)


def _add_kill(parser: Parser) -> Carry:
    parser.add_argument("--signal", "-s", metavar="SIGNAL", default="KILL", help="a name or a number (KILL)")
    _several(parser)
    return lambda parsed: _each("kill", parsed.containers, partial(Kept.kill, signal=to_signal(parsed.signal)))


def to_signal(text: str) -> int:
    """``TERM``, ``SIGTERM`` or ``15``. Raises: UsageError."""
    word = text.upper().removeprefix("SIG")
    number = int(word) if word.isascii() and word.isdigit() and len(word) < 3 else int(getattr(signal, f"SIG{word}", 0)) if word.isalnum() else 0
    if not 0 < number < 65:
        raise UsageError(f"--signal: {text!r} is no signal")
    return number


def _add_pause(parser: Parser) -> Carry:
    _several(parser)
    return lambda parsed: _each("pause", parsed.containers, Kept.pause)


def _add_unpause(parser: Parser) -> Carry:
    _several(parser)
    return lambda parsed: _each("unpause", parsed.containers, Kept.resume)


def _add_wait(parser: Parser) -> Carry:
    _several(parser)
    return lambda parsed: _each("wait", parsed.containers, _wait)


def _wait(kept: Kept) -> str:
    from sandbox.cli.run import code_of_result

    return str(code_of_result(kept.wait()))


def _add_rename(parser: Parser) -> Carry:
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("name", metavar="NAME")

    def carry_out(parsed: argparse.Namespace) -> int:
        find(parsed.container).rename(parsed.name)
        return 0

    return carry_out


def _add_remove(parser: Parser) -> Carry:
    parser.add_argument("--force", "-f", action="store_true", help="also those that run; one that is not there is no failure")
    _several(parser)

    def work(kept: Kept, *, force: bool) -> None:
        try:
            kept.remove(force=force)
        except ContainerNotFoundError:  # it has just gone
            if not force:
                raise

    def carry_out(parsed: argparse.Namespace) -> int:
        names = [name for name in parsed.containers if not parsed.force or _is_there(name)]
        return _each("rm", names, partial(work, force=parsed.force))

    return carry_out


def _is_there(name: str) -> bool:
    try:
        find(name)
    except ContainerNotFoundError:
        return False
    return True


def _add_prune(parser: Parser) -> Carry:
    parser.add_argument("--force", "-f", action="store_true", help="do not ask")
    parser.add_argument("--filter", metavar="label=NAME[=TEXT]", action="append", default=[], help="only those; also until=24h: made before")
    return _prune


def _prune(parsed: argparse.Namespace) -> int:
    from sandbox.cli.options import to_time

    labels: list[str] = []
    before = None
    for text in parsed.filter:
        name, value = by_name.pair("--filter", text, needs_value=True)
        if name not in ("label", "until"):
            raise WrongUseError(f"--filter: {name!r} is unknown; there are label=NAME[=TEXT] and until=TIME")
        labels += [value] if name == "label" else []
        before = time.time() - to_time("--filter until", value) if name == "until" else before
    if not parsed.force and not tables.agrees("This removes all containers that do not run. Go on?"):
        return 0
    removed: list[str] = []
    ContainerStore().sweep()
    for kept in containers():
        try:
            config, state = kept.config, kept.state
            if state.status in ("exited", "dead") and all(map(config.has_label, labels)) and (before is None or config.created < before):
                kept.remove()
                removed.append(kept.id)
        except ContainerNotFoundError:
            continue
        except SandboxError as error:  # it has been started meanwhile, or is damaged: for `rm`
            complain("sandbox container prune", str(error))
    if removed:
        print("Deleted Containers:", *removed, "", sep="\n")
    return 0


# ---- Looking at them ----


def _add_ps(parser: Parser) -> Carry:
    parser.add_argument("--all", "-a", action="store_true", help="also those that do not run")
    parser.add_argument("--quiet", "-q", action="store_true", help="ids only")
    parser.add_argument("--no-trunc", action="store_true", help="whole ids and commands")
    parser.add_argument("--filter", "-f", metavar="WHAT=VALUE", action="append", default=[], help=f"one of {', '.join(_FILTERS)}")
    tables.add_format(parser)
    return _ps


def _ps(parsed: argparse.Namespace) -> int:
    filters = [_to_filter(text) for text in parsed.filter]
    shows_all = parsed.all or any(name in ("exited", "status") for name, _ in filters)
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
    if parsed.quiet:
        print("".join(f"{row['ID']}\n" for row in rows), end="")
    else:
        tables.show(rows, _COLUMNS, form=parsed.format)
    return 0


def _to_filter(text: str) -> tuple[str, str]:
    name, value = by_name.pair("--filter", text, needs_value=True)
    if name not in _FILTERS:
        raise WrongUseError(f"--filter: {name!r} is unknown; there are {', '.join(_FILTERS)}")
    if name == "exited":
        from sandbox.cli.options import to_whole

        to_whole("--filter exited", value)
    return name, value


def _matches(config: Config, state: State, filters: Iterable[tuple[str, str]]) -> bool:
    """Docker's rule: of a kind, one value is enough; labels must all be there."""
    wanted: dict[str, list[str]] = {}
    for name, value in filters:
        wanted.setdefault(name, []).append(value)
    tests: dict[str, Callable[[str], bool]] = {
        "exited": lambda value: state.status == "exited" and _code(state) == int(value),
        "health": lambda value: value == _health(state),
        "id": config.id.startswith,
        "name": lambda value: value in config.name,
        "status": lambda value: value == state.status,
    }
    labels = wanted.pop("label", [])
    return all(map(config.has_label, labels)) and all(any(map(tests[name], values)) for name, values in wanted.items())


def _code(state: State) -> int:
    from sandbox.cli.run import code_of_result

    return 0 if state.result is None else code_of_result(to_result(state.result))


def _row(config: Config, state: State, *, whole: bool) -> dict[str, str]:
    """What ``docker ps --format json`` says."""
    command = " ".join(config.command)
    return {
        "Command": f'"{command if whole or len(command) <= _WIDTH else command[: _WIDTH - 1] + "…"}"',
        "CreatedAt": datetime.fromtimestamp(config.created, UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC"),
        "ID": config.id if whole else config.id[:SHORT_ID],
        "Image": config.image or "<host>",
        "Labels": ",".join(f"{name}={text}" for name, text in config.labels.items()),
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
        case "exited":
            return f"Exited ({_code(state)}) {tables.duration(time.time() - state.finished)} ago"
        case _:
            return state.status.capitalize()


def _health(state: State) -> str:
    return "none" if state.health is None else str(state.health.get("Status"))


def _add_inspect(parser: Parser) -> Carry:
    _several(parser)

    def carry_out(parsed: argparse.Namespace) -> int:
        return by_name.inspect(parsed.containers, lambda name: inspected(find(name)), partial(complain, "sandbox inspect"))

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
        "Mounts": said.get("mounts", []),
        "Config": {
            "Hostname": said.get("hostname", "sandbox"),
            "User": said.get("user", ""),
            "WorkingDir": said.get("cwd", ""),
            "Tty": config.tty,
            "OpenStdin": config.interactive,
            "Env": [f"{name}={value}" for name, value in said.get("env", {}).items()],
            "Cmd": config.command,
            "Labels": config.labels,
            **({"Healthcheck": said["healthcheck"]} if "healthcheck" in said else {}),
        },
        "HostConfig": {
            "AutoRemove": config.remove,
            "ReadonlyRootfs": said.get("read_only", False),
            "LogConfig": {"MaxSize": config.log_size},
            **{key: said[name] for key, name in (("Memory", "memory"), ("Swap", "swap"), ("Cpus", "cpus"), ("PidsLimit", "pids")) if name in said},
        },
        "NetworkSettings": {"Ports": state.ports, "Networks": state.networks or {word: {} for word in said.get("network", [])}},
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z") if seconds else "0001-01-01T00:00:00Z"


def _add_port(parser: Parser) -> Carry:
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


def _add_stats(parser: Parser) -> Carry:
    parser.add_argument("--no-stream", action="store_true", help="say it once; the only way so far")
    tables.add_format(parser)
    parser.add_argument("containers", metavar="CONTAINER", nargs="*", help="without: all that run")
    return _stats


def _stats(parsed: argparse.Namespace) -> int:
    if not parsed.no_stream:
        raise UnsupportedError("figures are said once, not again and again", feature="stats as a stream", remedy="give --no-stream")
    rows: list[dict[str, str]] = []
    code = 0
    for name in parsed.containers or [kept.id for kept in containers()]:
        try:
            kept = find(name)
            if parsed.containers or kept.state.is_up:
                rows.append(_figures(kept))
        except SandboxError as error:  # it has just ended, or has no control group
            complain("sandbox stats", str(error))
            code = FAILED
    tables.show(rows, {"CONTAINER ID": "ID", "NAME": "Name", "CPU TIME": "CPUTime", "MEM USAGE": "MemUsage", "PIDS": "PIDs"}, form=parsed.format)
    return code


def _figures(kept: Kept) -> dict[str, str]:
    found = kept.stats()
    cpu, memory, pids = (found.get(name) for name in ("cpu_time", "memory", "pids"))
    return {
        "CPUTime": "--" if cpu is None else f"{cpu:.2f}s",
        "ID": kept.id[:SHORT_ID],
        "MemUsage": "--" if memory is None else tables.size(memory),
        "Name": kept.name,
        "PIDs": "--" if pids is None else str(pids),
    }


# ---- What they wrote ----


def _add_logs(parser: Parser) -> Carry:
    parser.add_argument("--follow", "-f", action="store_true", help="go on until its program ends")
    parser.add_argument("--tail", "-n", metavar="N", default="all", help="the last N lines (all)")
    parser.add_argument("--timestamps", "-t", action="store_true", help="when each line came")
    parser.add_argument("container", metavar="CONTAINER")
    return _logs


def _logs(parsed: argparse.Namespace) -> int:
    if parsed.tail != "all" and not (parsed.tail.isascii() and parsed.tail.isdigit() and len(parsed.tail) < 10):
        raise UsageError(f"--tail: {parsed.tail!r} is no number of lines")
    last = None if parsed.tail == "all" else int(parsed.tail)
    sys.stdout.flush()
    is_within: dict[int, bool] = {}  # a line, of each stream
    for record in find(parsed.container).records(follow=parsed.follow, last=last):
        write_all(record.stream, stamped(record, is_within) if parsed.timestamps else record.data)
    return 0


def stamped(record: Record, is_within: dict[int, bool]) -> bytes:
    """What a record says, with its time before each line that begins in it."""
    stamp = f"{datetime.fromtimestamp(record.time_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{record.time_ns % 10**9:09}Z ".encode()
    found = record.data.replace(b"\n", b"\n" + stamp)
    if record.data.endswith(b"\n"):
        found = found[: -len(stamp)]
    if not is_within.get(record.stream):
        found = stamp + found
    is_within[record.stream] = not record.data.endswith(b"\n")
    return found


_COMMANDS: Final[Mapping[str, tuple[Callable[[Parser], Carry], str]]] = {
    "inspect": (_add_inspect, "print all that is known of containers, as JSON"),
    "kill": (_add_kill, "send a signal to the programs of containers"),
    "logs": (_add_logs, "print what the program of a container wrote"),
    "pause": (_add_pause, "freeze the programs of containers"),
    "port": (_add_port, "say where the host leads to the ports of a container"),
    "prune": (_add_prune, "remove all containers that do not run"),
    "ps": (_add_ps, "list containers"),
    "rename": (_add_rename, "give a container another name"),
    "restart": (_add_restart, "stop containers, and start their programs again"),
    "rm": (_add_remove, "remove containers"),
    "start": (_add_start, "start the programs of containers that were stopped"),
    "stats": (_add_stats, "say what the programs of containers use"),
    "stop": (_add_stop, "end the programs of containers, and keep what they wrote"),
    "unpause": (_add_unpause, "let the programs of containers go on"),
    "wait": (_add_wait, "wait for the end of the programs of containers, and print their exit codes"),
}
