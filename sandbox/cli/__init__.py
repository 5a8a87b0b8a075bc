"""The command ``sandbox``: ``sandbox run``, ``sandbox bench`` and ``sandbox doctor``. It uses only what every importer of the library can use.

Each subcommand lives in its own module with a ``main(arguments) -> exit code``, loaded when it is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

__all__ = ["main"]

USAGE: Final = """\
usage: sandbox run [options] [--] PROGRAM [ARGUMENT...]   run a program in a container of its own
       sandbox run --detach ...                           the same, beyond the end of this command; and what there is to be done with it:
       sandbox ps|inspect|logs|stats|top|exec|cp|port|rename  look at it, and into it
       sandbox attach                                     its streams are ours, for a while
       sandbox events                                     what happens to all of them
       sandbox start|stop|restart|kill|pause|unpause|update|wait|rm
       sandbox commit | diff | export                     what has become of its files
       sandbox container prune                            remove all that do not run
       sandbox bench [options] [--] PROGRAM [ARGUMENT...] run it again and again, and say what it takes
       sandbox build [options] CONTEXT                    make an image from a Dockerfile
       sandbox doctor [--json]                            say what this host offers, and what is missing
       sandbox images|history|tag|rmi|df                  the images that are here, and what they take
       sandbox image ls|inspect|history|tag|rm|prune|verify|bootstrap
       sandbox volume create|ls|inspect|rm|prune          directories that are kept by name
       sandbox network create|ls|inspect|rm|prune|connect|disconnect
                                                          networks of containers that are kept by name
       sandbox pull | push                                images from registries, and to them
       sandbox login | logout                             who we are to a registry
       sandbox save | load                                images into an archive, and out of one
       sandbox import | export                            an image of a root file system, and back
       sandbox --version

'sandbox run --help', and so on, list the options.
"""
FAILED: Final = 1
FAILED_RUN: Final = 125  # where lower codes are the program's
WRONG_USE: Final = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (None: this process's own) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _fill_standard_streams()
    try:
        code = _dispatch(arguments)
        if sys.stdout is not None:  # it was closed when we were started
            sys.stdout.flush()
    except BrokenPipeError:  # sandbox ... | head: nobody reads on, and the interpreter's last flush must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141  # 128 + SIGPIPE, what a shell reports of any other program
    except OSError as error:  # what we print cannot be written: the disk is full ... Failures at work are reported by the commands themselves
        print(f"sandbox: {error.strerror or error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED_RUN if arguments[:1] == ["run"] else FAILED
    except KeyboardInterrupt:  # `sandbox run` handles signals by itself once it has begun
        return 130  # 128 + SIGINT
    return code


def _fill_standard_streams() -> None:
    """Give 0, 1 and 2 something to be where our caller had closed them: no other descriptor may get these numbers."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one


def _dispatch(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if (main_of := _main_of(command)) is not None:
        return main_of(rest)
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        print(f"sandbox {_version()}")
        return 0
    problem = f"unknown command {command!r}" if command else "no command"
    print(f"sandbox: {problem}; see sandbox --help for those that there are", file=sys.stderr)
    return WRONG_USE


def _main_of(command: str) -> Callable[[list[str]], int] | None:  # noqa: PLR0912 - a table
    """What carries *command* out; None for what is none."""
    match command:
        case "attach":
            from sandbox.cli.attach import main as found
        case "bench":
            from sandbox.cli.bench import main as found
        case "build":
            from sandbox.cli.build import main as found
        case "doctor":
            from sandbox.cli.doctor import main as found
        case "events":
            from sandbox.cli.events import main as found
        case "exec":
            from sandbox.cli.detached import main_exec as found
        case "export":
            from sandbox.cli.archives import main_export as found
        case "commit" | "cp" | "diff":
            from sandbox.cli.container_files import main_of as files_of

            return files_of(command)
        case "import":
            from sandbox.cli.archives import main_import as found
        case "load":
            from sandbox.cli.archives import main_load as found
        case "images" | "image" | "history" | "tag" | "rmi" | "df":
            from sandbox.cli.images import main_of

            return main_of(command)
        case "login" | "logout" | "pull" | "push":
            from sandbox.cli.registry import main as carry_out

            return partial(carry_out, command)
        case "network":
            from sandbox.cli.network import main as found
        case "run":
            from sandbox.cli.run import main as found
        case "save":
            from sandbox.cli.archives import main_save as found
        case (
            "container" | "inspect" | "kill" | "logs" | "pause" | "port" | "ps" | "rename" | "restart" | "rm" | "start" | "stats"
            | "stop" | "top" | "unpause" | "update" | "wait"
        ):
            from sandbox.cli.containers import main_of as containers_of

            return containers_of(command)
        case "volume":
            from sandbox.cli.volume import main as found
        case _:
            return None
    return found


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sandbox")
    except PackageNotFoundError:
        return "(run from its source, not installed)"
