"""What is tested: it counts visits of pages in a Redis, over a connection that it is given."""

from __future__ import annotations

import socket


class Visits:
    """Counts visits. Speaks Redis's protocol (https://redis.io/docs/reference/protocol-spec) as far as it needs it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._answers = connection.makefile("rb")

    def add(self, page: str) -> int:
        """Count one more visit of *page*; returns how many there are now."""
        return int(self._ask("INCR", f"visits:{page}"))

    def of(self, page: str) -> int:
        """How many visits *page* had."""
        return int(self._ask("GET", f"visits:{page}") or 0)

    def forget(self) -> None:
        """Start anew."""
        self._ask("FLUSHALL")

    def close(self) -> None:
        self._answers.close()
        self._connection.close()

    def _ask(self, *words: str) -> str:
        encoded = [word.encode() for word in words]
        self._connection.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
        line = self._answers.readline().decode().rstrip()
        if not line:
            raise ConnectionError("Redis has gone")
        if line.startswith("-"):
            raise RuntimeError(line[1:])
        if line.startswith("$"):
            return "" if line == "$-1" else self._answers.readline().decode().rstrip()
        return line[1:]
