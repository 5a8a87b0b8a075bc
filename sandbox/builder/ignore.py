"""Patterns of paths: those of ``.dockerignore`` and ``COPY --exclude``, and the globs of COPY's sources.

A component is matched as Go's ``filepath.Match`` does (``*``, ``?``, ``[a-z]``, ``[^a]``, escapes); ``**`` stands for any number of directories. Of a
list the last pattern that matches decides, ``!`` takes an exclusion back, and what lies in an excluded directory is excluded too. Pure.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from attrs import field, frozen

from sandbox.builder._positions import Kind, Piece, Positions
from sandbox.errors import UsageError

__all__ = ["Patterns", "can_match_nothing", "compile_glob", "has_glob"]

MAX_PATTERNS: Final = 10_000


class Glob(Protocol):
    """A pattern of a whole path, compiled."""

    def fullmatch(self, text: str, /) -> object:
        """Something true if it matches."""


def compile_glob(pattern: str, *, what: str = "pattern") -> Glob:
    """Compile one pattern of a whole path. Raises: UsageError: it is malformed."""
    pieces = _pieces(pattern, what)
    if sum(piece.kind is not Kind.ONE for piece in pieces) <= _FEW:  # faster, and there are not many ways to try
        return re.compile("".join(piece.text or _WILD[piece.kind] for piece in pieces), re.DOTALL)
    return Positions.of(pieces)


_FEW: Final = 2
_WILD: Final = {Kind.STAR: "[^/]*", Kind.ALL: ".*", Kind.DIRECTORIES: "(?:.*/)?"}


def _pieces(pattern: str, what: str) -> list[Piece]:
    pieces: list[Piece] = []
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        if pattern.startswith("**", at):
            while pattern.startswith("*", at):
                at += 1
            pieces.append(Piece(Kind.DIRECTORIES if pattern.startswith("/", at) else Kind.ALL))
            at += pattern.startswith("/", at)
        elif letter == "*":
            pieces.append(Piece(Kind.STAR))
            at += 1
        elif letter == "[":
            text, at = _class(pattern, at, what)
            pieces.append(Piece(Kind.ONE, text))
        elif letter == "\\":
            if at + 1 >= len(pattern):
                raise UsageError(f"{what}: {pattern!r} ends in an escape")
            pieces.append(Piece(Kind.ONE, re.escape(pattern[at + 1])))
            at += 2
        else:
            pieces.append(Piece(Kind.ONE, "[^/]" if letter == "?" else re.escape(letter)))
            at += 1
    return pieces


def _class(pattern: str, begin: int, what: str) -> tuple[str, int]:
    """Read ``[...]``: letters and ranges, ``^`` first for all others; a slash is never one of them."""
    at = begin + 1
    negated = pattern.startswith("^", at)
    at += negated
    pieces: list[str] = []
    while not pattern.startswith("]", at) or not pieces:
        low, at = _letter(pattern, at, what)
        high = low
        if pattern.startswith("-", at):
            high, at = _letter(pattern, at + 1, what)
        if low > high:
            raise UsageError(f"{what}: {pattern!r}: the range {low}-{high} is empty")
        pieces.append(f"{re.escape(low)}-{re.escape(high)}")
    return f"(?!/)[{'^' if negated else ''}{''.join(pieces)}]", at + 1


def _letter(pattern: str, at: int, what: str) -> tuple[str, int]:
    at += pattern.startswith("\\", at)
    # In Go, "[]a]" and "[-]" are malformed: a bracket or dash that stands for itself is escaped.
    if at >= len(pattern) or (pattern[at] in "]-" and pattern[at - 1] != "\\"):
        raise UsageError(f"{what}: {pattern!r}: '[' without a whole class and ']'")
    return pattern[at], at + 1


def has_glob(path: str) -> bool:
    """Whether *path* is a pattern."""
    return any(letter in path for letter in "*?[\\")


def can_match_nothing(path: str) -> bool:
    """Whether *path* stands for any number of files, none included; one whose special letters are all escaped names a file."""
    return any(letter in re.sub(r"\\.", "", path, flags=re.DOTALL) for letter in "*?[")


@frozen(repr=False)
class _Rule:
    pattern: Glob
    takes_back: bool


@frozen
class Patterns:
    """A list of patterns, in order."""

    rules: tuple[_Rule, ...] = ()
    texts: tuple[str, ...] = field(default=())

    @classmethod
    def parse(cls, text: str, *, what: str = ".dockerignore") -> Patterns:
        """Read a file of patterns: one a line, ``#`` first for a comment. Raises: UsageError."""
        lines = (line.strip() for line in text.removeprefix("\ufeff").splitlines() if not line.startswith("#"))
        return cls.of([line for line in lines if line], what=what)

    @classmethod
    def of(cls, lines: Iterable[str], *, what: str) -> Patterns:
        """Take patterns as they are. Raises: UsageError."""
        rules: list[_Rule] = []
        texts = list(lines)
        if len(texts) > MAX_PATTERNS:
            raise UsageError(f"{what}: more than {MAX_PATTERNS} patterns")
        for line in texts:
            takes_back = line.startswith("!")
            text = line[1:].strip() if takes_back else line
            if not text:
                raise UsageError(f"{what}: '!' without a pattern")
            cleaned = posixpath.normpath(text).lstrip("/")
            if cleaned in ("", ".", ".."):
                continue  # the context itself cannot be left out, and nothing lies above it
            rules.append(_Rule(compile_glob(cleaned, what=what), takes_back))
        return cls(tuple(rules), tuple(texts))

    def excludes(self, path: str) -> bool:
        """Whether *path* (relative, ``/`` between components) is left out."""
        return bool(self.rules) and self._decide(_prefixes(path))

    def _decide(self, prefixes: Sequence[str]) -> bool:
        excluded = False
        for rule in self.rules:
            if rule.takes_back == excluded and any(rule.pattern.fullmatch(prefix) for prefix in prefixes):
                excluded = not rule.takes_back
        return excluded

    def can_prune(self, path: str) -> bool:
        """Whether everything below the directory *path* is left out: it is, and nothing is taken back."""
        return self.excludes(path) and not any(rule.takes_back for rule in self.rules)


def _prefixes(path: str) -> list[str]:
    """The path, and all directories that it lies in."""
    parts = path.split("/")
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]
