"""The store of images: ``sandbox images|history|tag|rmi|df`` and ``sandbox image ls|inspect|history|tag|rm|prune|verify``, in Docker's words."""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from sandbox import SandboxError, UsageError
from sandbox.cli import tables
from sandbox.cli.options import to_time
from sandbox.cli.outcome import FAILED, WRONG_USE, complain, one_line, outcome
from sandbox.cli.parser import Parser, WrongUseError
from sandbox.fs import VolumeStore
from sandbox.image import Image, Reference, Store

_NONE: Final = "<none>"
_FILTERS: Final = ("before", "dangling", "label", "reference", "since")
_ELSEWHERE: Final = ("build", "import", "load", "pull", "push", "save")
_WIDTH: Final = 45  # of CREATED BY, as Docker cuts it


def main_of(word: str) -> Callable[[list[str]], int]:
    """What carries out ``sandbox WORD``."""
    return image if word == "image" else partial(_run, word)


def image(arguments: Sequence[str]) -> int:
    """``sandbox image ...``: what is a command by itself too (pull, save ...) is that command."""
    if arguments and arguments[0] in _ELSEWHERE:
        from sandbox.cli import main

        return main(arguments)
    if arguments and arguments[0] == "bootstrap":
        from sandbox.cli.archives import main_bootstrap

        return main_bootstrap(arguments[1:])
    if arguments and arguments[0] == "export":
        from sandbox.cli.archives import main_image_export

        return main_image_export(arguments[1:])
    if arguments and arguments[0] in _IN_IMAGE:
        return _run(arguments[0], arguments[1:], prefix="image ")
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: sandbox image COMMAND\n\n" + "".join(f"  {name:10}{_TEXTS[name]}\n" for name in _IN_IMAGE), end="")
        return 0
    problem = f"unknown command {one_line(arguments[0])!r}" if arguments else "no command"
    print(f"sandbox image: {problem}; there are {', '.join(sorted({*_IN_IMAGE, *_ELSEWHERE}))}", file=sys.stderr)
    return WRONG_USE


def _run(name: str, arguments: Sequence[str], *, prefix: str = "") -> int:
    command = f"sandbox {prefix}{name}"
    parser = Parser(prog=command, description=_TEXTS[name].capitalize() + ".", allow_abbrev=False)
    carry_out = _COMMANDS[name](parser)
    return outcome(command, lambda: carry_out(parser.parse_args(list(arguments))))


Carry = Callable[[argparse.Namespace], int]


# ---- Lists ----


def _images(parser: Parser) -> Carry:
    parser.add_argument("reference", metavar="REPOSITORY[:TAG]", nargs="?", help="only those of that name; '*' and '?' stand for anything")
    parser.add_argument("--quiet", "-q", action="store_true", help="ids only")
    parser.add_argument("--no-trunc", action="store_true", help="ids in full")
    parser.add_argument("--digests", action="store_true", help="show digests of manifests")
    parser.add_argument("--filter", "-f", metavar="WHAT=VALUE", action="append", default=[], help=f"one of {', '.join(_FILTERS)}")
    tables.add_format(parser)
    return _list


def _list(parsed: argparse.Namespace) -> int:
    store = Store()
    filters = [_to_filter(text) for text in parsed.filter]
    if parsed.reference is not None:
        filters.append(("reference", parsed.reference))
    rows = [row for image in _newest_first(store.images()) for row in _rows(image, filters, store, full=parsed.no_trunc)]
    if parsed.quiet:
        print("".join(f"{line}\n" for line in dict.fromkeys(row["ID"] for row in rows)), end="")
        return 0
    columns = {"REPOSITORY": "Repository", "TAG": "Tag", "IMAGE ID": "ID", "CREATED": "CreatedSince", "SIZE": "Size"}
    if parsed.digests:
        columns = {"REPOSITORY": "Repository", "TAG": "Tag", "DIGEST": "Digest", **columns}
    tables.show(rows, columns, form=parsed.format)
    return 0


def _newest_first(found: Iterable[Image]) -> list[Image]:
    return sorted(found, key=lambda image: tables.moment(image.config.created) or 0, reverse=True)


def _rows(image: Image, filters: Sequence[tuple[str, str]], store: Store, *, full: bool) -> list[dict[str, str]]:
    """A row for each name; one without a name for an image that has none."""
    if not all(_fits(image, what, value, store) for what, value in filters if what != "reference"):
        return []
    patterns = [value for what, value in filters if what == "reference"]
    names = [Reference.parse(name) for name in image.names]
    wanted = [name for name in names if not patterns or any(_matches(name, pattern) for pattern in patterns)]
    if not names and not patterns:
        return [_row(image, None, full=full)]
    return [_row(image, name, full=full) for name in wanted]


