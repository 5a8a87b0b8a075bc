"""The steps that put files into an image without running anything: COPY, ADD and WORKDIR."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from attrs import define, field

from sandbox.builder._addresses import is_git, is_url
from sandbox.builder._copying import Archive, Found, Inline, Placing, Sources, is_directory_target
from sandbox.builder._job import Job, digest_of
from sandbox.builder._layer import Item, Layer, item_of, key_of, write_tar
from sandbox.builder._owners import id_inside, owner_of
from sandbox.builder._source import Heredoc, Word
from sandbox.builder._state import LayerRef, State, expand_word
from sandbox.builder._tree import Tree
from sandbox.builder.expansion import ExpansionError, expand
from sandbox.builder.ignore import Patterns, can_match_nothing
from sandbox.builder.instructions import Copy, Words
from sandbox.errors import DockerfileError, ImageError, UnsupportedError, UsageError

_PLAIN_ROOT: Final = (0o40755, 0, 0)

Done = tuple[LayerRef | None, str, bool]  # the layer, the time it was made, whether the cache had it


def copy_files(job: Job, state: State, copy: Copy, sources: Callable[[str], Sources]) -> Done:
    """Carry out COPY or ADD. *sources*: the tree that ``--from`` names. Raises: DockerfileError: at the word that is wrong."""
    return _Copying(job, state, copy, sources).run()


def make_working_dir(job: Job, state: State, instruction: Words) -> Done:
    """Carry out WORKDIR: the directory is made when it is not there."""
    (word,) = instruction.words
    text = expand_word(instruction.statement, word, state.names)
    if not text:
        raise instruction.statement.error_at("WORKDIR: an empty path", word)
    path = posixpath.normpath(posixpath.join("/", state.working_dir, text))
    state.set(working_dir=path)
    image, layer = job.tree_of(state), Layer()
    try:
        owner = owner_of(state.settings.user, image) if state.settings.user else None
        Placing(image, layer, job.now, owner=owner).make_directory(path, "/")
    except ImageError as error:
        raise instruction.statement.error_at(f"WORKDIR: {error}", word) from error
    return _finish(job, image, layer)


@define(eq=False, repr=False)
class _Copying:
    job: Job
    state: State
    copy: Copy
    sources: Callable[[str], Sources]
    image: Tree = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.image = self.job.tree_of(self.state)

    def run(self) -> Done:
        copy, statement = self.copy, self.copy.statement
        target = expand_word(statement, copy.target, self.state.names)
        words = [self._expanded(word) for word in copy.sources]
        if len(words) > 1 and not Placing(self.image, Layer(), self.job.now).is_directory(target, self.state.working_dir):
            raise statement.error_at(f"{statement.keyword} of several sources needs a directory: write {target}/", copy.target)
        archives: list[tuple[Word, Found]] = []
        found: list[Found | Inline | Archive] = []
        for word, text in zip(copy.sources, words, strict=True):
            self._guarded(word, lambda word=word, text=text: self._look(word, text, target, found, archives))  # type: ignore[misc]
        return self._guarded(copy.target, lambda: self._place(target, found, archives))

    def _guarded(self, word: Word, action: Callable[[], Done | None]) -> Done:
        try:
            return action() or (None, "", False)
        except DockerfileError:
            raise
        except (ImageError, UsageError, OSError) as error:
            raise self.copy.statement.error_at(f"{self.copy.statement.keyword}: {error}", word) from error

    def _expanded(self, word: Word) -> str:
        return word.text if self._heredoc(word) else expand_word(self.copy.statement, word, self.state.names)

    def _heredoc(self, word: Word) -> Heredoc | None:
        return next((heredoc for heredoc in self.copy.statement.heredocs if heredoc.word == word.text), None)

    # ---- Sources ----

    def _look(self, word: Word, text: str, target: str, found: list[Found | Inline | Archive], archives: list[tuple[Word, Found]]) -> None:
        if (heredoc := self._heredoc(word)) is not None:
            found.append(Inline(heredoc.name, self._content(heredoc, word).encode("utf-8", "surrogateescape")))
        elif self.copy.is_add and is_git(text):
            raise UnsupportedError("repositories are not cloned", feature="add-git", remedy="clone it before the build, and COPY it")
        elif self.copy.is_add and is_url(text):
            got = self._fetched(text, target)
            found.append(Archive(self._unpacked(iter([got.data]))) if self.copy.unpack else got)
        else:
            self._look_in_tree(text, found, archives, word)

    def _content(self, heredoc: Heredoc, word: Word) -> str:
        if not heredoc.expand:
            return heredoc.content
        try:
            # By a backslash, whatever "# escape=" says, and before any letter: as BuildKit does, not as a shell does.
            return expand(heredoc.content, self.state.names, raw_quotes=True)
        except ExpansionError as error:
            raise self.copy.statement.error_at(f"in the text of {heredoc.word}: {error}", word) from None

    def _fetched(self, url: str, target: str) -> Inline:
        from sandbox.builder._fetch import check_checksum, fetch  # needed by few

        if self.job.options.network in (None, "none"):
            raise ImageError("a URL, and the build has no network; ask for it: network='host', --network host")
        checksum = expand_word(self.copy.statement, Word(self.copy.checksum, 0), self.state.names)
        check_checksum(checksum)
        got = fetch(url, checksum)
        if not got.name and is_directory_target(target):
            raise ImageError(f"{url} ends in no file name; give the destination one")
        return Inline(got.name or "file", got.data, 0o600, got.mtime)

    def _look_in_tree(self, text: str, found: list[Found | Inline | Archive], archives: list[tuple[Word, Found]], word: Word) -> None:
        copy = self.copy
        if copy.checksum:
            raise ImageError("--checksum is for URLs")
        origin = self.sources(copy.from_)
        ones = origin.find(text, with_parents=copy.parents)
        if not ones and not can_match_nothing(text):  # "COPY package.json package-lock.json* ./": BuildKit takes a glob that matches nothing
            where = f"in {copy.from_}" if copy.from_ else "in the context"
            hint = ", or .dockerignore leaves it out" if origin.ignored.rules else ""
            raise ImageError(f"{text!r}: no such file or directory {where}{hint}")
        for one in ones:
            if copy.is_add and copy.unpack is not False and one.entry.is_file and _is_archive(one):
                archives.append((word, one))
            elif copy.unpack:
                raise ImageError(f"{text!r} is no archive")
            else:
                found.append(one)

    # ---- The layer ----

    def _place(self, target: str, found: list[Found | Inline | Archive], archives: list[tuple[Word, Found]]) -> Done:
        names = self.state.names
        statement, copy = self.copy.statement, self.copy
        layer = Layer()
        owner = expand_word(statement, Word(copy.chown, 0), names)
        placing = Placing(
            self.image,
            layer,
            self.job.now,
            owner=owner_of(owner, self.image) if owner else None,
            chmod=expand_word(statement, Word(copy.chmod, 0), names),
            link=copy.link,
            exclude=Patterns.of([expand_word(statement, Word(text, 0), names) for text in copy.exclude], what="--exclude"),
        )
        several = len(found) > 1 and not archives
        placing.place(found, target, self.state.working_dir, several=several)
        if not archives:
            return _finish(self.job, self.image, layer)
        # What is in an archive is not looked at when the archive is known, and the image below it is the same.
        key = self._key_of_archives(target, owner, layer, archives)
        if (known := self.job.cached(key)) is not None:
            return known[0], known[1], True
        placing.place([Archive(self._unpacked_file(one)) for _, one in archives], target, self.state.working_dir, several=True)
        done = _finish(self.job, self.image, layer)
        self.job.remember(key, done[0])
        return done

    def _key_of_archives(self, target: str, owner: str, layer: Layer, archives: list[tuple[Word, Found]]) -> str:
        items = [item_of(one.sources.tree, one.entry, str(number), uid=0, gid=0) for number, (_, one) in enumerate(archives)]
        below = [layer.diff_id for layer in self.state.layers]
        flags = (self.state.working_dir, target, owner, self.copy.chmod, *self.copy.exclude)
        beside = key_of(layer.ordered(), self.job.hashes)
        return digest_of("add-0755", key_of(items, self.job.hashes), beside, *flags, *below, str(self.job.options.epoch))

    def _unpacked_file(self, found: Found) -> Tree:
        from sandbox.image.unpack import read_chunks

        source = found.sources.tree.open(found.entry)
        try:
            return self._unpacked(read_chunks(source))
        finally:
            os.close(source)

    def _unpacked(self, chunks: Iterator[bytes]) -> Tree:
        from sandbox.image.compression import decompress
        from sandbox.image.unpack import unpack

        directory = self.job.workshop.directory()
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fchmod(place, 0o755)  # what a destination gets that is not there yet, unless the archive says another mode of "."
            unpack(decompress(chunks), place, keep_owners=os.geteuid() == 0, rootfs=True)
        finally:
            os.close(place)
        return self.job.tree_at(directory)


def _is_archive(found: Found) -> bool:
    """Whether it begins like a tar, compressed or not."""
    import tarfile

    from sandbox.image.compression import decompress

    fd = found.sources.tree.open(found.entry)
    try:
        head = b""
        for piece in decompress(iter(lambda: os.read(fd, 1 << 16), b"")):
            head += piece
            if len(head) >= tarfile.BLOCKSIZE:
                break
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ImageError, UnsupportedError):
        return False
    finally:
        os.close(fd)
    return True


def _finish(job: Job, image: Tree, layer: Layer) -> Done:
    """Take the layer from the cache, or make it; None: there is nothing in it."""
    if not layer.items:
        return None, "", False
    items = [*_root_of(image), *layer.ordered()]
    key = digest_of("files", key_of(items, job.hashes), str(job.options.epoch))
    if (known := job.cached(key)) is not None:
        return known[0], known[1], True
    made = job.add_layer(lambda write: write_tar(items, write, clamp=job.options.epoch))
    job.remember(key, made)
    return made, job.time, False


def _root_of(image: Tree) -> Iterable[Item]:
    """The top directory, when the image has another one than layers have by themselves."""
    top = image.entry(())
    if top is None:
        return
    status = top.status
    uid, gid = id_inside(status.st_uid), id_inside(status.st_gid)
    if (status.st_mode, uid, gid) != _PLAIN_ROOT:
        yield Item("./", status.st_mode, uid, gid, int(status.st_mtime))
