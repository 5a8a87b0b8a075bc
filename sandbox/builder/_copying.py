"""COPY and ADD of what is at hand: which files a line means, where they go, and what the layer holds then. Nothing runs.

Sources are looked for below the top of their tree, and never above it: ``..`` that would lead out is refused, links are followed within. The
destination is looked up in the image as it is, through its links (not with ``--link``), so that a directory that is a link there stays one.
"""

from __future__ import annotations

import posixpath
import re
import stat
from collections.abc import Iterator
from typing import Final

from attrs import define, field, frozen

from sandbox.builder._layer import Item, Layer, item_of
from sandbox.builder._owners import id_inside, mode_of
from sandbox.builder._tree import Entry, Parts, Tree
from sandbox.builder.ignore import Patterns, compile_glob, has_glob
from sandbox.errors import ImageError

_DIRECTORY_MODE: Final = stat.S_IFDIR | 0o755
_NOTHING: Final = Patterns()


@frozen(eq=False, repr=False)
class Found:
    """A source: *entry*, which *parts* lead to; the *kept* last of these it keeps at its destination (``--parents``; 0: none)."""

    sources: Sources
    entry: Entry
    parts: Parts
    kept: int = 0

    @property
    def name(self) -> str:
        """The last component; "" for all of a tree."""
        return self.parts[-1] if self.parts else ""


@frozen(eq=False, repr=False)
class Inline:
    """A file whose content is in the Dockerfile, or was fetched."""

    name: str
    data: bytes
    mode: int = 0o644
    mtime: int | None = None


@frozen(eq=False, repr=False)
class Archive:
    """An unpacked archive: the whole of *tree* goes into the destination."""

    tree: Tree


@frozen(eq=False, repr=False)
class Sources:
    """Where a line takes its files from: a tree, less what *ignored* leaves out; *is_preserving*: their owners are kept (a stage, an image)."""

    tree: Tree
    ignored: Patterns = _NOTHING
    is_preserving: bool = False

    def find(self, text: str, *, with_parents: bool = False) -> list[Found]:
        """Give what *text* names, globs included; [] for nothing. Raises: ImageError: it leads out of the tree."""
        pivot, cleaned = _clean(text)
        if has_glob(cleaned):
            entries = list(self._glob((), cleaned.split("/"), recursive=with_parents))
        else:
            located = self.tree.locate(cleaned).entry
            is_left_out = self.ignored.can_prune(cleaned) or (located is not None and self._hides(located))
            entries = [] if located is None or is_left_out else [(located, tuple(part for part in cleaned.split("/") if part != "."))]
        return [Found(self, entry, parts, len(parts) - pivot if with_parents else 0) for entry, parts in entries]

    def _hides(self, entry: Entry) -> bool:
        if not entry.parts:
            return False
        return self.ignored.can_prune(entry.path) if entry.is_directory else self.ignored.excludes(entry.path)

    def _glob(self, parts: Parts, patterns: list[str], *, recursive: bool) -> Iterator[tuple[Entry, Parts]]:
        """Match component by component; directories that are links are followed where a further component follows."""
        pattern, rest = patterns[0], patterns[1:]
        entry = self.tree.locate("/".join(parts)).entry
        if entry is None or not entry.is_directory:
            return
        if pattern == "**" and recursive:
            if rest:
                yield from self._glob(parts, rest, recursive=True)
            for name in self.tree.names(entry.parts):
                child = self.tree.entry((*entry.parts, name))
                if child is not None and child.is_directory and not self._hides(child):
                    yield from self._glob((*parts, name), patterns, recursive=True)
                elif child is not None and not rest and not self._hides(child):
                    yield child, (*parts, name)
            return
        matcher = compile_glob(re.sub(r"\*\*+", "*", pattern), what="source")
        for name in self.tree.names(entry.parts):
            if not matcher.fullmatch(name):
                continue
            if rest:
                yield from self._glob((*parts, name), rest, recursive=recursive)
            elif (child := self._matched(entry, (*parts, name))) is not None:
                yield child, (*parts, name)

    def _matched(self, directory: Entry, parts: Parts) -> Entry | None:
        """What a glob has matched, links followed; None: it is left out. Raises: ImageError: a link that leads nowhere, which is not passed over."""
        itself = self.tree.entry((*directory.parts, parts[-1]))
        if itself is None or self._hides(itself):
            return None
        found = self.tree.locate("/".join(parts)).entry
        if found is None:
            raise ImageError(f"{'/'.join(parts)!r} is a link to {itself.link!r}, which is not there")
        return None if self._hides(found) else found

    def below(self, entry: Entry) -> Iterator[Entry]:
        """Give all below a directory that is not left out; directories that are come only when something in them is taken back."""
        for name in self.tree.names(entry.parts):
            child = self.tree.entry((*entry.parts, name))
            if child is None or self._hides(child) or stat.S_ISSOCK(child.status.st_mode):
                continue
            inner = self.below(child) if child.is_directory else iter(())
            if child.is_directory and self.ignored.excludes(child.path):
                first = next(inner, None)
                if first is None:
                    continue
                yield child
                yield first
            else:
                yield child
            yield from inner


