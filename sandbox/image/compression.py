"""How layers are compressed: told by their first bytes, read with bounded memory, written one way.

`decompress` gives pieces of at most about a megabyte whatever the input expands to, so that who counts them (`UnpackLimits.size`) stops a bomb
when it has grown that far. Damage, a cut-off and whatever follows the compressed data (but zeros, with which tapes and some
programs pad) are an ImageError: nothing is taken that the digest of the tar would not cover.
"""

from __future__ import annotations

import bz2
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from sandbox.errors import ImageError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import zstandard

__all__ = ["KINDS", "compress", "decompress", "kind_of"]

_PIECE: Final = 1 << 20
_XZ_MEMORY: Final = 192 << 20  # xz -9 takes 65 MiB; its format allows 4 GiB
_ZSTD_WINDOW: Final = 27  # 128 MiB: what zstd itself takes unless told otherwise; levels up to 19 use 8 MiB
_MAGIC: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz", b"BZh": "bzip2"}
_LONGEST_MAGIC: Final = 6
_SKIPPABLE: Final = range(0x184D2A50, 0x184D2A60)  # RFC 8878, section 3.1.2
KINDS: Final = ("none", "gzip", "zstd", "xz", "bzip2")


def kind_of(start: bytes) -> str:
    """Tell by its first six bytes how something is compressed: one of `KINDS`."""
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    return "zstd" if int.from_bytes(start[:4], "little") in _SKIPPABLE else "none"


def decompress(chunks: Iterable[bytes], *, media_type: str = "") -> Iterator[bytes]:
    """Decompress *chunks*; how is told by the first of them, and must be what *media_type* says, if it says something.

    Several gzip members, zstd frames, xz or bzip2 streams in a row are one content.
    Raises: ImageError: damaged, cut off, something follows it, or compressed in another way. UnsupportedError: zstd, and no `zstandard`.
        What *chunks* raises.
    """
    source = iter(chunks)
    start = b""
    while len(start) < _LONGEST_MAGIC and (chunk := next(source, None)) is not None:
        start += chunk
    kind, promised = kind_of(start), _kind_of_media_type(media_type)
    if promised is not None and kind != promised:
        raise ImageError(f"a layer of media type {media_type} is compressed as {kind}")
    source = itertools.chain([start], source)
    if kind == "none":
        return source
    return _zstd(source) if kind == "zstd" else _streams(source, kind)


def _kind_of_media_type(media_type: str) -> str | None:
    """What a media type says of compression: None for nothing, or a type that is not known."""
    for kind in ("gzip", "zstd", "xz", "bzip2"):
        if media_type.endswith((f"+{kind}", f".{kind}")):
            return kind
    return "none" if media_type.endswith(".tar") else None


# --- gzip, xz, bzip2: the standard library's decompressors, under one face


class _Decompressor(Protocol):
    """What bz2's and lzma's decompressors have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    """zlib's decompressor, which hands back what it has not taken, with the memory of the other two."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = 0) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _new_xz() -> _Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


_NEW: Final[dict[str, Callable[[], _Decompressor]]] = {"gzip": _Gzip, "xz": _new_xz, "bzip2": bz2.BZ2Decompressor}


def _streams(source: Iterator[bytes], kind: str) -> Iterator[bytes]:
    """Decompress one stream after another, until there is nothing but zeros."""
    new, stream, padded = _NEW[kind], None, False
    for chunk in source:
        data = chunk
        while data:
            if stream is None or padded:
                # Between two streams, or at the very end.
                rest = data.lstrip(b"\0")
                padded = padded or len(rest) < len(data)
                if not rest:
                    break
                if padded:
                    raise ImageError(f"something follows the {kind} data of a layer")
                stream = new()
            yield from _pieces(stream, data, kind)
            data = stream.unused_data if stream.eof else b""
            stream = None if stream.eof else stream
    if stream is not None:
        raise ImageError(f"a layer's {kind} data ends too early")


def _pieces(stream: _Decompressor, data: bytes, kind: str) -> Iterator[bytes]:
    try:
        piece = stream.decompress(data, _PIECE)
        while True:
            if piece:
                yield piece
            if stream.eof or (stream.needs_input and len(piece) < _PIECE):
                return
            piece = stream.decompress(b"", _PIECE)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:  # OSError: what bz2 says of damage
        raise ImageError(f"a layer's {kind} data is damaged: {error}") from error


# --- zstd


