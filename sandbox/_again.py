"""What a start has found out, for the next one of the same spec: with that, a container that was made ahead is taken without opening anything.

Theory of operation
-------------------
Between two containers of a kind hardly anything changes, but whoever starts one has to know. `Seen` looks at what could: a few stat(2) by path in
place of opening the root, its /etc and the files that tell who the user is, and reading these. Everything else that a start finds out
follows from the spec and from the host's answers (`_host.host` gives another object when one of them changes). After an idle time this is a
tenth of what a container costs: code and tables that are not in the CPU's caches are not touched at all.

Nothing is kept of a root that was changed less than 0.1 s before it was looked at: its times could stay the same with another change.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

from sandbox._compile import Compiled, Host
from sandbox._ids import Ids
from sandbox._spares import Kind
from sandbox._spec import ContainerSpec
from sandbox._users import Identity
from sandbox.fs import Seen

_MOST: Final = 64


@frozen(eq=False)
class Known:
    """What a start of one spec found, which the host does without anything left out. It holds for the same *host*, *shape* and *is_limited*, and
    while `seen` is still so.
    """

    host: Host
    shape: Ids
    is_limited: bool
    clones_into_group: bool
    compiled: Compiled
    kind: Kind  # of containers in no network
    identity: Identity | None
    seen: Seen

    def kind_in(self, network: object) -> Kind:
        """The kind of those in *network*, an `Attach.key`."""
        return self.kind if network is None else self.kind._replace(network=network)


_known: dict[ContainerSpec, Known] = {}


def recall(spec: ContainerSpec, host: Host, shape: Ids, *, is_limited: bool) -> Known | None:
    """What an earlier start of *spec* found, if it would find the same now."""
    found = _known.get(spec)
    if found is None or found.host is not host or found.shape is not shape or found.is_limited is not is_limited:
        return None
    if found.seen.is_still_so():
        return found
    _known.pop(spec, None)
    return None


def remember(spec: ContainerSpec, found: Known) -> None:
    """Keep what a start of *spec* has found, unless there is something to be opened or made for each container."""
    if not found.compiled.is_complete or found.seen.state != found.kind.state:
        return
    if len(_known) >= _MOST:
        _known.clear()
    _known[spec] = found
