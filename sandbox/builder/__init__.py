"""Images from Dockerfiles, in the dialect that BuildKit reads.

>>> image = build(".", tags=["app"], network="host")

`build` does it all; `parse` reads a Dockerfile and touches nothing. Steps run in containers, by what every importer of the library can use.
"""

from __future__ import annotations

from sandbox.builder._build import build
from sandbox.builder.events import Event, EventKind
from sandbox.builder.ignore import Patterns
from sandbox.builder.instructions import Dockerfile, parse

__all__ = ["Dockerfile", "Event", "EventKind", "Patterns", "build", "parse"]