def _row(image: Image, name: Reference | None, *, full: bool) -> dict[str, str]:
    bare = name.pinned(image.manifest).familiar.partition("@")[0] if name is not None else _NONE
    return {
        "Containers": "N/A",
        "CreatedAt": tables.at(image.config.created),
        "CreatedSince": tables.ago(image.config.created),
        "Digest": str(image.manifest if name is None or name.digest is None else name.digest),
        "ID": _id(image, full=full),
        "Repository": bare,
        "SharedSize": "N/A",
        "Size": tables.size(image.size),
        "Tag": name.tag if name is not None and name.tag is not None else _NONE,
        "UniqueSize": "N/A",
        "VirtualSize": tables.size(image.size),
    }


def _id(image: Image, *, full: bool) -> str:
    return str(image.id) if full else image.id.short


def _matches(name: Reference, pattern: str) -> bool:
    """Whether a name is meant: its repository, or repository and tag, as people write it or in full."""
    bare = name.familiar.partition("@")[0]
    short = bare.removesuffix(f":{name.tag}") if name.tag is not None else bare
    return any(fnmatch.fnmatchcase(form, pattern) for form in (bare, short, str(name), name.name))


def _to_filter(text: str) -> tuple[str, str]:
    what, equals, value = text.partition("=")
    if not equals or what not in _FILTERS:
        raise WrongUseError(f"--filter: {text!r} is not one of {', '.join(f'{name}=VALUE' for name in _FILTERS)}")
    if what == "dangling" and value not in ("true", "false", "1", "0"):
        raise WrongUseError(f"--filter: dangling={value!r} is neither true nor false")
    return what, value


def _fits(image: Image, what: str, value: str, store: Store) -> bool:
    if what == "dangling":
        return (not image.names) == (value in ("true", "1"))
    if what == "label":
        name, equals, text = value.partition("=")
        return any(label == name and (not equals or content == text) for label, content in image.settings.labels)
    other = tables.moment(store.get(value).config.created) or 0
    own = tables.moment(image.config.created) or 0
    return own < other if what == "before" else own > other


def _history(parser: Parser) -> Carry:
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--quiet", "-q", action="store_true", help="ids only")
    parser.add_argument("--no-trunc", action="store_true", help="ids and commands in full")
    tables.add_format(parser)
    return _show_history


def _show_history(parsed: argparse.Namespace) -> int:
    store = Store()
    image = store.get(parsed.image)
    rows: list[dict[str, str]] = []
    for number, found in enumerate(store.history(image)):
        command = found.step.created_by
        rows.append(
            {
                "Comment": found.step.comment,
                "CreatedAt": tables.at(found.step.created),
                "CreatedBy": command if parsed.no_trunc or len(command) <= _WIDTH else f"{command[: _WIDTH - 1]}…",
                "CreatedSince": tables.ago(found.step.created),
                "ID": _id(image, full=parsed.no_trunc) if number == 0 else "<missing>",  # steps are no images, in the store as in Docker's
                "Size": tables.size(found.size),
            }
        )
    if parsed.quiet:
        print("".join(f"{row['ID']}\n" for row in rows), end="")
        return 0
    columns = {"IMAGE": "ID", "CREATED": "CreatedSince", "CREATED BY": "CreatedBy", "SIZE": "Size", "COMMENT": "Comment"}
    tables.show(rows, columns, form=parsed.format)
    return 0


def _inspect(parser: Parser) -> Carry:
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    return _show_inspected


def _show_inspected(parsed: argparse.Namespace) -> int:
    store, found = Store(), list[dict[str, object]]()
    code = _each("sandbox image inspect", parsed.images, lambda name: found.append(store.get(name).inspect()))
    print(json.dumps(found, indent=4))
    return code


def _each(command: str, names: Iterable[str], work: Callable[[str], None]) -> int:
    """Do *work* for each name: one that fails is told, and keeps none of the others."""
    code = 0
    for name in names:
        try:
            work(name)
        except SandboxError as error:
            complain(command, str(error))
            code = FAILED
    return code


# ---- Names and removing ----


def _tag(parser: Parser) -> Carry:
    parser.add_argument("source", metavar="SOURCE_IMAGE[:TAG]")
    parser.add_argument("target", metavar="TARGET_IMAGE[:TAG]")
    return _give_name


def _give_name(parsed: argparse.Namespace) -> int:
    Store().tag(parsed.source, parsed.target)
    return 0


def _remove(parser: Parser) -> Carry:
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument("--force", "-f", action="store_true", help="also what containers use (they keep their layers), or has several names")
    return _take_away


def _take_away(parsed: argparse.Namespace) -> int:
    store = Store()

    def remove(name: str) -> None:
        removed = store.remove(name, force=parsed.force)
        for untagged in removed.untagged:
            print(f"Untagged: {Reference.parse(untagged).familiar}")
        for deleted in removed.deleted:
            print(f"Deleted: {deleted}")

    return _each("sandbox rmi", parsed.images, remove)


def _prune(parser: Parser) -> Carry:
    parser.add_argument("--all", "-a", action="store_true", help="all images that no container uses, and what builds remember")
    parser.add_argument("--build-cache", action="store_true", help="what builds remember, too")
    parser.add_argument("--force", "-f", action="store_true", help="do not ask")
    parser.add_argument("--filter", metavar="until=TIME", action="append", default=[], help="only what is older, such as until=24h")
    return _prune_all


