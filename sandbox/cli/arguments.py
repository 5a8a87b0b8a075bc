"""The options of ``sandbox run`` and ``sandbox bench``: their names, Docker's and hyperfine's where these have one, and their help.

What they mean is `options`'s.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from sandbox.cli import health
from sandbox.cli.parser import Parser, PlainHelp, WrongUseError

DESCRIPTION: Final = """\
Run a program in a container of its own, which is removed afterwards. Without --root and --image it sees the host's programs, read-only. With
--image, PROGRAM and its arguments take the place of the image's CMD, and without them it runs what the image says.
"""
EPILOG: Final = """\
SIZE is bytes or 64K, 64M, 1.5G (binary multiples); TIME is seconds or 500ms, 3s, 2m, 1h.

exit code: the program's; 128+N when signal N ended it; 124 --timeout; 152 --cpu-time; 137 memory limit, or killed;
153 --output-limit; 159 forbidden system call (--profile strict); 2 unknown option, or no program; 125 a value that
makes no sense, or a failure of our own; 126 the program cannot be executed; 127 there is no such program.
"""
BENCH_DESCRIPTION: Final = """\
Run programs again and again, each in a container of its own, and say what they take. Without --root they see the host's programs, read-only.
"""
BENCH_EPILOG: Final = """\
SIZE is bytes or 64K, 64M, 1.5G (binary multiples); TIME is seconds or 500ms, 3s, 2m, 1h. COMMAND is split into words as a shell would, but no
shell runs it: write "sh -c '...'" for one.

exit code: 0; 1 a run failed (without --ignore-failure), or all runs of a program did; 2 unknown option, or no program; 125 a value that makes
no sense, or a failure of our own; 126 the program cannot be executed; 127 there is no such program.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Split *arguments* into options and the program; values stay as they were given.

    Raises: WrongUseError; SystemExit(0) after ``--help``.
    """
    parser = build()
    parsed = parse_words(parser, arguments)
    if parsed.image is None and (parsed.entrypoint is not None or parsed.pull is not None):
        raise WrongUseError("--entrypoint and --pull: only with --image")
    if not parsed.program and not parsed.explain and parsed.image is None:
        raise WrongUseError("no program; give one after the options, as in: sandbox run -- ls -l")
    return parsed


def parse_bench(arguments: Sequence[str]) -> argparse.Namespace:
    """As `parse`, for ``sandbox bench``."""
    parsed = parse_words(build_bench(), arguments)
    if not parsed.program:
        raise WrongUseError("no program; give one after the options, as in: sandbox bench -- sort words.txt")
    return parsed


def parse_words(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Split *arguments* into options and the program."""
    parsed = parser.parse_args(list(arguments))
    for name, value in vars(parsed).items():
        # argparse before Python 3.12.5 takes the value of --option=-- for the end of the options, and gives an empty list instead of it.
        if name != "program" and ((value == [] and parser.get_default(name) is None) or (isinstance(value, list) and [] in value)):
            raise WrongUseError(f"--{name.replace('_', '-')}: '--' is no value")
    if parsed.program[:1] == ["--"]:
        del parsed.program[0]
    return parsed


def build() -> Parser:
    """Make the parser of ``sandbox run``."""
    parser = _parser("run", DESCRIPTION, EPILOG)
    _add_limits(parser)
    _add_surroundings(parser)
    _add_network(parser)
    _add_sharing(parser)
    _add_streams(parser)
    _add_detached(parser)
    health.add(parser)
    _add_image(parser)
    _add_files(parser)
    _add_security(parser)
    _add_ours(parser)
    return _ended(parser, "--help")


def build_bench() -> Parser:
    """Make the parser of ``sandbox bench``."""
    parser = _parser("bench", BENCH_DESCRIPTION, BENCH_EPILOG)
    _add_measuring(parser)
    _add_limits(parser)
    _add_surroundings(parser)
    _add_files(parser)
    _add_security(parser)
    return _ended(parser, "--help")


def _parser(command: str, description: str, epilog: str) -> Parser:
    return Parser(
        prog=f"sandbox {command}",
        usage=f"sandbox {command} [options] [--] PROGRAM [ARGUMENT...]",
        description=description,
        epilog=epilog,
        formatter_class=PlainHelp,
        add_help=False,
        allow_abbrev=False,
    )


