"""``--format '{{.Names}}'``: what Docker's users take from Go's text/template, over what is listed or inspected. Pure.

There are fields (``.State.Status``), variables (``$``, ``$name``), ``if``, ``with``, ``range``, ``else``, pipelines, parentheses, and the functions
below. A template is read into functions of a scope once, and then filled in for each thing.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeGuard

from attrs import evolve, frozen

from sandbox import UsageError
from sandbox.cli.outcome import printable

_ACTION: Final = re.compile(r"(\s*\{\{-\s|\{\{)(.*?)(\s-\}\}\s*|\}\})", re.DOTALL)
_TOKEN: Final = re.compile(r'\s+|"(?:[^"\\]|\\.)*"|`[^`]*`|-?\d+|:=|\.?[A-Za-z_]\w*|\$\w*|[.,|()]')
_DEEPEST: Final = 50
Value = Any  # as JSON has it


@frozen
class Scope:
    """What a template sees: the thing (``$``), the part of it that is looked at (``.``), and variables."""

    root: Value
    dot: Value
    names: Mapping[str, Value] = {}


Part = Callable[[Scope], str]
Expression = Callable[[Scope], Value]


def read(text: str) -> Callable[[Value], str]:
    """What fills *text* in. Raises: UsageError, also when it is filled in: what is wrong with it."""
    template = _Template(text)
    parts = template.parts(0, ends=())
    return lambda value: "".join(part(Scope(value, value)) for part in parts)


def _wrong(what: str) -> UsageError:
    return UsageError(f"--format: {what}; such as '{{{{.Name}}}}', 'table {{{{.ID}}}}\\t{{{{.Name}}}}', or json")


class _Template:
    """Reads one, piece by piece: text and actions take turns."""

    def __init__(self, text: str) -> None:
        self._pieces: list[tuple[bool, str]] = []
        at = 0
        for match in _ACTION.finditer(text):
            self._pieces += [(False, text[at : match.start()]), (True, match[2].strip())]
            at = match.end()
        if "{{" in text[at:]:
            raise _wrong("a '{{' without its '}}'")
        self._pieces.append((False, text[at:]))
        self._at = 0
        self.end = ""  # what ended the last parts

    def parts(self, depth: int, *, ends: Iterable[str]) -> list[Part]:
        if depth > _DEEPEST:
            raise _wrong(f"more than {_DEEPEST} blocks in one another")
        found: list[Part] = []
        while self._at < len(self._pieces):
            is_action, text = self._pieces[self._at]
            self._at += 1
            if not is_action:
                found.append(_said(text))
                continue
            word = text.split(maxsplit=1)[0] if text else ""
            if word in ("end", "else"):
                if word not in ends:
                    raise _wrong(f"{{{{{word}}}}} of no block")
                self.end = text
                return found
            if word in ("if", "with", "range"):
                found.append(self._block(word, text[len(word) :], depth))
            elif not text.startswith("/*"):
                found.append(_shown(_Line(text).whole()))
        if ends:
            raise _wrong("a block without its {{end}}")
        return found

    def _block(self, word: str, text: str, depth: int) -> Part:
        line = _Line(text)
        names = line.assigned()
        if names and word != "range":
            raise _wrong(f"{{{{{word}}}}} with a variable")
        what = line.whole()
        body = self.parts(depth + 1, ends=("end", "else"))
        other: list[Part] = []
        if self.end != "end":
            more = self.end.removeprefix("else").strip()
            if more:
                following, _, rest = more.partition(" ")
                if following != "if" or word != "if":
                    raise _wrong(f"{{{{{self.end}}}}}")
                other = [self._block(following, rest, depth + 1)]
            else:
                other = self.parts(depth + 1, ends=("end",))
        make = {"if": _if, "with": _with}.get(word)
        return _range(what, body, other, names) if make is None else make(what, body, other)


def _said(text: str) -> Part:
    return lambda _: text


def _shown(what: Expression) -> Part:
    return lambda scope: printable(show(what(scope)))  # labels, say, are whatever an image's maker has written


def _all(parts: Iterable[Part], scope: Scope) -> str:
    return "".join(part(scope) for part in parts)


def _if(what: Expression, body: list[Part], other: list[Part]) -> Part:
    return lambda scope: _all(body if what(scope) else other, scope)


def _with(what: Expression, body: list[Part], other: list[Part]) -> Part:
    def part(scope: Scope) -> str:
        value = what(scope)
        return _all(body, evolve(scope, dot=value)) if value else _all(other, scope)

    return part


def _range(what: Expression, body: list[Part], other: list[Part], names: Sequence[str]) -> Part:
    def part(scope: Scope) -> str:
        value = what(scope)
        pairs: list[tuple[Value, Value]]
        if _is_map(value):
            pairs = sorted(value.items())  # as Go does
        elif _is_list(value) or not value:
            pairs = [(number, one) for number, one in enumerate(value or [])]
        else:
            raise _wrong(f"{{{{range}}}} over {show(value)!r}, which is one thing")
        found: list[str] = []
        for key, one in pairs:
            said = dict(zip(names, (key, one) if len(names) == 2 else (one,), strict=False))
            found.append(_all(body, evolve(scope, dot=one, names={**scope.names, **said})))
        return "".join(found) if pairs else _all(other, scope)

    return part


class _Line:
    """What stands in one action."""

    def __init__(self, text: str) -> None:
        self._text, self._tokens, at = text, list[str](), 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise _wrong(f"{text!r} makes no sense at {text[at:]!r}")
            self._tokens.append(match[0])
            at = match.end()
        self._at = self._depth = 0

    def assigned(self) -> list[str]:
        """The variables before ``:=``, if there are any."""
        if ":=" not in self._tokens:
            return []
        place = self._tokens.index(":=")
        names = [token for token in self._tokens[:place] if token.startswith("$")]
        self._at = place + 1
        return names

    def whole(self) -> Expression:
        """All that follows."""
        found = self._pipeline()
        if self._next() is not None:
            raise _wrong(f"{self._text!r} makes no sense at {self._next()!r}")
        return found

    def _next(self) -> str | None:
        while self._at < len(self._tokens) and self._tokens[self._at].isspace():
            self._at += 1
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _pipeline(self) -> Expression:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _wrong(f"more than {_DEEPEST} parentheses in one another")
        found = self._command(None)
        while self._next() == "|":
            self._at += 1
            found = self._command(found)
        self._depth -= 1
        return found

    def _command(self, piped: Expression | None) -> Expression:
        word = self._next()
        if word is not None and word in _FUNCTIONS:
            self._at += 1
            given: list[Expression] = []
            while self._next() not in (None, "|", ")"):
                given.append(self._operand())
            return _called(word, [*given, *([] if piped is None else [piped])])
        found = self._operand()
        if piped is not None or self._next() not in (None, "|", ")"):
            raise _wrong(f"{self._text!r}: {word!r} is no function; there are {', '.join(sorted(_FUNCTIONS))}")
        return found

    def _operand(self) -> Expression:
        token = self._next()
        self._at += 1
        if token is None or token in ("|", ")", ",", ":="):
            raise _wrong(f"{self._text!r} ends too early" if token is None else f"{self._text!r} makes no sense at {token!r}")
        found = self._primary(token)
        while self._at < len(self._tokens) and self._tokens[self._at][0] == "." and len(self._tokens[self._at]) > 1:
            found = _field(found, self._tokens[self._at][1:])
            self._at += 1
        return found

    def _primary(self, token: str) -> Expression:
        if token == "(":  # noqa: S105 - of a template, here and below
            inner = self._pipeline()
            if self._next() != ")":
                raise _wrong(f"{self._text!r}: a parenthesis is not closed")
            self._at += 1
            return inner
        if token[0] in '"`-' or token[0].isdigit():
            value = token[1:-1] if token[0] == "`" else _literal(token)
            return lambda _: value
        if token in ("true", "false", "nil"):
            return lambda _: {"true": True, "false": False, "nil": None}[token]
        if token[0] == ".":
            return (lambda scope: scope.dot) if len(token) == 1 else _field(lambda scope: scope.dot, token[1:])
        if len(token) == 1 and token[0] == "$":
            return lambda scope: scope.root
        if token[0] == "$":
            return _variable(token)
        return _called(token, [])


def _literal(token: str) -> Value:
    try:
        return ast.literal_eval(token)
    except (ValueError, SyntaxError):
        raise _wrong(f"{token} is neither a text nor a number") from None


def _variable(name: str) -> Expression:
    def found(scope: Scope) -> Value:
        if name not in scope.names:
            raise _wrong(f"no variable {name}")
        return scope.names[name]

    return found


def _field(of: Expression, name: str) -> Expression:
    def found(scope: Scope) -> Value:
        value = of(scope)
        if not _is_map(value):
            raise _wrong(f"no .{name} in {show(value)!r}")
        if name not in value:
            there = ", ".join(str(key) for key in value)
            raise _wrong(f"no .{name}; there are {there}" if there else f"no .{name}")
        return value[name]

    return found


def _called(name: str, given: list[Expression]) -> Expression:
    if name not in _FUNCTIONS:
        raise _wrong(f"{name!r} is no function; there are {', '.join(sorted(_FUNCTIONS))}")

    def found(scope: Scope) -> Value:
        values = [one(scope) for one in given]
        try:
            return _FUNCTIONS[name](*values)
        except (TypeError, ValueError, LookupError, AttributeError):
            raise _wrong(f"{name} cannot be done with {', '.join(repr(show(value)) for value in values) or 'nothing'}") from None

    return found


def _is_map(value: Value) -> TypeGuard[Mapping[str, Value]]:
    return isinstance(value, Mapping)


def _is_list(value: Value) -> TypeGuard[list[Value]]:
    return isinstance(value, list)


def show(value: Value) -> str:
    """A value as Go prints it."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return str(value).lower()
    if _is_map(value):
        return f"map[{' '.join(f'{key}:{show(one)}' for key, one in sorted(value.items()))}]"
    if _is_list(value):
        return f"[{' '.join(map(show, value))}]"
    return str(value)


