"""Images from Dockerfiles, in the dialect that BuildKit reads.

`parse` reads one and takes nothing else; what it gives is plain values.
"""

from __future__ import annotations

from sandbox.builder.ignore import Patterns
from sandbox.builder.instructions import Dockerfile, parse

__all__ = ["Dockerfile", "Patterns", "parse"]