def _clean(text: str) -> tuple[int, str]:
    """The path without detours, and how many of its components ``/./`` (of ``--parents``) leaves behind."""
    head, pivot, _ = text.partition("/./")
    cleaned = posixpath.normpath(text.lstrip("/") or ".")
    if cleaned == ".." or cleaned.startswith("../"):
        raise ImageError(f"{text!r} leads out of the place it is taken from")
    before = posixpath.normpath(head.lstrip("/") or ".") if pivot else "."
    return 0 if before == "." else before.count("/") + 1, cleaned


@define(eq=False, repr=False)
class Placing:
    """Puts what was found into a `Layer`, over the image *image*; *now*: the time of directories that nobody named."""

    image: Tree
    layer: Layer
    now: int
    owner: tuple[int, int] | None = None
    chmod: str = ""
    link: bool = False
    exclude: Patterns = _NOTHING
    _absent: set[Parts] = field(factory=set[Parts], init=False)

    def place(self, found: list[Found | Inline | Archive], target: str, working_dir: str, *, several: bool) -> None:
        """Put all of *found* at *target*; *several*: it is a directory for sure. Raises: ImageError: something is in the way."""
        base, exists = self._base(target, working_dir)
        as_directory = several or exists or is_directory_target(target)
        for one in found:
            if isinstance(one, Inline):
                self._inline(one, (*base, one.name) if as_directory else base)
            elif isinstance(one, Archive):
                self._tree(Sources(one.tree, is_preserving=True), _top(one.tree), base, keeps_top=True)
            elif one.kept:
                self._with_parents(one, base)
            elif one.entry.is_directory:
                self._tree(one.sources, one.entry, base)
            elif not self.exclude.excludes(one.name):
                self._file(one, (*base, one.name) if as_directory else base)

    def make_directory(self, path: str, working_dir: str) -> None:
        """Make a directory and those that lead to it, as WORKDIR does; one that is there stays as it is."""
        base, exists = self._base(path, working_dir)
        if not exists:
            self._parents((*base, "."))

    def is_directory(self, target: str, working_dir: str) -> bool:
        """Whether there is a directory at *target*, or will be by the way it is written."""
        return is_directory_target(target) or self._base(target, working_dir)[1]

    def _base(self, target: str, working_dir: str) -> tuple[Parts, bool]:
        path = posixpath.normpath(posixpath.join("/", working_dir, target)).lstrip("/")
        if self.link:
            parts = tuple(part for part in path.split("/") if part)
            entry = self.image.entry(parts)
        else:
            located = self.image.locate(path)
            parts, entry = located.parts, located.entry
        return parts, entry is not None and entry.is_directory

    # ---- What goes in ----

    def _inline(self, one: Inline, parts: Parts) -> None:
        mode = mode_of(self.chmod, stat.S_IFREG | one.mode) if self.chmod else one.mode
        uid, gid = self.owner or (0, 0)
        self._put(Item("/".join(parts), stat.S_IFREG | mode, uid, gid, self.now if one.mtime is None else one.mtime, data=one.data))

    def _file(self, found: Found, parts: Parts) -> None:
        self._put(self._item(found.sources, found.entry, parts))

    def _with_parents(self, found: Found, base: Parts) -> None:
        """Keep the directories that the source lies in, with their own modes."""
        pivot = len(found.parts) - found.kept
        place = base
        for count in range(pivot + 1, len(found.parts)):
            place = (*base, *found.parts[pivot:count])
            if "/".join(place) not in self.layer.items and self._existing(place) is None:
                origin = found.sources.tree.locate("/".join(found.parts[:count])).entry
                if origin is not None and origin.is_directory:
                    self._put(self._item(found.sources, origin, place))
        place = (*base, *found.parts[pivot:])
        if found.entry.is_directory:
            self._tree(found.sources, found.entry, place, keeps_top=True)
        else:
            self._file(found, place)

    def _tree(self, sources: Sources, top: Entry, base: Parts, *, keeps_top: bool = False) -> None:
        """Put what is below *top* below *base*; *keeps_top*: one that is not there yet takes its mode and owner from *top*.

        Else it is 0755, as every directory that nobody named: BuildKit copies what is in a directory, not the directory.
        """
        if base:
            existing = self._existing(base)
            if keeps_top and existing is None and "/".join(base) not in self.layer.items:
                self._put(self._item(sources, top, base))
            else:
                self._parents((*base, "."))
        for entry in sources.below(top):
            relative = entry.parts[len(top.parts) :]
            if not self.exclude.excludes("/".join(relative)):
                self._put(self._item(sources, entry, (*base, *relative)))

    def _item(self, sources: Sources, entry: Entry, parts: Parts) -> Item:
        status = entry.status
        uid, gid = self.owner or ((id_inside(status.st_uid), id_inside(status.st_gid)) if sources.is_preserving else (0, 0))
        mode = mode_of(self.chmod, status.st_mode) if self.chmod else None
        return item_of(sources.tree, entry, "/".join(parts), uid=uid, gid=gid, mode=mode)

    # ---- What is there ----

    def _put(self, item: Item) -> None:
        parts = tuple(item.path.split("/"))
        self._parents(parts)
        existing = self._existing(parts)
        earlier = self.layer.items.get(item.path)
        is_directory = existing.is_directory if existing is not None else stat.S_ISDIR(earlier.mode) if earlier is not None else None
        if is_directory is not None and is_directory != (item.kind == stat.S_IFDIR) and not self.link:
            was, now = ("a directory", "a file") if is_directory else ("no directory", "a directory")
            raise ImageError(f"/{item.path} is {was} already, and {now} is to be there")
        self.layer.add(item)

    def _existing(self, parts: Parts) -> Entry | None:
        if any(parts[:count] in self._absent for count in range(1, len(parts) + 1)):
            return None
        found = self.image.entry(parts)
        if found is None:
            self._absent.add(parts)
        return found

    def _parents(self, parts: Parts) -> None:
        """See to it that the directories that lead to *parts* are in the layer, as they are in the image."""
        for count in range(1, len(parts)):
            place = parts[:count]
            path = "/".join(place)
            known = self.layer.items.get(path)
            if known is not None:
                if known.kind != stat.S_IFDIR:
                    raise ImageError(f"/{path} is no directory")
                continue
            existing = self._existing(place)
            if existing is not None and not existing.is_directory and not self.link:
                raise ImageError(f"/{path} is there and is no directory")
            self.layer.add(self._directory(path, existing))

    def _directory(self, path: str, existing: Entry | None) -> Item:
        if existing is None or not existing.is_directory:
            uid, gid = self.owner or (0, 0)
            return Item(path, _DIRECTORY_MODE, uid, gid, self.now)
        status = existing.status
        return Item(path, status.st_mode, id_inside(status.st_uid), id_inside(status.st_gid), int(status.st_mtime))


def is_directory_target(target: str) -> bool:
    """Whether the destination is one by the way it is written."""
    return target.endswith("/") or target.rpartition("/")[2] in (".", "..")


def _top(tree: Tree) -> Entry:
    found = tree.entry(())
    if found is None:
        raise ImageError("the source is gone")
    return found
