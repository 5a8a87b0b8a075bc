"""A Dockerfile as text: from characters to statements, each of which knows where every one of its characters stood.

The rules are those of BuildKit's parser. Directives (``# escape=```) come first and only there. A line that ends in the escape character goes
on in the next one; comment lines and empty lines in between are left out. A RUN, COPY or ADD whose words say ``<<NAME`` is followed by lines
up to one that is ``NAME``.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from attrs import define, evolve, field, frozen

from sandbox.errors import DockerfileError

MAX_DOCKERFILE: Final = 4 << 20
_DIRECTIVE: Final = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(\S.*)", re.ASCII)  # of a line without blanks at its ends
_KNOWN: Final = ("syntax", "escape", "check")
_HEREDOC: Final = re.compile(r"\d*<<(-?)([^<]+)", re.ASCII)
_TAKES_HEREDOCS: Final = ("RUN", "COPY", "ADD")


@frozen
class Heredoc:
    """What stands between ``<<NAME`` and ``NAME``. *expand*: the name was not quoted; *chomp*: ``<<-``, leading tabs are gone."""

    name: str
    content: str
    expand: bool
    chomp: bool
    word: str  # as it stands in the statement: "<<-'EOF'"


@frozen
class Word:
    """A word, quotes and escapes as they were written, and where it begins in its statement's text."""

    text: str
    at: int


@define(eq=False, repr=False)
class Source:
    """The lines of a Dockerfile, under the *name* that errors show."""

    name: str
    lines: list[str]
    escape: str = "\\"
    directives: dict[str, str] = field(factory=dict[str, str])

    def error(self, message: str, line: int, column: int = 1, width: int = 1) -> DockerfileError:
        """Make an error that shows the place; *line* and *column* count from 1."""
        text = self.lines[line - 1] if 0 < line <= len(self.lines) else ""
        return DockerfileError(message, file=self.name, line=line, column=column, text=text[:500], width=width)


@frozen(eq=False)
class Statement:
    """One instruction: its keyword in capitals, and the *text* after it, continued lines joined."""

    keyword: str
    text: str
    heredocs: tuple[Heredoc, ...]
    source: Source
    starts: tuple[int, ...]  # where in `full` a piece begins that stood at ...
    places: tuple[tuple[int, int], ...]  # ... this line and column
    offset: int  # where `text` begins in `full`
    full: str

    def __repr__(self) -> str:
        return f"Statement({self.source.name}:{self.line}: {self.full[:200]!r})"

    @property
    def line(self) -> int:
        """Where it begins, from 1."""
        return self.places[0][0]

    @property
    def escape(self) -> str:
        """The escape character."""
        return self.source.escape

    def error(self, message: str, at: int | None = None, width: int = 1) -> DockerfileError:
        """Make an error that points to *text[at]* (None: to the keyword)."""
        where = 0 if at is None else self.offset + at
        index = bisect_right(self.starts, where) - 1
        line, column = self.places[index]
        return self.source.error(message, line, column + where - self.starts[index], len(self.keyword) if at is None else width)

    def error_at(self, message: str, word: Word) -> DockerfileError:
        """Make an error that points to *word*."""
        return self.error(message, word.at, max(1, len(word.text)))

    def original(self) -> str:
        """Give it as one text that reads to the same again: what ONBUILD hands down."""
        bodies = "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in self.heredocs)
        return f"{self.keyword} {self.text}{bodies}"


def read_source(data: bytes | str, name: str) -> Source:
    """Take the file apart into lines, and read its directives. Raises: DockerfileError."""
    if len(data) > MAX_DOCKERFILE:
        raise DockerfileError(f"a Dockerfile of more than {MAX_DOCKERFILE >> 20} MiB", file=name, line=1)
    try:
        text = (data.decode() if isinstance(data, bytes) else data).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1 if isinstance(data, bytes) else 1
        raise DockerfileError("not UTF-8", file=name, line=line) from None
    source = Source(name, [line.removesuffix("\r") for line in text.split("\n")])
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise source.error("a NUL byte, which no program can be given", line, source.lines[line - 1].index("\0") + 1)
    _read_directives(source)
    return source


def _read_directives(source: Source) -> None:
    for number, line in enumerate(source.lines, 1):
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None or (name := match[1].lower()) not in _KNOWN:
            return  # a comment, or anything else: from here on there are no directives
        if name in source.directives:
            raise source.error(f"the directive {name!r} is given twice", number, 1, len(line))
        if name == "escape" and match[2] not in ("\\", "`"):
            raise source.error(f"escape={match[2]}: the escape character is '\\' or '`'", number, line.index("=") + 1, len(line))
        source.directives[name] = match[2]
        source.escape = source.directives.get("escape", "\\")


def statements(source: Source) -> Iterator[Statement]:
    """Give the statements, one after the other. Raises: DockerfileError."""
    reader = _Reader(source)
    while (found := reader.next()) is not None:
        yield found


def is_comment(line: str) -> bool:
    """Whether a line is one, wherever it stands."""
    return line.lstrip().startswith("#")


