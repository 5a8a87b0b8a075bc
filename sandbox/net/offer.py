"""What networks can do on a host, as a value; `sandbox.features.networks` asks."""

from __future__ import annotations

from attrs import frozen

from sandbox.errors import SandboxError, UnsupportedError


@frozen
class Offer:
    """*kinds*: what the kernel has of "bridge", "veth", "ifb", "tbf", "netem", "nf_tables" and "owner" (tables that go with their maker).

    obstacle: why there are no networks at all; None: there are. outlet: where slirp4netns is; None: *outlet_obstacle* says why it cannot be used.
    closed6: why root's networks do not reach outside by IPv6, which the host does not forward; None: it does, or has none.
    """

    kinds: frozenset[str]
    obstacle: SandboxError | None
    outlet: str | None
    outlet_obstacle: UnsupportedError | None
    closed6: UnsupportedError | None = None
