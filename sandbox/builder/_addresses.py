"""Which sources of ADD are somewhere else."""

from __future__ import annotations

import re


def is_url(text: str) -> bool:
    """Whether ADD would fetch it."""
    return text.startswith(("http://", "https://"))


def is_git(text: str) -> bool:
    """Whether ADD would clone it."""
    return text.startswith(("git@", "git://", "ssh://")) or (is_url(text) and re.search(r"\.git(?:[#?].*)?$", text) is not None)
