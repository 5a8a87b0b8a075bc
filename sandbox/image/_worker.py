"""A layer unpacked by a process of its own, so that layers are unpacked in parallel, whatever Python's lock says.

Theory of operation: `unpack_in_process` starts this interpreter anew (isolated: no environment variable and no current directory decides
what it imports) with four descriptors: the compressed layer, the directory, standard output, which takes the answer, and a pipe on which nothing
is ever sent. When that pipe closes, because the caller gave up or died in whatever way, the worker ends at once. The answer is one
JSON document, what was unpacked or the error; no answer means that the worker was killed. The end of the answer's pipe is the end of the
worker, with all its threads: then nobody writes into the directory any more. Its exit status is collected, and tells nothing: a
host that ignores SIGCHLD, or reaps all children itself, is served as well.

In the worker one thread reads, decompresses and hashes while another one writes files: both spend their time outside Python's lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from attrs import asdict, define, frozen

from sandbox.errors import BrokenError, ImageError, SandboxError, SetupError, UnsupportedError, UsageError
from sandbox.image.compression import decompress
from sandbox.image.digest import Digest
from sandbox.image.unpack import Unpacked, UnpackLimits, hashed, read_chunks, unpack, unpack_hashed

if TYPE_CHECKING:
    import socket
    import subprocess

__all__ = ["unpack_in_process"]

# `-S` and the caller's own path: `site` takes time, and may find another version of this package. The package without its `__init__`: that loads the
# store and what speaks with registries, half of the time in which a worker starts.
_BOOT: Final = """
import json, sys, types
sys.path[:] = json.loads(sys.argv[1])
package = sys.modules["sandbox.image"] = types.ModuleType("sandbox.image")
package.__path__ = [sys.argv[3]]
from sandbox.image._worker import main
main(sys.argv[2])
"""
_PACKAGE: Final = os.path.dirname(os.path.abspath(__file__))
_ROOT: Final = os.path.dirname(os.path.dirname(_PACKAGE))
_SMALL: Final = 1 << 17  # compressed: unpacked sooner than an interpreter starts
_AHEAD: Final = 8  # pieces, of a megabyte at most, that are read before they are written


@frozen
class _Options:
    media_type: str
    limits: UnpackLimits
    keep_owners: bool
    rootfs: bool


def unpack_in_process(
    source: int | Iterable[bytes],
    directory: int,
    *,
    media_type: str = "",
    limits: UnpackLimits | None = None,
    keep_owners: bool,
    rootfs: bool = False,
) -> Unpacked:
    """Decompress the layer *source*, and unpack it into the empty directory behind the descriptor *directory*, in another process.

    *source* is a descriptor to read from, or chunks, which are taken in this thread. The rest is as in `unpack` and `decompress`. Blocks; an
    exception that arrives here (KeyboardInterrupt ...) ends the worker first. A small file is unpacked by this process, and so is
    everything where Python is embedded in another program, so that there is no interpreter to start.

    Raises: ImageError, SetupError, UnsupportedError: as `unpack` and `decompress`. BrokenError: the worker was killed. What *source* raises.
    """
    options = _Options(media_type, limits or UnpackLimits(), keep_owners, rootfs)
    if not os.path.basename(sys.executable or "").startswith("python") or _is_small(source):
        chunks = decompress(read_chunks(source) if isinstance(source, int) else source, media_type=media_type)
        return unpack(chunks, directory, limits=limits, keep_owners=keep_owners, rootfs=rootfs)
    if isinstance(source, int):
        with _Worker.start(source, directory, options) as worker:
            return worker.answer()
    return _pump(source, directory, options)


def _is_small(source: int | Iterable[bytes]) -> bool:
    if not isinstance(source, int):
        return False
    status = os.fstat(source)
    return stat.S_ISREG(status.st_mode) and status.st_size <= _SMALL


def _pump(chunks: Iterable[bytes], directory: int, options: _Options) -> Unpacked:
    """Hand *chunks* to a worker. Through a socket: on a pipe, a worker that has ended would send SIGPIPE to a host that does not ignore it."""
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(None)  # whatever socket.setdefaulttimeout says
        with _Worker.start(theirs.fileno(), directory, options) as worker:
            theirs.close()
            for chunk in chunks:
                if not _send(ours, chunk):
                    break  # its answer says why it has ended
            ours.close()
            return worker.answer()


def _send(to: socket.socket, chunk: bytes) -> bool:
    import socket

    try:
        to.sendall(chunk, socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


@define(eq=False)
class _Worker:
    """The process, as its parent sees it."""

    _process: subprocess.Popen[bytes]
    _lifeline: int
    _answer: int

    @classmethod
    def start(cls, source: int, directory: int, options: _Options) -> Self:
        """Start one. Raises: SetupError."""
        import json
        import subprocess

        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            answer, answer_end = _pipe(ours, theirs)
            lifeline_end, lifeline = _pipe(theirs, ours)
            # Not 0 to 2, which become something else there; an interpreter whose standard input is a directory does not even start.
            passed = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (source, directory, lifeline_end)]
            for fd in passed:
                theirs.callback(os.close, fd)
            path = [entry for entry in sys.path if os.path.isabs(entry)]
            text = json.dumps([*asdict(options).values(), *passed])
            command = [sys.executable, "-I", "-S", "-c", _BOOT, json.dumps([*path, _ROOT]), text, _PACKAGE]
            try:
                # A group of its own: the terminal's ^C is for the caller, who ends the worker.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=answer_end,
                    stderr=subprocess.DEVNULL,
                    pass_fds=passed,
                    cwd="/",
                    process_group=0,
                )
            except OSError as error:
                raise SetupError(f"start {sys.executable} to unpack a layer", error.errno or 0, step="host") from error
            ours.pop_all()
            return cls(process, lifeline, answer)

    def answer(self) -> Unpacked:
        """Wait for the worker's end. Raises: what it has raised; BrokenError: it was killed."""
        import json

        said = b"".join(read_chunks(self._answer))
        if not said:
            raise BrokenError("the process that unpacked a layer ended without a word; somebody has killed it")
        words = json.loads(said)
        if "error" in words:
            raise _error(words)
        return Unpacked(Digest.parse(words.pop("diff_id")), **words)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._lifeline)
        try:
            # Its end, in whatever way: it holds the other end until then.
            while os.read(self._answer, 1 << 16):
                pass
            self._process.wait()
        finally:
            os.close(self._answer)


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    return read, write


