"""Functions of the caller that get a program's output as it comes; in text mode, as text."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from sandbox._run import Text

Sink = Callable[[Any], object]


class SinkFailed(BaseException):
    """Carries what a function raised past those who would take it for an error of the container."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class _Guarded:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def __call__(self, data: bytes | str) -> None:
        try:
            self._sink(data)
        except BaseException as error:
            raise SinkFailed(error) from error


class _TextSink(_Guarded):
    """Passes text on; half a character waits for the next piece, and so does a carriage return."""

    def __init__(self, sink: Sink, text: Text) -> None:
        super().__init__(sink)
        self._decode = text.decoder()
        self._newlines = io.IncrementalNewlineDecoder(None, translate=True)

    def __call__(self, data: bytes | str, *, final: bool = False) -> None:
        piece = self._decode(data, final=final) if isinstance(data, bytes) else data
        if piece := self._newlines.decode(piece, final=final):
            super().__call__(piece)


def decoded(sinks: Mapping[int, Sink], text: Text) -> dict[int, Sink]:
    """The same functions, which get what *text* says."""
    return {number: _Guarded(sink) if text.encoding is None else _TextSink(sink, text) for number, sink in sinks.items()}


def finish(sinks: Mapping[int, Sink] | None, cut: tuple[bool, bool]) -> None:
    """Pass on what still waits for more, unless the stream was *cut* at its limit (stdout, stderr)."""
    for number, sink in (sinks or {}).items():
        if isinstance(sink, _TextSink) and not cut[number - 1]:
            sink(b"", final=True)
