"""`SharedFilters`: a socket of nftables in a switch, open as long as somebody needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.errors import ProtocolError

if TYPE_CHECKING:
    from sandbox._networks.switch import Switch
    from sandbox.net.nft import Nftables, Transaction


class SharedFilters:
    """The caller has the lock of all that is published."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._users = 0
        self._filters: Nftables | None = None

    def open(self) -> None:
        """Be ready for changes, until `close` is called as often."""
        if self._filters is None:
            filters = self._switch.filters()
            try:
                self._make(filters)
            except BaseException:
                filters.close()
                raise
            self._filters = filters
        self._users += 1

    def _make(self, filters: Nftables) -> None:
        """What is to be there as long as the socket is open."""

    def close(self) -> None:
        self._users -= 1
        if not self._users:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the socket, and so of a table that it owns, unless a parent has it too."""
        if self._filters is not None:
            self._filters.close()
            self._filters = None

    def _commit(self, work: Transaction) -> None:
        if self._filters is None:
            raise ProtocolError("a port is published by a gate that is closed")
        self._filters.commit(work)