# --- errors on their way


def _words(error: BaseException) -> dict[str, Any]:
    """Put an error into words that JSON has."""
    if isinstance(error, SetupError):
        return {"error": "setup", "operation": error.operation, "errno": error.errno, "step": error.step, "hint": error.hint}
    if isinstance(error, UnsupportedError):
        return {"error": "unsupported", "message": str(error), "feature": error.feature, "remedy": error.remedy}
    if isinstance(error, OSError):
        return {"error": "setup", "operation": "read a layer", "errno": error.errno or 0, "step": "host", "hint": ""}
    if isinstance(error, MemoryError):
        return {"error": "setup", "operation": "unpack a layer", "errno": errno.ENOMEM, "step": "host", "hint": ""}
    kind = "image" if isinstance(error, ImageError) else "usage" if isinstance(error, UsageError) else "broken"
    return {"error": kind, "message": str(error) if isinstance(error, SandboxError) else f"unpack a layer: {error!r}"}


def _error(words: dict[str, Any]) -> SandboxError:
    if words["error"] == "setup":
        return SetupError(words["operation"], words["errno"], step=words["step"], hint=words["hint"])
    if words["error"] == "unsupported":
        remedy = words["remedy"]
        return UnsupportedError(words["message"].removesuffix(f"; {remedy}"), feature=words["feature"], remedy=remedy)
    kind = {"image": ImageError, "usage": UsageError}.get(words["error"], BrokenError)
    return kind(words["message"])


# --- in the worker


def main(text: str) -> NoReturn:
    """Be the worker: *text* is what `_Worker.start` says."""
    import json
    import threading

    media_type, limits, keep_owners, rootfs, source, directory, lifeline = json.loads(text)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    options = _Options(media_type, UnpackLimits(**limits), keep_owners, rootfs)
    try:
        unpacked = _work(source, directory, options)
        said = {**asdict(unpacked, recurse=False), "diff_id": str(unpacked.diff_id)}
    except BaseException as error:  # noqa: BLE001  # whatever it is, the caller is told
        said = _words(error)
    os.write(1, json.dumps(said).encode())
    # Without the interpreter's own end: a thread may be decompressing.
    os._exit(0)


def _end_with(lifeline: int) -> NoReturn:
    os.read(lifeline, 1)
    os._exit(1)


def _work(source: int, directory: int, options: _Options) -> Unpacked:
    digest = hashlib.sha256()
    chunks = _ahead(hashed(decompress(read_chunks(source), media_type=options.media_type), digest))
    return unpack_hashed(chunks, digest, directory, limits=options.limits, keep_owners=options.keep_owners, rootfs=options.rootfs)


def _ahead(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Take *chunks* in a thread, some of them ahead; it lives until the process ends if not all are asked for."""
    import queue
    import threading

    pieces: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)

    def take() -> None:
        try:
            for chunk in chunks:
                pieces.put(chunk)
            pieces.put(None)
        except BaseException as error:  # noqa: BLE001  # raised by the other thread
            pieces.put(error)

    threading.Thread(target=take, daemon=True).start()
    while (piece := pieces.get()) is not None:
        if isinstance(piece, BaseException):
            raise piece
        yield piece
