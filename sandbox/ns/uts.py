"""UTS namespaces: the host name and the NIS domain name."""

from __future__ import annotations

from typing import Final

from attrs import field, frozen

from sandbox import _plan as plan
from sandbox._sys.constants import CLONE_NEWUTS
from sandbox.errors import UsageError
from sandbox.ns._pieces import Host, Join, Pieces, join_pieces

__all__ = ["DEFAULT_HOSTNAME", "Uts", "pieces", "to_domainname", "to_hostname"]

DEFAULT_HOSTNAME: Final = "sandbox"
_LONGEST: Final = 64  # __NEW_UTS_LEN, in bytes
_LONGEST_LABEL: Final = 63  # RFC 1035, 2.3.4
_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def to_hostname(name: str) -> str:
    """Check a host name: labels of letters, digits, ``-`` and ``_``, joined by dots (RFC 1123, and the _ that Docker allows).

    It goes into /etc/hosts as well, so nothing that could end a line or a word passes.
    """
    if not isinstance(name, str) or not name or len(name) > _LONGEST:
        raise UsageError(f"hostname: {name!r} must have 1 to {_LONGEST} characters")
    for label in name.split("."):
        if not label or len(label) > _LONGEST_LABEL or not _LETTERS.issuperset(label) or label[0] in "-_" or label[-1] == "-":
            raise UsageError(f"hostname: {name!r} is none; use letters, digits, '-' and '_' (first and last a letter or digit), and dots between")
    return name


def to_domainname(name: str | None) -> str | None:
    """Check a NIS domain name: up to 64 visible ASCII characters; empty clears it, None leaves the kernel's default."""
    if name is None:
        return None
    if not isinstance(name, str) or len(name) > _LONGEST or not all("!" <= letter <= "~" for letter in name):
        raise UsageError(f"domainname: {name!r} must have up to {_LONGEST} visible ASCII characters")
    return name


@frozen
class Uts:
    """A UTS namespace of its own, with these names."""

    hostname: str = field(default=DEFAULT_HOSTNAME, converter=to_hostname)
    domainname: str | None = field(default=None, converter=to_domainname)


def pieces(spec: Uts | Host | Join) -> Pieces:
    """Pieces of a plan for *spec*. A shared namespace keeps its names."""
    if isinstance(spec, Join):
        return join_pieces("uts", spec)
    if isinstance(spec, Host):
        return Pieces()
    names: tuple[plan.Op, ...] = (plan.SetHostname(spec.hostname),)
    if spec.domainname is not None:
        names += (plan.SetDomainname(spec.domainname),)
    return Pieces(unshare_flags=CLONE_NEWUTS, early_ops=names)
