"""Variables in instructions, expanded as BuildKit does: ``$x``, ``${x}`` and all the modifiers of POSIX's shell, quotes and escapes.

Pure: a text and what the names stand for go in, a text comes out. Patterns are matched by following all their positions at once, so that no pattern
takes more than the product of its length and the text's: triggers of ONBUILD come from strangers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from attrs import define

__all__ = ["ExpansionError", "expand", "expand_words", "matches"]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?\-$!]", re.ASCII)
_DEPTH: Final = 50  # of ${a:-${b:-...}}
_MAX_WORK: Final = 1 << 22  # characters of a pattern by those of the value
_MAX: Final = 1 << 20  # characters; a program is given 128 KiB at most


class ExpansionError(ValueError):
    """The text is not as it should be; *at* is where."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


def expand(text: str, names: Mapping[str, str], *, escape: str = "\\", raw_quotes: bool = False) -> str:
    """Expand *text* to one word; quotes and escapes are taken away, with *raw_quotes* (the text of a heredoc) escapes alone.

    Raises: ExpansionError.
    """
    expansion = _Expansion(text, names, escape, raw_quotes)
    return "".join(piece for piece, _ in expansion.pieces())


def expand_words(text: str, names: Mapping[str, str], *, escape: str = "\\") -> list[str]:
    """As `expand`; what variables bring is split at blanks, where they are not quoted. Raises: ExpansionError."""
    words: list[str] = []
    current = ""
    has_word = False
    for piece, splits in _Expansion(text, names, escape, raw_quotes=False).pieces():
        if not splits:
            current += piece
            has_word = True
            continue
        for index, part in enumerate(re.split(r"\s+", piece)):
            if index and (current or has_word):
                words.append(current)
                current, has_word = "", False
            current += part
    return [*words, current] if current or has_word else words