@frozen(eq=False, repr=False)
class _Marker:
    """A word that announces a heredoc."""

    word: Word
    name: str
    chomp: bool
    expand: bool


@define(eq=False, repr=False)
class _Reader:
    source: Source
    row: int = 0  # of the next line, from 0

    def next(self) -> Statement | None:
        while self.row < len(self.source.lines):
            if self._is_left_out():
                self.row += 1
                continue
            pieces, places = self._logical_line()
            if full := "".join(pieces):
                return self._statement(full, pieces, places)
        return None

    def _logical_line(self) -> tuple[list[str], list[tuple[int, int]]]:
        """Join lines as long as they go on."""
        first = self.source.lines[self.row]
        lead = len(first) - len(first.lstrip())
        pieces: list[str] = []
        places: list[tuple[int, int]] = []
        line = first[lead:]
        while True:
            kept, goes_on = _continued(line, self.source.escape)
            pieces.append(kept)
            places.append((self.row + 1, lead + 1))
            self.row += 1
            lead = 0
            while goes_on and self.row < len(self.source.lines) and self._is_left_out():
                self.row += 1
            if not goes_on or self.row >= len(self.source.lines):
                return pieces, places
            line = self.source.lines[self.row]

    def _is_left_out(self) -> bool:
        line = self.source.lines[self.row]
        return not line.strip() or is_comment(line)

    def _statement(self, full: str, pieces: list[str], places: list[tuple[int, int]]) -> Statement:
        # Of pieces that are empty, the last one is where the next character stands: bisect_right takes that.
        starts = tuple(itertools.accumulate((len(piece) for piece in pieces[:-1]), initial=0))
        keyword = full.split(maxsplit=1)[0] if full.strip() else full
        offset = len(full) - len(full[full.index(keyword) + len(keyword) :].lstrip())
        bare = Statement(keyword.upper(), full[offset:].rstrip(), (), self.source, starts, tuple(places), offset, full)
        heredocs = tuple(self._body(bare, marker) for marker in _markers(bare))
        return evolve(bare, heredocs=heredocs) if heredocs else bare

    def _body(self, statement: Statement, marker: _Marker) -> Heredoc:
        kept: list[str] = []
        while self.row < len(self.source.lines):
            line = self.source.lines[self.row]
            line = line.lstrip("\t") if marker.chomp else line
            self.row += 1
            if line == marker.name:
                return Heredoc(marker.name, "".join(kept), marker.expand, marker.chomp, marker.word.text)
            kept.append(line + "\n")
        raise statement.error_at(f"the text of {marker.word.text} does not end: no line is {marker.name!r}", marker.word)


def _continued(line: str, escape: str) -> tuple[str, bool]:
    """What of *line* counts, and whether the next one belongs to it: a lone escape character ends it, blanks may follow."""
    stripped = line.rstrip(" \t")
    if stripped.endswith(escape) and not stripped.endswith(escape * 2):
        return stripped[:-1], True
    return line, False


def split_words(text: str, escape: str, at: int = 0) -> list[Word]:
    """Split at blanks that are neither quoted nor escaped; quotes and escapes stay as they are."""
    words: list[Word] = []
    quote = ""
    begin = -1
    index = at
    while index < len(text):
        letter = text[index]
        if begin < 0 and not letter.isspace():
            begin = index
        if quote:
            quote = "" if letter == quote else quote
            index += letter == escape and quote == '"'
        elif letter in "'\"":
            quote = letter
        elif letter == escape:
            index += 1
        elif letter.isspace() and begin >= 0:
            words.append(Word(text[begin:index], begin))
            begin = -1
        index += 1
    return [*words, Word(text[begin:], begin)] if begin >= 0 else words


def _markers(statement: Statement) -> Iterator[_Marker]:
    text = statement.text
    keyword = statement.keyword
    skipped = 0
    if keyword == "ONBUILD":
        match = re.match(r"([A-Za-z]+)\s+", text)
        keyword, skipped = (match[1].upper(), match.end()) if match else ("", 0)
    if keyword not in _TAKES_HEREDOCS or "<<" not in text or is_json_form(text[skipped:]):
        return
    for word in split_words(text, statement.escape, skipped):
        if (match := _HEREDOC.fullmatch(word.text)) is not None and (name := _unquoted(match[2], statement.escape)):
            yield _Marker(word, name, match[1] == "-", name == match[2])


def is_json_form(text: str) -> bool:
    """Whether it looks like ``["a", "b"]``, after its flags."""
    return re.match(r"(?:--\S+\s+)*\[", text) is not None and text.endswith("]")


def _unquoted(text: str, escape: str) -> str:
    """The name of a heredoc without its quotes; "" when it is no single word."""
    if any(letter.isspace() for letter in text):
        return ""
    quotes = text[0] if text[0] in "'\"" else ""
    if quotes:
        return text[1:-1] if len(text) > 2 and text[-1] == quotes and quotes not in text[1:-1] else ""
    return text.replace(escape, "") if not set("'\"$`") & set(text.replace(escape, "")) else ""
