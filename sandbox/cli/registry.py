"""``sandbox pull``, ``push``, ``login`` and ``logout``: images from registries and to them, in Docker's words."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Self

from attrs import define, field

from sandbox import UsageError
from sandbox.cli.outcome import one_line, outcome
from sandbox.cli.parser import Parser, WrongUseError
from sandbox.image import Digest, Progress, Reference, Stage, login, logout, pull, push, tags

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["main"]

HUB: Final = "docker.io"
_MOST_INPUT: Final = 1 << 16
_MIB: Final = 1 << 20
_MOVING: Final = frozenset({Stage.DOWNLOADING, Stage.UPLOADING})


def main_pull(arguments: Sequence[str]) -> int:
    """Fetch images."""
    parser = _parser("pull", "Fetch an image from a registry into the store. What is there already is not fetched again.")
    parser.add_argument("--platform", metavar="OS/ARCH", help="of an image for several machines, that for this one (default: this machine)")
    parser.add_argument("-a", "--all-tags", action="store_true", help="all tags of the repository NAME")
    _add_access(parser)
    parser.add_argument("name", metavar="NAME[:TAG|@DIGEST]")

    def run(options: argparse.Namespace) -> None:
        for reference in _references(options):
            with _shown(options) as shown:
                image = pull(reference, platform=options.platform, progress=shown.take, **_access(options))
            if not options.quiet:
                print(f"Digest: {image.manifest}", file=sys.stderr)
            print(reference)

    return outcome(parser.prog, lambda: run(parser.parse_args(list(arguments))))


def _references(options: argparse.Namespace) -> list[Reference]:
    name = Reference.parse(options.name)
    if not options.all_tags:
        return [name]
    if name.digest is not None or options.name.rpartition("/")[2].partition(":")[1]:
        raise WrongUseError("--all-tags takes a name without tag or digest")
    return [Reference(name.registry, name.repository, tag) for tag in tags(name, **_access(options))]


def main_push(arguments: Sequence[str]) -> int:
    """Give an image to a registry."""
    parser = _parser("push", "Give an image to the registry that its name names. What the registry has already is not sent.")
    _add_access(parser)
    parser.add_argument("name", metavar="NAME[:TAG]")

    def run(options: argparse.Namespace) -> None:
        with _shown(options) as shown:
            digest = push(options.name, progress=shown.take, **_access(options))
        if not options.quiet:
            print(f"Digest: {digest}", file=sys.stderr)
        print(Reference.parse(options.name))

    return outcome(parser.prog, lambda: run(parser.parse_args(list(arguments))))


def main_login(arguments: Sequence[str]) -> int:
    """Log in, and keep the password where Docker does."""
    parser = _parser("login", "See whether a registry takes a user's password, and keep it where Docker does.")
    parser.add_argument("-u", "--username", metavar="USER", help="without it, it is asked for")
    parser.add_argument("-p", "--password", metavar="PASSWORD", help="seen by everybody who lists processes; prefer --password-stdin")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    _add_access(parser, quiet=False)
    parser.add_argument("registry", metavar="REGISTRY", nargs="?", default=HUB, help=f"such as ghcr.io or localhost:5000 (default: {HUB})")

    def run(options: argparse.Namespace) -> None:
        user = options.username or _asked("Username: ")
        where = login(options.registry, user, _password(options, user), **_access(options))
        if os.path.isabs(where):
            print(f"The password is kept in {where}, which only you can read, but as plain text; a credential helper would hide it.", file=sys.stderr)
        print("Login Succeeded")

    return outcome(parser.prog, lambda: run(parser.parse_args(list(arguments))))


def _password(options: argparse.Namespace, user: str) -> str:
    if options.password is not None:
        if options.password_stdin:
            raise WrongUseError("--password and --password-stdin exclude each other")
        print("sandbox login: warning: a password on the command line is seen by others; use --password-stdin", file=sys.stderr)
        return str(options.password)
    if options.password_stdin:
        if not options.username:
            raise WrongUseError("--password-stdin takes the user by --username")
        data = sys.stdin.buffer.read(_MOST_INPUT + 1)
        if len(data) > _MOST_INPUT:
            raise UsageError(f"standard input: a password of more than {_MOST_INPUT} bytes")
        return data.decode("utf-8", "surrogateescape").rstrip("\r\n")
    if not sys.stdin.isatty():
        raise WrongUseError("standard input is no terminal; give the password by --password-stdin")
    import getpass

    return getpass.getpass(f"Password of {one_line(user)}: ")  # without echo


def _asked(question: str) -> str:
    if not sys.stdin.isatty():
        raise WrongUseError("no user; give one by --username")
    try:
        return input(question).strip()
    except EOFError:
        raise UsageError("no user") from None


def main_logout(arguments: Sequence[str]) -> int:
    """Forget a password."""
    parser = _parser("logout", "Forget the password for a registry.")
    parser.add_argument("registry", metavar="REGISTRY", nargs="?", default=HUB, help=f"default: {HUB}")

    def run(options: argparse.Namespace) -> None:
        found = logout(options.registry)
        print(f"Removed the password for {options.registry}" if found else f"Not logged in to {options.registry}")

    return outcome(parser.prog, lambda: run(parser.parse_args(list(arguments))))


def main(command: str, arguments: Sequence[str]) -> int:
    """Carry out one of the four; return the exit code."""
    return {"login": main_login, "logout": main_logout, "pull": main_pull, "push": main_push}[command](arguments)


# ---- Common to all ----


def _parser(name: str, description: str) -> Parser:
    return Parser(prog=f"sandbox {name}", description=description, allow_abbrev=False)


def _add_access(parser: Parser, *, quiet: bool = True) -> None:
    if quiet:
        parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.add_argument("--insecure", action="store_true", default=None, help="speak plain http if the registry has no https")
    parser.add_argument("--ca", metavar="FILE", help="certificate authorities to be believed besides the system's")


def _access(options: argparse.Namespace) -> dict[str, Any]:
    return {"insecure": options.insecure, "ca": options.ca}


# ---- Progress ----


def _shown(options: argparse.Namespace) -> AbstractContextManager[Silent]:
    """Bars on a terminal if rich is there, lines otherwise; on standard error, as the name of the image is the output."""
    if options.quiet:
        return Silent()
    if sys.stderr.isatty():
        try:
            return Drawn()
        except ImportError:
            return Lines()
    return Lines()


class Silent:
    """Shows nothing."""

    def take(self, news: Progress) -> None:
        """Take a piece of news."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing is open."""


