"""``sandbox build``: an image from a Dockerfile; Docker's words and options.

What goes on is told on standard error, the image's id on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Generator, Sequence
from typing import IO, Final

from sandbox import UsageError
from sandbox.builder import Event, build
from sandbox.cli.outcome import outcome, printable
from sandbox.cli.parser import Parser, PlainHelp, WrongUseError

MAX_SECRET: Final = 512 << 10  # BuildKit's own bound
_EPILOG: Final = """\
SIZE is bytes or 64K, 64M, 1.5G (binary multiples). RUN has no network unless --network host. CONTEXT is a directory; or a tar
of one, compressed or not: a file, or '-' for standard input. --file is a path in it then. A Dockerfile on standard input has no context.

exit code: 0; 1 the build failed; 2 wrong use.
"""


def main(arguments: Sequence[str]) -> int:
    """Build what the command line says; return the exit code."""
    return outcome("sandbox build", lambda: _build(_parser().parse_args(list(arguments))), show=printable)


def _parser() -> Parser:
    parser = Parser(
        prog="sandbox build",
        usage="sandbox build [options] CONTEXT",
        description="Build an image from a Dockerfile; each RUN is carried out in a container of its own.",
        epilog=_EPILOG,
        formatter_class=PlainHelp,
        allow_abbrev=False,
    )
    parser.add_argument("context", metavar="CONTEXT", help="the directory that COPY and ADD take files from, or a tar of it")
    what = parser.add_argument_group("what is built")
    what.add_argument("--file", "-f", metavar="PATH", help="the Dockerfile (CONTEXT/Dockerfile); '-': standard input")
    what.add_argument("--tag", "-t", metavar="NAME[:TAG]", action="append", default=[], help="a name for the image; may be given again")
    what.add_argument("--target", metavar="STAGE", help="the stage to build (the last)")
    what.add_argument("--platform", metavar="OS/ARCH", help="what the image is for (this machine)")
    what.add_argument("--label", metavar="NAME=TEXT", action="append", default=[], help="a label of the image")
    _add_inputs(parser)
    _add_limits(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--quiet", "-q", action="store_true", help="print the image's id only")
    output.add_argument("--progress", choices=("auto", "plain", "rich"), default="auto", help="how it is told what goes on (rich on a terminal)")
    output.add_argument("--iidfile", metavar="PATH", help="write the image's id there; '-': standard output only")
    return parser


def _add_inputs(parser: Parser) -> None:
    given = parser.add_argument_group("what it is given")
    given.add_argument("--build-arg", metavar="NAME[=VALUE]", action="append", default=[], help="a value for ARG; without '=' the environment's")
    given.add_argument("--secret", metavar="id=ID[,src=PATH|,env=NAME]", action="append", default=[], help="for RUN --mount=type=secret")
    given.add_argument("--build-context", metavar="NAME=DIRECTORY", action="append", default=[], help="for --from=NAME; or docker-image://X")
    given.add_argument("--pull", action="store_true", help="ask registries for newer base images")
    given.add_argument("--no-cache", action="store_true", help="do every step anew")


def _add_limits(parser: Parser) -> None:
    limits = parser.add_argument_group("limits of each RUN")
    limits.add_argument("--network", choices=("none", "host"), default="none", help="its network (none)")
    limits.add_argument("--memory", "-m", metavar="SIZE", help="memory of all its processes together")
    limits.add_argument("--cpus", metavar="N", type=_number, help="CPU time per second of wall clock, such as 1.5")
    limits.add_argument("--pids-limit", metavar="N", type=_whole, help="processes and threads")
    limits.add_argument("--timeout", metavar="SECONDS", type=_number, help="then it is killed, and the build has failed")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _build(parsed: argparse.Namespace) -> int:
    context, dockerfile = _inputs(parsed.context, parsed.file)
    with _progress(parsed) as tell:
        image = build(
            context,
            dockerfile=dockerfile,
            tags=parsed.tag,
            target=parsed.target,
            build_args=dict(_argument(text) for text in parsed.build_arg if "=" in text or text in os.environ),
            labels=dict(_pair("--label", text) for text in parsed.label),
            secrets=dict(_secret(text) for text in parsed.secret),
            contexts=dict(_pair("--build-context", text) for text in parsed.build_context),
            network=None if parsed.network == "none" else parsed.network,
            memory=parsed.memory,
            cpus=parsed.cpus,
            pids=parsed.pids_limit,
            timeout=parsed.timeout,
            no_cache=parsed.no_cache,
            pull=parsed.pull,
            platform=parsed.platform,
            progress=tell,
        )
    if parsed.iidfile not in (None, "-"):
        with open(parsed.iidfile, "w", encoding="ascii") as file:
            file.write(str(image.id))
    print(image.id)
    return 0


def _inputs(context: str, file: str | None) -> tuple[str | IO[bytes], str | bytes | None]:
    """The context and the Dockerfile. Raises: UsageError."""
    if context == "-":
        if file == "-":
            raise UsageError("sandbox build: CONTEXT and --file are both standard input; leave --file out")
        return sys.stdin.buffer, file
    if file == "-":
        return context, sys.stdin.buffer.read()
    if file is None or os.path.isfile(context):  # in a tar, the path is one of the tar's
        return context, file
    return context, os.path.abspath(file)  # Docker's -f is relative to where one stands, not to the context


@contextlib.contextmanager
def _progress(parsed: argparse.Namespace) -> Generator[Callable[[Event], None] | None]:
    if parsed.quiet:
        yield None
        return
    from sandbox.cli.build_progress import Plain, is_shown_live, live

    if is_shown_live(parsed.progress):
        with live() as tell:
            yield tell
    else:
        yield Plain(sys.stderr).tell


def _argument(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return _named("--build-arg", text, name), value if equals else os.environ[name]


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise WrongUseError(f"{option}: {text!r} is not NAME=VALUE")
    return _named(option, text, name), value


def _named(option: str, text: str, name: str) -> str:
    if not name:
        raise WrongUseError(f"{option}: {text!r} has no name")
    return name


def _secret(text: str) -> tuple[str, bytes]:
    """``id=ID,src=PATH`` or ``id=ID,env=NAME``; the variable ID where neither is said."""
    fields = dict(_pair("--secret", part) for part in text.split(","))
    kind = fields.pop("type", "file")
    source = fields.pop("src", fields.pop("source", None))
    variable, identity = fields.pop("env", None), fields.pop("id", "")
    if fields or not identity or kind not in ("file", "env") or (source is not None and variable is not None):
        raise WrongUseError(f"--secret: {text!r} is not id=ID with src=PATH or env=NAME")
    if source is None:
        name = variable or identity
        if name not in os.environ:
            raise UsageError(f"--secret: the environment has no variable {name}")
        return identity, os.environb[name.encode()]
    with open(source, "rb") as file:
        data = file.read(MAX_SECRET + 1)
    if len(data) > MAX_SECRET:
        raise UsageError(f"--secret: {source!r} has more than {MAX_SECRET >> 10} KiB")
    return identity, data