def _index(value: Value, *keys: Value) -> Value:
    for key in keys:
        value = value.get(key, "") if _is_map(value) else value[key]  # of what is not there, Go gives nothing
    return value


def _print(*values: Value) -> str:
    return " ".join(map(show, values))


def _printf(form: str, *values: Value) -> str:
    given: Iterator[Value] = iter(values)
    return re.sub(r"%(-?\d*)[svdq]", lambda match: format_one(match[0], match[1], next(given)), form)


def format_one(verb: str, width: str, value: Value) -> str:
    """One value of printf's."""
    text = json.dumps(show(value), ensure_ascii=False) if verb[-1] == "q" else show(value)
    room = int(width or 0)
    return text.ljust(-room) if room < 0 else text.rjust(room)


def _first_false(*values: Value) -> Value:
    return next((one for one in values if not one), values[-1])


def _first_true(*values: Value) -> Value:
    return next((one for one in values if one), values[-1])


def _eq(first: Value, *others: Value) -> bool:
    return first in others


def _join(values: Value, between: Value) -> str:
    return str(between).join(map(show, values))


def _json(value: Value) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _not(value: Value) -> bool:
    return not value


def _println(*values: Value) -> str:
    return f"{_print(*values)}\n"


def _slice(value: Value, first: Value = 0, end: Value = None) -> Value:
    return value[first:end]


def _split(text: str, between: str) -> list[str]:
    return text.split(between)


def _truncate(text: str, most: int) -> str:
    return text[:most]


_FUNCTIONS: Final[Mapping[str, Callable[..., Value]]] = {
    "and": _first_false,
    "eq": _eq,
    "ge": operator.ge,
    "gt": operator.gt,
    "index": _index,
    "join": _join,
    "json": _json,
    "le": operator.le,
    "len": len,
    "lower": str.lower,
    "lt": operator.lt,
    "ne": operator.ne,
    "not": _not,
    "or": _first_true,
    "print": _print,
    "printf": _printf,
    "println": _println,
    "slice": _slice,
    "split": _split,
    "title": str.title,
    "truncate": _truncate,
    "upper": str.upper,
}
