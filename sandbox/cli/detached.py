"""``sandbox run --detach``, and ``sandbox exec``: programs in containers that outlive this command."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sandbox import ImageNotFoundError, Result, SandboxError, UsageError
from sandbox.cli import health, keys, options, sharing
from sandbox.cli.arguments import parse_words
from sandbox.cli.outcome import complain
from sandbox.cli.parser import Parser, WrongUseError
from sandbox.cli.run import OWN_FAILURE, WRONG_USE, Forwarding, code_of_error
from sandbox.cli.streams import Streams
from sandbox.keep import LEAST, find, start_wishes

_NETWORK: Final = (
    *sharing.OPTIONS, "network", "network_alias", "ip", "ip6", "mac_address", "publish", "publish_all", "link", "dns", "dns_search", "add_host"
)  # fmt: skip
_EXEC: Final = "sandbox exec"


def run(parsed: Namespace, environ: Mapping[str, str]) -> list[str]:
    """Start the container that ``sandbox run -d`` says, print its id, and give the warnings. Raises: as `sandbox.keep.start`."""
    _check(parsed)
    network: dict[str, Any] = {name: getattr(parsed, name) for name in _NETWORK}
    said = Namespace(**{**vars(parsed), **{name: [] for name in _NETWORK}})  # networks and namespaces are the keeper's to open
    container = options.container_options(said, environ)
    del container["net"]
    container.pop("name", None)
    wishes: dict[str, Any] = {
        "program": tuple(parsed.program) or None,
        "container": container,
        "options": options.program_options(parsed),
        "network": network,
        "labels": dict(_label(text) for text in parsed.label),
        "entrypoint": parsed.entrypoint,
        "remove": parsed.rm,
        "tty": parsed.tty,
        "interactive": bool(parsed.interactive),
        "restart": parsed.restart,
        "health": health.wanted(parsed),
    }
    if parsed.log_size is not None:
        wishes["log_size"] = _log_size(parsed.log_size)
    if parsed.pull == "always":
        _pull(parsed.image)
    try:
        kept, warnings = start_wishes(parsed.name, **wishes)
    except ImageNotFoundError:
        if parsed.pull != "missing":
            raise
        _pull(parsed.image)
        kept, warnings = start_wishes(parsed.name, **wishes)
    print(kept.id)
    return [*warnings]


def _check(parsed: Namespace) -> None:
    for option in ("output_limit", "json", "report"):
        if getattr(parsed, option):
            hint = "the log is bounded by --log-size" if option == "output_limit" else "`sandbox inspect` shows the result"
            raise UsageError(f"--{option.replace('_', '-')}: not with --detach; {hint}")


def _label(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise UsageError(f"--label: {text!r} is not NAME or NAME=TEXT")
    return name, value


def _log_size(text: str) -> int:
    size = options.to_bytes("--log-size", text)
    if size < LEAST:
        raise UsageError(f"--log-size: {text!r} is too little; {LEAST} bytes are the least")
    return size


def _pull(name: str) -> None:
    from sandbox.image import pull

    pull(name)


# ---- exec ----


def main_exec(arguments: Sequence[str]) -> int:
    """``sandbox exec``: its exit code is the program's, or as `sandbox run` has it."""
    parser = _parser()
    try:
        parsed = parse_words(parser, arguments)
        if not parsed.program:
            raise WrongUseError("no program; give one after the container")
        return _exec(parsed)
    except SystemExit:  # --help
        return 0
    except (SandboxError, OSError) as error:
        complain(_EXEC, str(error))
        if isinstance(error, WrongUseError):
            return WRONG_USE
        return code_of_error(error) if isinstance(error, SandboxError) else OWN_FAILURE


def _parser() -> Parser:
    parser = Parser(
        prog=_EXEC,
        usage="sandbox exec [options] CONTAINER PROGRAM [ARGUMENT...]",
        description="Run one more program in a container that runs. Its exit code is this command's. "
        "When this command is killed, so is the program; the keys that detach let it go on.",
        allow_abbrev=False,
    )
    parser.add_argument("--interactive", "-i", action="store_true", help="pass standard input on; without, it is empty")
    parser.add_argument("--tty", "-t", action="store_true", help="give it a terminal")
    parser.add_argument("--detach", "-d", action="store_true", help="let it run on by itself; its output is dropped")
    parser.add_argument("--env", "-e", metavar="NAME[=VALUE]", action="append", default=[], help="set a variable; without a value: pass ours on")
    parser.add_argument("--env-file", metavar="FILE", action="append", default=[], help="variables, NAME[=VALUE] a line")
    parser.add_argument("--workdir", "-w", metavar="DIR", default="", help="working directory inside")
    parser.add_argument("--user", "-u", metavar="USER[:GROUP]", default="", help="name or number inside")
    keys.add(parser)
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("program", nargs="...", metavar="PROGRAM", help="and its arguments")
    return parser


def _exec(parsed: Namespace) -> int:
    if parsed.detach and (parsed.interactive or parsed.tty):
        raise UsageError("--detach: such a program has neither input nor a terminal; leave out -i and -t")
    env = options.environment(parsed.env, parsed.env_file, os.environ)
    words: dict[str, Any] = {"env": env, "cwd": parsed.workdir, "user": parsed.user}
    kept = find(parsed.container)
    if parsed.detach:
        kept.popen(parsed.program, detach=True, **words).close()
        return 0
    with Forwarding() as forwarding:
        if parsed.tty:
            result = _with_terminal(parsed, forwarding, words)
            if result is None:
                print(keys.DETACHED, file=sys.stderr)
            return 0 if result is None else result.shell_code
        with (
            Streams(interactive=parsed.interactive) as streams,
            kept.popen(parsed.program, fds=streams.theirs, **words) as execution,
            forwarding.to(execution),
        ):
            streams.started()
            streams.relay(execution.fileno())
            return execution.wait().shell_code


def _with_terminal(parsed: Namespace, forwarding: Forwarding, words: Mapping[str, Any]) -> Result | None:
    """Its result; None: the keys came, and it goes on without us."""
    from sandbox.cli.terminal import Terminal

    typed = keys.Keys(keys.to_keys(parsed.detach_keys) if os.isatty(0) else b"")
    with (
        Terminal(interactive=parsed.interactive, keys=typed) as terminal,
        find(parsed.container).popen(parsed.program, size=terminal.size, **words) as execution,
        forwarding.to(execution, terminal.resize),
    ):
        terminal.relay(execution)
        if typed.were_typed:
            execution.detach()
            return None
        return execution.wait()
