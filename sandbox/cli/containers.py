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

from sandbox import ContainerNotFoundError, SandboxError, UsageError
from sandbox.cli import figures, looking, tables, top
from sandbox.cli import kept as by_name
from sandbox.cli.outcome import FAILED, complain, one_line, outcome
from sandbox.cli.parser import Parser, WrongUseError
from sandbox.keep import ContainerStore, Kept, Record, containers, find

Carry = Callable[[argparse.Namespace], int]


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
    return str(kept.wait().shell_code)


def _add_update(parser: Parser) -> Carry:
    parser.add_argument("--restart", metavar="POLICY", default="", help="when its program has ended: no, on-failure[:N], always or unless-stopped")
    parser.add_argument("--memory", "-m", metavar="SIZE", help="of all its programs together")
    parser.add_argument("--cpus", metavar="N", help="of all its programs together")
    parser.add_argument("--pids-limit", metavar="N", help="processes and threads at once")
    _several(parser)
    return _update


def _update(parsed: argparse.Namespace) -> int:
    from sandbox.cli.options import to_bytes, to_number, to_whole

    words: dict[str, Any] = {"restart": parsed.restart}
    for name, option, text, read in (
        ("memory", "--memory", parsed.memory, to_bytes), ("cpus", "--cpus", parsed.cpus, to_number),
        ("pids", "--pids-limit", parsed.pids_limit, to_whole),
    ):  # fmt: skip
        if text is not None:
            words[name] = read(option, text)
            if words[name] <= 0:
                raise UsageError(f"{option}: {text!r} is no limit; give more than 0")
    if not any(words.values()):
        raise WrongUseError("nothing is to be changed; give an option")
    return _each("update", parsed.containers, partial(Kept.update, **words))


def _add_rename(parser: Parser) -> Carry:
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("name", metavar="NAME")

    def carry_out(parsed: argparse.Namespace) -> int:
        find(parsed.container).rename(parsed.name)
        return 0

    return carry_out


def _add_remove(parser: Parser) -> Carry:
    parser.add_argument("--force", "-f", action="store_true", help="also those that run; one that is not there is no failure")
    parser.add_argument("--volumes", "-v", action="store_true", help="their anonymous volumes too, which always go with them")
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


# ---- What they wrote ----


def _add_logs(parser: Parser) -> Carry:
    parser.add_argument("--follow", "-f", action="store_true", help="go on until its program ends")
    parser.add_argument("--tail", "-n", metavar="N", default="all", help="the last N lines (all)")
    parser.add_argument("--timestamps", "-t", action="store_true", help="when each line came")
    parser.add_argument("--since", metavar="TIME", help="what came from then on: 2026-01-31T10:00:00, seconds since 1970, or 10m: ago")
    parser.add_argument("--until", metavar="TIME", help="what came before")
    parser.add_argument("container", metavar="CONTAINER")
    return _logs


def _logs(parsed: argparse.Namespace) -> int:
    from sandbox.cli.events import to_moment
    from sandbox.cli.relay import write_all  # with what containers of this process need

    if parsed.follow and parsed.until is not None:
        raise UsageError("--until: goes with no --follow, which waits for what comes")
    since, until = to_moment("--since", parsed.since), to_moment("--until", parsed.until)
    if parsed.tail != "all" and not (parsed.tail.isascii() and parsed.tail.isdigit() and len(parsed.tail) < 10):
        raise UsageError(f"--tail: {parsed.tail!r} is no number of lines")
    last = None if parsed.tail == "all" else int(parsed.tail)
    sys.stdout.flush()
    is_within: dict[int, bool] = {}  # a line, of each stream
    for record in find(parsed.container).records(follow=parsed.follow, last=last):
        time_s = record.time_ns / 1e9
        if (since is not None and time_s < since) or (until is not None and time_s >= until):
            continue
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
    "inspect": (looking.add_inspect, "print all that is known of containers, as JSON"),
    "kill": (_add_kill, "send a signal to the programs of containers"),
    "logs": (_add_logs, "print what the program of a container wrote"),
    "pause": (_add_pause, "freeze the programs of containers"),
    "port": (looking.add_port, "say where the host leads to the ports of a container"),
    "prune": (_add_prune, "remove all containers that do not run"),
    "ps": (looking.add_ps, "list containers"),
    "rename": (_add_rename, "give a container another name"),
    "restart": (_add_restart, "stop containers, and start their programs again"),
    "rm": (_add_remove, "remove containers"),
    "start": (_add_start, "start the programs of containers that were stopped"),
    "stats": (figures.add_stats, "say what the programs of containers use"),
    "stop": (_add_stop, "end the programs of containers, and keep what they wrote"),
    "top": (top.add_top, "list the processes of a container"),
    "unpause": (_add_unpause, "let the programs of containers go on"),
    "update": (_add_update, "change the restart policy and the limits of containers"),
    "wait": (_add_wait, "wait for the end of the programs of containers, and print their exit codes"),
}
