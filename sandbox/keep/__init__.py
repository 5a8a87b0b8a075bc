"""Containers that outlive the command that started them: each is held by a small process of its own, its keeper.

`start` starts one, `find` and `containers` give those that there are, as `Kept`. ``sandbox run -d`` and its companions are made of these.
"""

from sandbox.keep._attached import Attachment
from sandbox.keep._events import Event
from sandbox.keep._kept import Execution, Kept, containers, events, find, start, start_wishes
from sandbox.keep._links import links_in, namespace_of, resident_of, with_links
from sandbox.keep._log import LEAST, Record
from sandbox.keep._owners import with_owner
from sandbox.keep._record import SHORT_ID, Config, State, to_result
from sandbox.keep._store import ContainerStore

__all__ = [
    "LEAST",
    "SHORT_ID",
    "Attachment",
    "Config",
    "ContainerStore",
    "Event",
    "Execution",
    "Kept",
    "Record",
    "State",
    "containers",
    "events",
    "find",
    "links_in",
    "namespace_of",
    "resident_of",
    "start",
    "start_wishes",
    "to_result",
    "with_links",
    "with_owner",
]
