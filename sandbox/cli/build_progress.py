"""How ``sandbox build`` tells what goes on: lines, or on a terminal (with ``rich``) lines and what is being done below them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator
from typing import Final, TextIO

from attrs import define, field

from sandbox.builder import Event, EventKind

MAX_LINE: Final = 8192


def is_shown_live(choice: str) -> bool:
    """Whether ``rich`` is to be used: asked for, or there and standard error is a terminal."""
    import importlib.util

    return choice == "rich" or (choice == "auto" and sys.stderr.isatty() and importlib.util.find_spec("rich") is not None)


def place_of(event: Event) -> str:
    """The stage and the step within it."""
    return f"[{event.stage} {event.number}/{event.total}]" if event.number else "[-]"


def short(text: str, width: int = 200) -> str:
    """An instruction on one line."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def printable(text: str) -> str:
    """Nothing in it steers a terminal."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in text)


@define(eq=False, repr=False)
class Lines:
    """Cuts the output of each stage into whole lines."""

    _rest: dict[str, bytes] = field(factory=dict[str, bytes])

    def add(self, event: Event) -> list[str]:
        """Give the lines that *event* completes; the end of a step completes what is left."""
        data = self._rest.pop(event.stage, b"") + event.data
        newline = data.rfind(b"\n")
        if event.kind is EventKind.OUTPUT and newline < len(data) - 1 and len(data) - newline < MAX_LINE:
            self._rest[event.stage] = data[newline + 1 :]
            data = data[: newline + 1]
        # A progress bar of a program writes one line again and again: its last state counts.
        lines = data.decode("utf-8", "replace").removesuffix("\n").split("\n") if data else []
        return [printable(line.rstrip("\r").rpartition("\r")[2]) for line in lines]


@define(eq=False, repr=False)
class Plain:
    """A line for each thing that happens."""

    stream: TextIO
    _lines: Lines = field(factory=Lines, init=False)

    def tell(self, event: Event) -> None:
        """Write it."""
        place = place_of(event)
        for line in self._lines.add(event):
            self._write(f"{place} {line}")
        match event.kind:
            case EventKind.BEGIN:
                self._write(f"{place} {short(event.text)}")
            case EventKind.CACHED:
                self._write(f"{place} CACHED")
            case EventKind.DONE if event.seconds >= 0.1:
                self._write(f"{place} done in {event.seconds:.1f}s")
            case EventKind.WARNING:
                self._write(f"warning: {event.text}")
            case _:
                return

    def _write(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


@contextlib.contextmanager
def live() -> Generator[Callable[[Event], None]]:
    """Show what is being done now below the lines of what was done."""
    try:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text
    except ImportError:
        yield Plain(sys.stderr).tell
        return
    console = Console(stderr=True, highlight=False, soft_wrap=False)
    running: dict[str, tuple[Event, float]] = {}
    spinner, lines = Spinner("dots"), Lines()

    def now() -> Group:
        at = time.monotonic()
        return Group(*(Text(f"{place_of(event)} {short(event.text, 100)}  {at - begin:.1f}s") for event, begin in running.values()), spinner)

    def tell(event: Event) -> None:
        place = place_of(event)
        for line in lines.add(event):
            console.print(Text(f"{place} ", style="dim").append(line))
        match event.kind:
            case EventKind.BEGIN:
                running[event.stage] = event, time.monotonic()
            case EventKind.CACHED | EventKind.DONE:
                running.pop(event.stage, None)
                end = "CACHED" if event.kind is EventKind.CACHED else f"{event.seconds:.1f}s"
                console.print(Text(f"{place} ", style="bold").append(short(event.text, 100)).append(f"  {end}", style="green"))
            case EventKind.WARNING:
                console.print(Text(f"warning: {event.text}", style="yellow"))
            case _:
                return

    with Live(get_renderable=now, console=console, refresh_per_second=8, transient=True, redirect_stdout=False, redirect_stderr=False):
        yield tell
