"""What makes measurements differ from run to run."""

from __future__ import annotations

from typing import Final

from sandbox.cli.doctor.finding import Finding, State
from sandbox.noise import Source, sources

_SECTION: Final = "noise in measurements"
_UNKNOWN: Final = "the kernel does not tell"


def findings() -> list[Finding]:
    """All sources of noise."""
    return [to_finding(source) for source in sources()]


def to_finding(source: Source) -> Finding:
    """Noise is worth knowing; nothing is missing."""
    if source.is_noisy is None:
        return Finding(_SECTION, source.what, State.NOTE, _UNKNOWN)
    if source.is_noisy:
        return Finding(_SECTION, source.what, State.NOTE, source.value, source.remedy)
    return Finding(_SECTION, source.what, State.OK, source.value)