def _zstandard() -> Any:  # noqa: ANN401  # a module
    try:
        import zstandard
    except ImportError:
        raise UnsupportedError(
            "this layer is compressed with zstd", feature="zstandard", remedy="install it: pip install 'sandbox[images]'"
        ) from None
    return zstandard


def _zstd(source: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress frame after frame, block by block: a block gives 128 KiB at most, so a bomb grows in small steps."""
    module = _zstandard()
    new = module.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW).decompressobj
    bytes_ = _Bytes(source)
    try:
        while magic := bytes_.take(4, last=True):
            number = int.from_bytes(magic, "little")
            if number in _SKIPPABLE:
                bytes_.skip(int.from_bytes(bytes_.take(4), "little"))
            elif magic == b"\x28\xb5\x2f\xfd":
                yield from _frame(bytes_, new())
            elif any(magic) or not bytes_.is_zeros():
                raise ImageError("something follows the zstd data of a layer")
    except module.ZstdError as error:
        raise ImageError(f"a layer's zstd data is damaged: {error}") from error


def _frame(source: _Bytes, stream: zstandard.ZstdDecompressionObj) -> Iterator[bytes]:
    """Decompress one frame, whose magic number was taken (RFC 8878, section 3.1.1)."""
    descriptor = source.take(1)
    flags = descriptor[0]
    single = flags >> 5 & 1
    sizes = (single, 2, 4, 8)[flags >> 6]
    header = source.take((not single) + (0, 1, 2, 4)[flags & 3] + sizes)
    yield stream.decompress(b"\x28\xb5\x2f\xfd" + descriptor + header)
    last = 0
    while not last:
        head = source.take(3)
        block = int.from_bytes(head, "little")
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        if piece := stream.decompress(head + source.take(1 if kind == 1 else size)):  # 1: one byte, repeated
            yield piece
    if flags >> 2 & 1:
        stream.decompress(source.take(4))  # the checksum
    if not stream.eof:
        raise ImageError("a layer's zstd data is damaged: a frame does not end where it says")


class _Bytes:
    """Takes so and so many bytes from pieces of any size."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source, self._data, self._at = source, b"", 0

    def take(self, count: int, *, last: bool = False) -> bytes:
        """The next *count* bytes; with *last*, b"" at the end. Raises: ImageError: there are fewer."""
        while (left := len(self._data) - self._at) < count:
            chunk = next(self._source, None)
            if chunk is None:
                if last and not left:
                    return b""
                raise ImageError("a layer's zstd data ends too early")
            self._data, self._at = self._data[self._at :] + chunk, 0
        self._at += count
        return self._data[self._at - count : self._at]

    def skip(self, count: int) -> None:
        while count:
            count -= len(self.take(min(count, _PIECE)))

    def is_zeros(self) -> bool:
        """Whether all that is left is zeros; it is taken."""
        zeros = not any(self._data[self._at :]) and not any(any(chunk) for chunk in self._source)
        self._data, self._at = b"", 0
        return zeros


# --- writing


def compress(chunks: Iterable[bytes], kind: str, level: int | None = None) -> Iterator[bytes]:
    """Compress *chunks* as *kind* says; the same input, level and version of the library give the same bytes: no name, no time.

    Raises: UsageError: not one of `KINDS`, or a level that it does not have. UnsupportedError: zstd, and no `zstandard`.
    """
    if kind not in KINDS:
        raise UsageError(f"compression {kind!r} is not known; known are {', '.join(KINDS)}")
    if kind == "none":
        return iter(chunks)
    try:
        return _compressed(chunks, _compressor(kind, level))
    except (ValueError, OverflowError, zlib.error, lzma.LZMAError) as error:
        raise UsageError(f"compression {kind}: level {level!r}: {error}") from None


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _compressor(kind: str, level: int | None) -> _Compressor:
    if kind == "gzip":
        # 16: a gzip header, in which zlib puts neither name nor time.
        return zlib.compressobj(6 if level is None else level, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    if kind == "xz":
        return lzma.LZMACompressor(preset=level)
    if kind == "bzip2":
        return bz2.BZ2Compressor(9 if level is None else level)
    compressor: _Compressor = _zstandard().ZstdCompressor(level=3 if level is None else level, write_checksum=True).compressobj()
    return compressor


def _compressed(chunks: Iterable[bytes], compressor: _Compressor) -> Iterator[bytes]:
    for chunk in chunks:
        if piece := compressor.compress(chunk):
            yield piece
    yield compressor.flush()
