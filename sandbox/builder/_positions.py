"""Globs with many wildcards, matched by following all positions within the pattern at once, as the bits of one number.

A regular expression tries one way after the other, which a pattern like ``*a*a*a*a*b`` makes more than anybody can wait for; and patterns come with
contexts and with the triggers of ONBUILD, from strangers. Here no pattern takes more than its length times the text's.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import Final

from attrs import define, field, frozen

MAX_LETTERS: Final = 4096  # whose positions are remembered


class Kind(enum.Enum):
    """What a piece of a glob stands for."""

    ONE = enum.auto()  # one letter that the piece's expression matches
    STAR = enum.auto()  # any letters but "/"
    ALL = enum.auto()  # "**": any letters
    DIRECTORIES = enum.auto()  # "**/": nothing, or any letters and a "/"


@frozen
class Piece:
    """A piece of a glob; *text*: the regular expression of the one letter."""

    kind: Kind
    text: str = ""


@define(eq=False, repr=False)
class Positions:
    """A glob. Bit n of a set of positions: the first n pieces are matched; within ``**/`` there is one position more."""

    _ones: list[tuple[int, re.Pattern[str]]] = field(factory=list[tuple[int, re.Pattern[str]]], init=False)
    _star: int = field(default=0, init=False)  # positions that stay where they are at any letter but "/",
    _all: int = field(default=0, init=False)  # or at any,
    _slash: int = field(default=0, init=False)  # or go on at a "/" as well;
    _skip: int = field(default=0, init=False)  # that may go on without a letter,
    _skip_two: int = field(default=0, init=False)  # over two pieces
    _end: int = field(default=1, init=False)
    _known: dict[str, int] = field(factory=dict[str, int], init=False)

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Positions:
        """Prepare the glob of *pieces*."""
        made = cls()
        for piece in pieces:
            made._add(piece)
        return made

    def _add(self, piece: Piece) -> None:
        here = self._end
        self._end <<= 1
        match piece.kind:
            case Kind.ONE:
                self._ones.append((here, re.compile(piece.text, re.DOTALL)))
            case Kind.STAR:
                self._star |= here
                self._skip |= here
            case Kind.ALL:
                self._all |= here
                self._skip |= here
            case Kind.DIRECTORIES:
                self._skip |= here
                self._skip_two |= here
                self._all |= here << 1
                self._slash |= here << 1
                self._end <<= 1

    def fullmatch(self, text: str) -> bool:
        """Whether the glob is all of *text*."""
        now = self._closed(1)
        for letter in text:
            following = (now & self._taken(letter)) << 1 | now & self._all
            following |= (now & self._slash) << 1 if letter == "/" else now & self._star
            now = self._closed(following)
            if not now:
                return False
        return bool(now & self._end)

    def _closed(self, positions: int) -> int:
        while (more := positions | (positions & self._skip) << 1 | (positions & self._skip_two) << 2) != positions:
            positions = more
        return positions

    def _taken(self, letter: str) -> int:
        """The positions whose piece is *letter*."""
        found = self._known.get(letter)
        if found is None:
            found = sum(bit for bit, pattern in self._ones if pattern.fullmatch(letter))
            if len(self._known) < MAX_LETTERS:
                self._known[letter] = found
        return found
