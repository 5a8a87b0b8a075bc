"""The short way of published ports in a network that is kept, which several processes share; see `shortcut` for the whole.

Theory of operation
-------------------
Each process has programs and maps of its own, which speak of its ports alone: no two have the same port of the uplink (`kept_published`), and what
a program does not know is the next one's to say. Those of containers' ports go with the ports, as ever. The uplink outlives processes; so its program
is there by a link (tcx, Linux 6.6), which is this process's descriptor, and ends with it in whatever way that ends. It is made from inside the
switch, by the helper, because the kernel looks for the interface where who asks is.

Who is killed leaves nothing that could lead anywhere: his slots go with the link, rules that mark his flows with his table, and a port's number,
which is what a slot says, is nobody else's ever. To make or to end a link takes the kernel some 10 ms (it waits until no CPU runs the list of
programs that was there before), so it is asked for behind all else, and nobody waits.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from attrs import define, field

from sandbox._networks.shortcut import Inward, Shortcut
from sandbox._sys import features
from sandbox._sys.fds import Fd
from sandbox.errors import SandboxError
from sandbox.net.rtnetlink import UPLINK

if TYPE_CHECKING:
    from sandbox._session import Asked


@define(eq=False)
class KeptShortcut(Shortcut):
    """Of this process, in one network."""

    _inward: Fd | None = None  # the uplink's program, until its link is asked for
    _linking: list[Asked] = field(factory=list["Asked"])
    _links: list[Fd] = field(factory=list[Fd])

    def _is_offered(self) -> bool:
        return super()._is_offered() and features.packet_links()

    def _begin_inward(self, inward: Inward) -> None:
        self._inward = inward.program  # a link's program sees packets of all versions, and looks itself

    def _fit(self, version: int, port: int) -> None:
        super()._fit(version, port)
        program, self._inward = self._inward, None
        if program is not None:
            with program, suppress(SandboxError):
                self._linking.append(self._switch.ask_for_link(program.fileno(), UPLINK))

    def settle(self) -> None:
        """As of any; without the link all packets in take the long way."""
        super().settle()
        linking, self._linking = self._linking, []
        for asked in linking:
            with suppress(SandboxError):
                self._links.append(Fd(self._switch.take_link(asked)))

    def abandon(self) -> None:
        """As of any."""
        for one in (self._inward, *self._links):
            if one is not None:
                one.close()
        self._inward, self._links, self._linking = None, [], []
        super().abandon()
