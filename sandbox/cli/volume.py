"""``sandbox volume create|ls|inspect|rm|prune``: volumes that are kept by name; Docker's words, options and output."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from sandbox.cli import kept, tables
from sandbox.cli.outcome import complain, one_line, outcome
from sandbox.cli.parser import Parser, WrongUseError
from sandbox.fs import VolumeInfo, VolumeStore

_COMMAND: Final = "sandbox volume"
_FILTERS: Final = ("dangling", "label", "name")


def main(arguments: Sequence[str]) -> int:
    """Carry out what the command line says; return the exit code: 0, 1 something failed, 2 wrong use."""
    return outcome(_COMMAND, lambda: _carry_out(arguments), show=_shown)


def _carry_out(arguments: Sequence[str]) -> int:
    parsed = _parser().parse_args(list(arguments))
    carry_out: Callable[[argparse.Namespace], int] = parsed.carry_out
    return carry_out(parsed)


def _shown(text: str) -> str:
    return one_line(text.removeprefix("volume: "))


def _complain(text: str) -> None:
    complain(_COMMAND, text, show=_shown)


def _parser() -> Parser:
    parser = Parser(prog="sandbox volume", description="Directories that are kept by name, and outlive containers.", allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def command(name: str, carry_out: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        found.set_defaults(carry_out=carry_out)
        return found

    create = command("create", _create, "make a volume, and print its name")
    create.add_argument("name", metavar="NAME", nargs="?", help="without one: 64 random digits")
    create.add_argument("--label", metavar="NAME[=TEXT]", action="append", default=[], help="something to know it by")
    create.add_argument("--opt", "-o", metavar="NAME=VALUE", action="append", default=[], help="size=SIZE, from 16M on: what it may hold (root only)")
    listing = command("ls", _list, "list volumes")
    listing.add_argument("--quiet", "-q", action="store_true", help="names only")
    listing.add_argument("--filter", "-f", metavar="WHAT=VALUE", action="append", default=[], help="name=PART, label=NAME[=TEXT], dangling=BOOL")
    tables.add_format(listing)
    inspect = command("inspect", _inspect, "print all that is known of volumes, as JSON")
    inspect.add_argument("names", metavar="NAME", nargs="+")
    kept.add_inspect_format(inspect)
    remove = command("rm", _remove, "remove volumes that no container has")
    remove.add_argument("names", metavar="NAME", nargs="+")
    remove.add_argument("--force", "-f", action="store_true", help="one that is not there is no failure")
    prune = command("prune", _prune, "remove all anonymous volumes that no container has")
    prune.add_argument("--all", "-a", action="store_true", help="those with names too")
    prune.add_argument("--force", "-f", action="store_true", help="do not ask")
    prune.add_argument("--filter", metavar="label=NAME[=TEXT]", action="append", default=[], help="only those with that label")
    return parser


def _create(parsed: argparse.Namespace) -> int:
    labels = dict(kept.pair("--label", text, needs_value=False) for text in parsed.label)
    options = dict(kept.pair("--opt", text, needs_value=True) for text in parsed.opt)
    print(VolumeStore().create(parsed.name, labels=labels, options=options).name)
    return 0


def _list(parsed: argparse.Namespace) -> int:
    filters = [_to_filter(text) for text in parsed.filter]
    store = VolumeStore()
    found = [info for info in kept.listed(store, _complain) if _matches(info, filters, store)]
    if parsed.quiet:
        print("".join(f"{info.name}\n" for info in found), end="")
    else:
        tables.show([_row(info) for info in found], {"DRIVER": "Driver", "VOLUME NAME": "Name"}, form=parsed.format)
    return 0


def _row(info: VolumeInfo) -> dict[str, str]:
    """What ``docker volume ls --format json`` says, as far as it is known without looking at all files."""
    labels = ",".join(f"{name}={text}" for name, text in info.labels.items())
    return {"Driver": "local", "Labels": labels, "Mountpoint": info.mountpoint, "Name": info.name, "Scope": "local"}


def _to_filter(text: str) -> tuple[str, str]:
    name, value = kept.pair("--filter", text, needs_value=False)
    if name not in _FILTERS:
        raise WrongUseError(f"--filter: {name!r} is unknown; there are {', '.join(_FILTERS)}")
    if name == "dangling" and value not in ("true", "false", "1", "0"):
        raise WrongUseError(f"--filter: dangling={value!r} is neither true nor false")
    return name, value


def _matches(info: VolumeInfo, filters: Iterable[tuple[str, str]], store: VolumeStore) -> bool:
    """Docker's rule: of a kind, one name is enough; labels must all be there."""
    names = [value for name, value in filters if name == "name"]
    if names and not any(value in info.name for value in names):
        return False
    if not all(info.has_label(value) for name, value in filters if name == "label"):
        return False
    wanted = {value in ("true", "1") for name, value in filters if name == "dangling"}
    return not wanted or kept.is_dangling(lambda: store.is_used(info.name)) in wanted


def _inspect(parsed: argparse.Namespace) -> int:
    store = VolumeStore()
    return kept.inspect(parsed.names, lambda name: _looked_at(store, store.get(name)), _complain, form=parsed.format)


def _looked_at(store: VolumeStore, info: VolumeInfo) -> dict[str, Any]:
    """What is known of a volume; of one with a size too what of it is taken, in Docker's field for what is not the same for all."""
    return info.inspect() | ({} if info.size is None else {"Status": {"Size": info.size, "Used": store.size(info.name)}})


def _remove(parsed: argparse.Namespace) -> int:
    return kept.remove(parsed.names, VolumeStore(), _complain, force=parsed.force)


def _prune(parsed: argparse.Namespace) -> int:
    labels = [_to_filter(text) for text in parsed.filter]
    if len(labels) > 1 or any(name != "label" for name, _ in labels):
        raise WrongUseError("--filter: there is one label=NAME[=TEXT]")
    which = "all volumes" if parsed.all else "all anonymous volumes"
    if not parsed.force and not tables.agrees(f"This removes {which} that no container has, with all that they hold. Go on?"):
        return 0
    pruned = VolumeStore().prune(all=parsed.all, label=labels[0][1] if labels else None)
    if pruned.names:
        print("Deleted Volumes:", *pruned.names, "", sep="\n")
    print(f"Total reclaimed space: {tables.size(pruned.size, 4)}")
    return 0