@define(eq=False, repr=False)
class _Expansion:
    text: str
    names: Mapping[str, str]
    escape: str
    raw_quotes: bool
    at: int = 0
    depth: int = 0
    brought: int = 0  # characters, by variables

    def pieces(self, stop: str = "", *, is_pattern: bool = False) -> Iterator[tuple[str, bool]]:
        """Give what it expands to, piece by piece, and of each whether it may be split at blanks; ends at the letter *stop*."""
        while self.at < len(self.text):
            letter = self.text[self.at]
            if stop and letter == stop:
                return
            if letter == "'" and not self.raw_quotes:
                yield self._single_quoted(), False
            elif letter == '"' and not self.raw_quotes:
                yield self._double_quoted(), False
            elif letter == "$":
                yield self._variable(), True
            elif letter == self.escape:
                yield self._escaped(is_pattern=is_pattern), False
            else:
                self.at += 1
                yield letter, letter.isspace()

    def _escaped(self, *, is_pattern: bool) -> str:
        following = self.text[self.at + 1 : self.at + 2]
        self.at += 2
        if is_pattern:
            return "\\" + following
        return following  # an escape character at the very end is dropped, as BuildKit does

    def _single_quoted(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise ExpansionError("a quote (') that does not end", self.at)
        begin, self.at = self.at + 1, end + 1
        return self.text[begin:end]

    def _double_quoted(self) -> str:
        begin = self.at
        self.at += 1
        result: list[str] = []
        while self.at < len(self.text):
            letter = self.text[self.at]
            if letter == '"':
                self.at += 1
                return "".join(result)
            if letter == "$":
                result.append(self._variable())
                continue
            if letter == self.escape and self.text[self.at + 1 : self.at + 2] in ('"', "$", self.escape):
                self.at += 1
                letter = self.text[self.at]
            result.append(letter)
            self.at += 1
        raise ExpansionError('a quote (") that does not end', begin)

    def _variable(self) -> str:
        """The value of one; all of a text's together are bounded, or a dozen lines like ``ENV A=$A$A$A$A`` would take all memory."""
        begin = self.at
        value = self._value(begin)
        self.brought += len(value)
        if self.brought > _MAX:
            raise ExpansionError(f"variables that bring more than {_MAX} characters", begin)
        return value

    def _value(self, begin: int) -> str:
        self.at += 1
        if self.text[self.at : self.at + 1] == "{":
            self.at += 1
            self.depth += 1
            if self.depth > _DEPTH:
                raise ExpansionError(f"more than {_DEPTH} variables inside one another", begin)
            value = self._braced(begin)
            self.depth -= 1
            return value
        match = _NAME.match(self.text, self.at)
        if match is None:
            return "$"
        self.at = match.end()
        return self.names.get(match[0], "")

    def _braced(self, begin: int) -> str:
        match = _NAME.match(self.text, self.at)
        if match is None:
            raise ExpansionError("'${' without the name of a variable", begin)
        name, self.at = match[0], match.end()
        value = self.names.get(name)
        modifier = self._modifier(begin)
        if modifier == "":
            result = value or ""
        elif modifier[-1] in "+-?":
            result = self._conditional(name, value, modifier, begin)
        elif modifier[0] in "#%":
            result = trim(value or "", self._pattern("}", begin, value or ""), modifier)
        else:
            pattern = self._pattern("/", begin, value or "")
            self.at += 1
            result = replace(value or "", pattern, self._until("}", begin), all_of_them=modifier == "//")
        if self.text[self.at : self.at + 1] != "}":
            raise ExpansionError("'${' without '}'", begin)
        self.at += 1
        if len(result) > _MAX:
            raise ExpansionError(f"a value of more than {_MAX} characters", begin)
        return result

    def _modifier(self, begin: int) -> str:
        rest = self.text[self.at : self.at + 2]
        if not rest:
            raise ExpansionError("'${' without '}'", begin)
        if rest[0] == "}":
            return ""
        found = next((known for known in (":-", ":+", ":?", "##", "%%", "//", "-", "+", "?", "#", "%", "/") if rest.startswith(known)), None)
        if found is None:
            raise ExpansionError(f"{rest!r} modifies no variable; there are :- - :+ + :? ? # ## % %% / and //", self.at)
        self.at += len(found)
        return found

    def _until(self, stop: str, begin: int, *, is_pattern: bool = False) -> str:
        result = "".join(piece for piece, _ in self.pieces(stop, is_pattern=is_pattern))
        if self.at >= len(self.text):
            raise ExpansionError(f"'${{' without {stop!r}", begin)
        return result

    def _pattern(self, stop: str, begin: int, value: str) -> str:
        pattern = self._until(stop, begin, is_pattern=True)
        if len(pattern) * len(value) > _MAX_WORK:
            raise ExpansionError(f"a pattern of {len(pattern)} characters for a value of {len(value)}, which would take too long", begin)
        return pattern

    def _conditional(self, name: str, value: str | None, modifier: str, begin: int) -> str:
        word = self._until("}", begin)
        is_set = bool(value) if modifier[0] == ":" else value is not None
        match modifier[-1]:
            case "-":
                return value or "" if is_set else word
            case "+":
                return word if is_set else ""
            case _:
                if is_set:
                    return value or ""
                raise ExpansionError(f"{name}: {word or ('it is empty or not set' if modifier[0] == ':' else 'it is not set')}", begin)


# ---- Patterns: * ? and \ ----


def trim(value: str, pattern: str, modifier: str) -> str:
    """Take the shortest or longest (``##``, ``%%``) beginning or end that *pattern* matches away from *value*."""
    tokens = _tokens(pattern)
    if modifier[0] == "%":
        value, tokens = value[::-1], tokens[::-1]
    ends = _ends(value, 0, tokens)
    length = 0 if not ends else ends[-1] if len(modifier) == 2 else ends[0]
    rest = value[length:]
    return rest[::-1] if modifier[0] == "%" else rest


def replace(value: str, pattern: str, replacement: str, *, all_of_them: bool) -> str:
    """Put *replacement* in the place of the first or of all longest matches of *pattern*; one that matches nothing changes nothing."""
    tokens = _tokens(pattern)
    before_star = tokens[: tokens.index(_ANY)] if _ANY in tokens else None
    result: list[str] = []
    at = 0
    while at < len(value) and tokens:
        ends = _ends(value, at, tokens)
        if ends and ends[-1] > at:
            result.append(replacement)
            at = ends[-1]
            if not all_of_them or before_star is not None:  # its star would have taken what a second match begins with
                break
        elif before_star is not None and _ends(value, at, before_star):
            break  # what follows the star is nowhere to the right of here
        else:
            result.append(value[at])
            at += 1
    return "".join(result) + value[at:]


def matches(value: str, pattern: str) -> bool:
    """Whether *pattern* (``*``, ``?``, escapes by a backslash) matches the whole of *value*."""
    ends = _ends(value, 0, _tokens(pattern))
    return bool(ends) and ends[-1] == len(value)


_ANY: Final = "any"  # "*"; one character: "?"; a letter stands for itself, as ("letter",)
_Token = str | tuple[str]


def _tokens(pattern: str) -> list[_Token]:
    tokens: list[_Token] = []
    letters = iter(pattern)
    for letter in letters:
        if letter == "\\":
            tokens.append((next(letters, "\\"),))
        elif letter == "*":
            if tokens[-1:] != [_ANY]:
                tokens.append(_ANY)
        else:
            tokens.append("?" if letter == "?" else (letter,))
    return tokens


def _ends(value: str, begin: int, tokens: list[_Token]) -> list[int]:
    """Where a match that begins at *begin* can end, in order: all positions within the pattern are followed at once."""
    ends: list[int] = []
    states = _closed({0}, tokens)
    for at in range(begin, len(value) + 1):
        if len(tokens) in states:
            ends.append(at)
        if at == len(value) or not states:
            break
        states = _closed(_step(states, value[at], tokens), tokens)
    return ends


def _step(states: set[int], letter: str, tokens: list[_Token]) -> set[int]:
    following: set[int] = set()
    for state in states:
        wanted = tokens[state] if state < len(tokens) else None
        if wanted == _ANY:
            following.add(state)
        elif wanted in ("?", (letter,)):
            following.add(state + 1)
    return following


def _closed(states: set[int], tokens: list[_Token]) -> set[int]:
    """A star may also stand for nothing."""
    return states | {state + 1 for state in states if state < len(tokens) and tokens[state] == _ANY}