def _ended(parser: Parser, help_option: str) -> Parser:
    parser.add_argument(help_option, action="help", help="show this text")
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _add_limits(parser: Parser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument("--memory", "-m", metavar="SIZE", help="memory of all its processes together; no swap unless --memory-swap")
    group.add_argument("--memory-swap", metavar="SIZE", help="memory and swap together")
    group.add_argument("--cpus", metavar="N", help="CPU time per second of wall clock, such as 1.5")
    group.add_argument("--cpuset-cpus", metavar="LIST", help="CPUs it may run on, such as 0-2,5")
    group.add_argument("--pids-limit", metavar="N", help="processes and threads")
    group.add_argument("--ulimit", metavar="NAME=SOFT[:HARD]", action="append", default=[], help="resource limit of each process, such as nofile=64")
    group.add_argument("--shm-size", metavar="SIZE", help="size of /dev/shm (64M)")
    group.add_argument("--timeout", metavar="TIME", help="wall-clock time, then everything is killed")
    group.add_argument("--cpu-time", metavar="TIME", help="CPU time of all its processes together, then everything is killed")


def _add_surroundings(parser: Parser) -> None:
    group = parser.add_argument_group("surroundings")
    group.add_argument("--env", "-e", metavar="NAME[=VALUE]", action="append", default=[], help="set a variable; without a value: pass ours on")
    group.add_argument("--env-file", metavar="FILE", action="append", default=[], help="variables, NAME[=VALUE] a line")
    group.add_argument("--workdir", "-w", metavar="DIR", help="working directory inside (/)")
    group.add_argument("--user", "-u", metavar="USER[:GROUP]", help="name or number inside")
    group.add_argument("--hostname", "-h", metavar="NAME", help="its host name (sandbox)")
    group.add_argument(
        "--network",
        "--net",
        metavar="NETWORK",
        action="append",
        default=[],
        help="none: loopback only (the default); host; netns:NAME; new: one for this run; or the name of one that is kept",
    )


def _add_network(parser: Parser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument("--network-alias", metavar="NAME", action="append", default=[], help="by which others of the network find it, too")
    group.add_argument("--ip", metavar="ADDRESS", help="its address in the network")
    group.add_argument("--ip6", metavar="ADDRESS", help="its address of IPv6 there")
    group.add_argument("--mac-address", metavar="MAC", help="of its interface there, such as 02:42:0a:59:00:02")
    group.add_argument("--publish", "-p", metavar="[[IP:]HOST:]PORT[/udp]", action="append", default=[], help="make a port of it one of the host's")
    group.add_argument("--publish-all", "-P", action="store_true", help="all ports that its image exposes, at free ports of the host")
    group.add_argument("--link", metavar="CONTAINER[:ALIAS]", action="append", default=[], help="another container by a name of its own")
    group.add_argument("--dns", metavar="ADDRESS", action="append", default=[], help="name server to ask")
    group.add_argument("--dns-search", metavar="DOMAIN", action="append", default=[], help="domain to search for names without a dot")
    group.add_argument("--add-host", metavar="NAME:ADDRESS", action="append", default=[], help="a line of /etc/hosts")


def _add_sharing(parser: Parser) -> None:
    group = parser.add_argument_group("namespaces")
    group.add_argument("--ipc", metavar="WHOSE", default="", help="private or shareable (the default), host, or container:NAME, with its /dev/shm")
    group.add_argument("--uts", metavar="WHOSE", default="", help="private (the default), host, or container:NAME: whose host name it has")
    group.add_argument("--cgroupns", metavar="WHOSE", default="", help="private (the default) or host")
    group.add_argument("--pid", metavar="WHOSE", default="", help="private; others are not offered: see sandbox exec")
    group.add_argument("--userns", metavar="WHOSE", default="", help="private; others are not offered")


def _add_streams(parser: Parser) -> None:
    group = parser.add_argument_group("streams")
    group.add_argument("--tty", "-t", action="store_true", help="give it a terminal")
    group.add_argument(
        "--interactive", "-i", action=argparse.BooleanOptionalAction, default=None, help="pass standard input on (the default); --no-...: it is empty"
    )
    group.add_argument("--output-limit", metavar="SIZE", help="bytes on each of stdout and stderr, which become pipes; then everything is killed")


def _add_detached(parser: Parser) -> None:
    group = parser.add_argument_group("beyond this command")
    group.add_argument("--detach", "-d", action="store_true", help="print its id when the program has started, and let it run; see sandbox ps")
    group.add_argument("--name", metavar="NAME", help="to know it by; without --detach: for others of its networks")
    group.add_argument("--rm", action="store_true", help="remove it at the end of its program; without --detach that is so anyway")
    group.add_argument("--restart", metavar="POLICY", default="no", help="when it has ended: no, on-failure[:N], always or unless-stopped (no)")
    group.add_argument("--label", "-l", metavar="NAME[=TEXT]", action="append", default=[], help="something to know it by")
    group.add_argument("--log-size", metavar="SIZE", help="how much of its output is kept (16M); the oldest goes first")


def _add_image(parser: Parser) -> None:
    group = parser.add_argument_group("image")
    group.add_argument("--image", metavar="NAME", help="run in a container of this image, such as debian:12")
    group.add_argument("--entrypoint", metavar="PROGRAM", help="instead of the image's ENTRYPOINT and CMD; '' takes both away")
    group.add_argument("--pull", metavar="WHEN", choices=("missing", "always", "never"), help="get the image: missing, always, never (the default)")


def _add_files(parser: Parser) -> None:
    group = parser.add_argument_group("files")
    group.add_argument("--root", metavar="DIR", help="use DIR as the root directory; it is never written to")
    group.add_argument("--read-only", action="store_true", help="no writable layer at all, and no /tmp of its own")
    group.add_argument("--scratch", metavar="SIZE", help="size of the writable layer; without --root there is none, only a writable /tmp")
    group.add_argument("--volume", "-v", metavar="SRC:DST[:ro]", action="append", default=[], help="show a path of the host, or a volume (a name)")
    group.add_argument("--mount", metavar="type=...,...", action="append", default=[], help="type=bind,source=S,target=T[,readonly] and the like")
    group.add_argument("--tmpfs", metavar="DST[:OPTIONS]", action="append", default=[], help="empty, in memory; options size=, mode=, nr_inodes=")


def _add_security(parser: Parser) -> None:
    group = parser.add_argument_group("security")
    group.add_argument("--profile", metavar="NAME", help="'default', or 'strict' for judging: a hostile system call ends the run")
    group.add_argument("--cap-add", metavar="CAP", action="append", default=[], help="capability of root inside, or ALL")
    group.add_argument("--cap-drop", metavar="CAP", action="append", default=[], help="take one away, or ALL")
    group.add_argument(
        "--security-opt",
        metavar="OPTION",
        action="append",
        default=[],
        help="no-new-privileges[=false], seccomp=unconfined, systempaths=unconfined, landlock=off|required, nesting",
    )
    group.add_argument("--best-effort", action="store_true", help="warn about what cannot be enforced here, instead of failing")


def _add_ours(parser: Parser) -> None:
    group = parser.add_argument_group("this command")
    group.add_argument("--json", metavar="FILE", help="write the result to FILE, as JSON; '-' is standard error")
    group.add_argument("--report", action="store_true", help="the same as --json -")
    group.add_argument("--explain", action="store_true", help="print what would be done, and start nothing")


def _add_measuring(parser: Parser) -> None:
    group = parser.add_argument_group("measuring")
    group.add_argument("--repeat", "--runs", "-r", metavar="N", help="runs of each program that count (30)")
    group.add_argument("--warmup", metavar="N", help="runs of each before them (3)")
    group.add_argument("--compare", metavar="COMMAND", action="append", default=[], help="one more program with its arguments, to take turns with")
    group.add_argument("--command-name", "-n", metavar="NAME", action="append", default=[], help="what to call a program; again for the next one")
    group.add_argument("--setup", "-s", metavar="COMMAND", help="to be run once in each container, before all else")
    group.add_argument("--prepare", "-p", metavar="COMMAND", help="to be run before each run, unmeasured")
    group.add_argument("--fresh", action="store_true", help="a new container for each run")
    group.add_argument("--input", metavar="FILE", help="standard input of each run; without, it is empty")
    group.add_argument("--show-output", action="store_true", help="show what the programs write, instead of dropping it")
    group.add_argument("--ignore-failure", "-i", action="store_true", help="go on when a run fails; it is counted, and is in no figure")
    group.add_argument("--exit-codes", metavar="LIST", help="exit codes that mean success, such as 0,1 (0)")
    group.add_argument("--confidence", metavar="P", help="of the intervals (0.95)")
    group.add_argument("--seed", metavar="N", help="of the order of turns (0)")
    group.add_argument("--export-json", metavar="FILE", help="write all figures there, in hyperfine's words where it has one")
    group.add_argument("--export-csv", metavar="FILE", help="write a row for each run there")