class Lines(Silent):
    """A line for each thing that has happened; none for what goes on."""

    def take(self, news: Progress) -> None:
        """Print it."""
        if news.stage not in _MOVING:
            print(describe(news), file=sys.stderr, flush=True)


def describe(news: Progress) -> str:
    """``0123456789ab: unpacked (12.3 MiB)``."""
    if news.stage is Stage.RETRYING:
        return f"retrying: {one_line(news.message)}"
    size = f" ({news.total / _MIB:.1f} MiB)" if news.total >= _MIB / 10 else ""
    return f"{'' if news.digest is None else news.digest.short}: {news.stage}{size}"


@define(eq=False)
class Drawn(Silent):
    """A bar for each layer."""

    _bars: Bars = field(init=False)
    _tasks: dict[Digest, TaskID] = field(factory=dict["Digest", "TaskID"], init=False)
    _drawn: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        """Raises: ImportError: rich is not there."""
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn()
        self._bars = Progress(*columns, console=Console(stderr=True), refresh_per_second=8)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def take(self, news: Progress) -> None:
        """Draw it."""
        if news.stage is Stage.RETRYING:
            self._bars.console.print(describe(news), markup=False, highlight=False)
            return
        now = time.monotonic()
        if news.digest is None or (news.stage in _MOVING and news.digest in self._tasks and now - self._drawn < 0.05):
            return
        self._drawn = now
        if news.digest not in self._tasks:
            self._tasks[news.digest] = self._bars.add_task("", total=news.total)
        self._bars.update(self._tasks[news.digest], description=f"{news.digest.short} {news.stage:12}", completed=news.done)
