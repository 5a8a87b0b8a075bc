"""The keys that let go of a program's terminal, by Docker's rules and names: ``--detach-keys ctrl-p,ctrl-q``. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandbox import UsageError

if TYPE_CHECKING:
    from sandbox.cli.parser import Parser

USUAL: Final = "ctrl-p,ctrl-q"
DETACHED: Final = "read escape sequence"
_CONTROL: Final = {f"ctrl-{chr(code + 96)}": bytes([code]) for code in range(1, 27)} | {
    "ctrl-@": b"\0", "ctrl-[": b"\x1b", "ctrl-\\": b"\x1c", "ctrl-]": b"\x1d", "ctrl-^": b"\x1e", "ctrl-_": b"\x1f",
}  # fmt: skip


def add(parser: Parser) -> None:
    """The option of all that attach."""
    parser.add_argument("--detach-keys", metavar="KEYS", default=USUAL, help=f"what is typed on a terminal to let go of it ({USUAL}); '' for none")


def to_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q``: characters, or ctrl- with one. Raises: UsageError."""
    found = b""
    for word in text.split(",") if text else ():
        if len(word) == 1 and word.isascii():
            found += word.encode()
        elif word.lower() in _CONTROL:
            found += _CONTROL[word.lower()]
        else:
            raise UsageError(f"--detach-keys: {word!r} is no key; give characters, or ctrl- and one of a-z @ [ \\ ] ^ _, with commas")
    return found


@define
class Keys:
    """What is typed, on its way. The beginning of the keys is held back until it is clear what it becomes."""

    keys: bytes
    were_typed: bool = field(default=False, init=False)
    _held: bytes = field(default=b"", init=False)

    def take(self, data: bytes) -> bytes:
        """What of it, and of what was held back, goes to the program; after the keys, `were_typed` and nothing more."""
        if not self.keys:
            return data
        data, self._held = self._held + data, b""
        before, found, _ = data.partition(self.keys)
        if found:
            self.were_typed = True
            return before
        for size in range(min(len(self.keys) - 1, len(data)), 0, -1):
            if data.endswith(self.keys[:size]):
                self._held = data[-size:]
                return data[:-size]
        return data

    def rest(self) -> bytes:
        """What was held back, at the end of what is typed."""
        held, self._held = self._held, b""
        return held
