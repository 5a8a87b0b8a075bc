"""What has become of a container's files: ``sandbox commit|diff|export|cp``, in Docker's words."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from sandbox import ContainerNotFoundError, ImageNotFoundError, UnsupportedError, UsageError
from sandbox.cli.outcome import one_line, outcome
from sandbox.cli.parser import Parser, WrongUseError
from sandbox.keep import Kept, find

Carry = Callable[[argparse.Namespace], int | None]
_STDOUT: Final = 1


def main_of(word: str) -> Callable[[Sequence[str]], int]:
    """What carries out ``sandbox WORD``, or ``sandbox container WORD``."""
    return partial(_run, word)


def _run(name: str, arguments: Sequence[str]) -> int:
    command = f"sandbox {'container ' if name == 'export' else ''}{name}"
    add, text = _COMMANDS[name]
    parser = Parser(prog=command, description=text, allow_abbrev=False)
    carry_out = add(parser)
    return outcome(command, lambda: carry_out(parser.parse_args(list(arguments))))


def _add_commit(parser: Parser) -> Carry:
    parser.add_argument("-a", "--author", metavar="NAME", default="", help="who made it")
    parser.add_argument("-c", "--change", metavar="LINE", action="append", default=[], help="an instruction of a Dockerfile, such as 'CMD [\"sh\"]'")
    parser.add_argument("-m", "--message", metavar="TEXT", default="", help="what its history says")
    parser.add_argument("-p", "--pause", action=argparse.BooleanOptionalAction, default=True, help="freeze its programs meanwhile, if possible")
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="what the image is called")

    def carry_out(parsed: argparse.Namespace) -> None:
        kept = find(parsed.container)
        print(kept.commit(parsed.name, author=parsed.author, message=parsed.message, changes=parsed.change, pause=parsed.pause))

    return carry_out


def _add_diff(parser: Parser) -> Carry:
    parser.add_argument("container", metavar="CONTAINER")

    def carry_out(parsed: argparse.Namespace) -> None:
        print("".join(f"{kind} {one_line(path)}\n" for kind, path in find(parsed.container).diff()), end="")

    return carry_out


def _add_export(parser: Parser) -> Carry:
    add_output(parser)
    parser.add_argument("container", metavar="CONTAINER")
    return lambda parsed: export_container(find(parsed.container), parsed.output)


def add_output(parser: Parser) -> None:
    """The option of commands that write a tar."""
    parser.add_argument("-o", "--output", metavar="FILE", help="where to (default: standard output, which must not be a terminal)")


def export_container(kept: Kept, output: str | None) -> None:
    """Write its root as a tar. Raises: as `Kept.export`; UsageError: to a terminal."""
    if output is None:
        if os.isatty(_STDOUT):
            raise UsageError("standard output is a terminal, which takes no archive; give -o FILE")
        kept.export(_STDOUT)
        return
    if os.path.exists(output) and not os.path.isfile(output):  # a FIFO, /dev/null; a directory is refused by open
        _export_to(kept, os.open(output, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY))
        return
    real = os.path.realpath(output)
    partial = f"{os.path.dirname(real)}/.{os.path.basename(real)[:200]}.{os.urandom(4).hex()}.partial"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        _export_to(kept, fd)
        os.rename(partial, real)  # a whole one, or none
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # an interrupt came when it had its name already
            os.unlink(partial)
        raise


def _export_to(kept: Kept, fd: int) -> None:
    try:
        if os.isatty(fd):
            raise UsageError("this would write an archive to a terminal; name a file, or send the output elsewhere")
        kept.export(fd)
    finally:
        os.close(fd)


def find_exported(name: str) -> Kept | None:
    """The container that ``sandbox export NAME`` means; None: it is an image. Raises: UsageError: it could be either."""
    from sandbox.image import Store

    try:
        kept = find(name)
    except ContainerNotFoundError:
        return None
    try:
        Store().get(name)
    except (ImageNotFoundError, UsageError):
        return kept
    raise UsageError(f"{name!r} is a container and an image; say sandbox container export, or sandbox image export")


def _add_copy(parser: Parser) -> Carry:
    parser.add_argument("source", metavar="SOURCE", help="a path of the host, or CONTAINER:PATH")
    parser.add_argument("target", metavar="TARGET", help="the other one of the two")
    return _copy


def _copy(parsed: argparse.Namespace) -> None:
    source, target = _side(parsed.source), _side(parsed.target)
    if (source[0] is None) == (target[0] is None):
        raise WrongUseError("one of SOURCE and TARGET is CONTAINER:PATH, the other a path of the host (./a:b, if it has a colon)")
    if "-" in (parsed.source, parsed.target):
        raise UnsupportedError("'-' is an archive in Docker", feature="cp of archives", remedy="use `sandbox exec -i CONTAINER tar ...`")
    if source[0] is None:
        find(target[0] or "").copy_in(source[1], target[1])
    else:
        find(source[0]).copy_out(source[1], target[1])


def _side(text: str) -> tuple[str | None, str]:
    """A container and an absolute path in it; None and a path of the host."""
    name, colon, path = text.partition(":")
    if not colon or not name or "/" in name or name.startswith("."):
        return None, text
    return name, path if path.startswith("/") else f"/{path}"


_COMMANDS: Final = {
    "commit": (_add_commit, "Make an image of what a container has become, and print its id."),
    "cp": (_add_copy, "Copy a file or directory into a container, or out of one. The content of a directory goes into TARGET."),
    "diff": (_add_diff, "List what has changed in the files of a container's image."),
    "export": (_add_export, "Write the root file system of a container into one tar."),
}