def _prune_all(parsed: argparse.Namespace) -> int:
    older_s = 0.0
    for text in parsed.filter:
        what, _, value = text.partition("=")
        if what != "until":
            raise WrongUseError(f"--filter: {text!r} is not until=TIME")
        older_s = to_time("--filter until", value)
    which = "all images that no container uses" if parsed.all else "all images without a name"
    cache = ", and what builds remember" if parsed.all or parsed.build_cache else ""
    if not parsed.force and not tables.agrees(f"This removes {which}{cache}. Go on?"):
        return 0
    pruned = Store().prune(all=parsed.all, build_cache=parsed.build_cache or None, older_s=older_s)
    lines = [f"untagged: {Reference.parse(name).familiar}" for name in pruned.untagged] + [f"deleted: {image}" for image in pruned.deleted]
    if lines:
        print("Deleted Images:", *lines, "", sep="\n")
    print(f"Total reclaimed space: {tables.size(pruned.freed, 4)}")
    return 0


# ---- Looking after it ----


def _verify(parser: Parser) -> Carry:
    tables.add_format(parser)
    return _show_faults


def _show_faults(parsed: argparse.Namespace) -> int:
    faults = Store().verify()
    for fault in faults:
        if parsed.format == "json":
            print(json.dumps({"Kind": fault.kind, "Subject": fault.subject, "Problem": fault.problem}))
        else:
            print(one_line(str(fault)))
    if not faults and parsed.format == "table":
        print("everything is as it should be")
    return FAILED if faults else 0


def _df(parser: Parser) -> Carry:
    parser.add_argument("--verbose", "-v", action="store_true", help="each image, and what of it others have too")
    tables.add_format(parser)
    return _show_usage


def _show_usage(parsed: argparse.Namespace) -> int:
    usage = Store().usage()
    if parsed.verbose:
        rows = [
            {
                **_row(row.image, Reference.parse(row.image.names[0]) if row.image.names else None, full=False),
                "SharedSize": tables.size(row.shared),
                "UniqueSize": tables.size(row.unique),
                "Containers": str(row.containers),
            }
            for row in usage.images
        ]
        columns = {"REPOSITORY": "Repository", "TAG": "Tag", "IMAGE ID": "ID", "CREATED": "CreatedSince", "SIZE": "Size"}
        columns |= {"SHARED SIZE": "SharedSize", "UNIQUE SIZE": "UniqueSize", "CONTAINERS": "Containers"}
        tables.show(rows, columns, form=parsed.format)
        return 0
    whole = usage.layers + usage.blobs + usage.staging
    images = [str(len(usage.images)), str(sum(row.containers > 0 for row in usage.images))]
    rows = [_usage_row("Images", images, whole - usage.cache, usage.reclaimable + usage.staging - usage.cache), _volumes()]
    rows.append(_usage_row("Build Cache", [str(usage.cache_entries), "0"], usage.cache, usage.cache))
    columns = {"TYPE": "Type", "TOTAL": "TotalCount", "ACTIVE": "Active", "SIZE": "Size", "RECLAIMABLE": "Reclaimable"}
    tables.show(rows, columns, form=parsed.format)
    return 0


def _usage_row(kind: str, counts: Sequence[str], whole: int, reclaimable: int) -> dict[str, str]:
    total, active = counts
    return {
        "Active": active,
        "Reclaimable": tables.share(max(reclaimable, 0), whole),
        "Size": tables.size(whole, 4),
        "TotalCount": total,
        "Type": kind,
    }


def _volumes() -> dict[str, str]:
    store = VolumeStore()
    used = whole = reclaimable = total = 0
    for name in store.names():
        try:
            is_used, taken = store.is_used(name), store.size(name)
        except UsageError:  # it has just gone, or is damaged, which `sandbox volume ls` tells
            continue
        total, used, whole = total + 1, used + is_used, whole + taken
        reclaimable += 0 if is_used else taken
    return _usage_row("Local Volumes", [str(total), str(used)], whole, reclaimable)


_COMMANDS: Final[dict[str, Callable[[Parser], Carry]]] = {
    "images": _images,
    "ls": _images,
    "history": _history,
    "inspect": _inspect,
    "tag": _tag,
    "rmi": _remove,
    "rm": _remove,
    "prune": _prune,
    "verify": _verify,
    "df": _df,
}
_TEXTS: Final = {
    "bootstrap": "make an image of a distribution's packages",
    "images": "list images",
    "ls": "list images",
    "history": "show how an image was made",
    "inspect": "print all that is known of images, as JSON",
    "tag": "give an image one more name",
    "rmi": "take names away, and with the last one the image",
    "rm": "take names away, and with the last one the image",
    "prune": "remove images without a name, and all that nothing needs",
    "verify": "hash all blobs again, and compare the unpacked layers with them",
    "df": "show what images, volumes and the build cache take on disk",
}
_IN_IMAGE: Final = ("bootstrap", "history", "inspect", "ls", "prune", "rm", "tag", "verify")
