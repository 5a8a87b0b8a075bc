"""Resource limits of one program (setrlimit(2)): a spec with finite defaults, turned into numbers for the launcher.

These are the small change beside the cgroup's limits: they hold for one process (nproc: for one user id), and a program may
lower them. Their names are those of Python's ``resource`` module, in small letters and without ``RLIMIT_``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, cast

import attrs
from attrs import frozen

from sandbox._types import Size, to_count, to_size
from sandbox.errors import UnsupportedError, UsageError

__all__ = ["INFINITY", "RESOURCES", "Rlimits", "hard_limits", "rlimit_settings"]

# <asm-generic/resource.h>, which x86-64 and aarch64 both use: the position is the number.
RESOURCES: Final = (
    "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile",
    "memlock", "as", "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime",
)  # fmt: skip
INFINITY: Final = (1 << 64) - 1  # RLIM64_INFINITY

_BYTES: Final = frozenset({"fsize", "data", "stack", "core", "rss", "memlock", "as", "msgqueue"})
_UNLIMITED: Final = "unlimited"

# What a program gets where the spec says nothing; of the rest it inherits the caller's. (soft, hard).
_DEFAULTS: Final = {
    "core": (0, 0),  # a dump would go to the host's core_pattern, a pipe to a program of the host's
    "nofile": (1024, 65536),  # soft: select(2) breaks above; hard: what a server may raise it to
    "stack": (8 << 20, INFINITY),  # soft: the kernel's own default; memory is the cgroup's to limit
    "memlock": (8 << 20, 8 << 20),  # the kernel's own default since 5.16
    "sigpending": (4096, 4096),  # queued signals are kernel memory
    "msgqueue": (819200, 819200),  # MQ_BYTES_MAX, the kernel's own default
    "nice": (0, 0),  # no priority above the one it starts with
    "rtprio": (0, 0),  # no real-time scheduling
}

Limit = Size | tuple[Size, Size] | None


def _converter(name: str) -> Callable[[object], tuple[int, int] | None]:
    def convert(value: object) -> tuple[int, int] | None:
        if value is None:
            return None
        if isinstance(value, tuple):
            pair = cast("tuple[object, ...]", value)
            if len(pair) != 2:
                raise UsageError(f"rlimit {name}: {pair!r} has {len(pair)} values; give one, or (soft, hard)")
            soft, hard = _value(name, pair[0]), _value(name, pair[1])
            if soft > hard:
                raise UsageError(f"rlimit {name}: the soft limit {soft} is above the hard limit {hard}")
            return soft, hard
        both = _value(name, value)
        return both, both

    return convert


def _value(name: str, value: object) -> int:
    if value == _UNLIMITED:
        return INFINITY
    if isinstance(value, int) and not isinstance(value, bool):
        if value == INFINITY:
            return INFINITY
        return to_size(value, what=f"rlimit {name}") if name in _BYTES else to_count(value, what=f"rlimit {name}", least=0, most=1 << 62)
    if isinstance(value, str) and name in _BYTES:
        return to_size(value, what=f"rlimit {name}")
    raise UsageError(f"rlimit {name}: {value!r} is not a limit; give a whole number{' or a size' if name in _BYTES else ''}, or 'unlimited'")


def _convert_all(cls: type, fields: list[attrs.Attribute[object]]) -> list[attrs.Attribute[object]]:
    del cls
    return [attribute.evolve(converter=_converter(name)) for name, attribute in zip(RESOURCES, fields, strict=True)]


@frozen(cache_hash=True, kw_only=True, field_transformer=_convert_all)
class Rlimits:
    """Resource limits of a program. A value is one number for soft and hard, or (soft, hard); ``"unlimited"`` is none.

    None: this library's default (core 0, nofile 1024 to 65536, stack 8M, memlock 8M, sigpending 4096, msgqueue 800K, nice 0, rtprio 0);
    for cpu (seconds), fsize, data, rss, nproc, as_ (address space), locks and rttime (microseconds): as the caller's.

    Raises: UsageError: a value that is no limit, or a soft limit above the hard one.
    """

    cpu: Limit = None
    fsize: Limit = None
    data: Limit = None
    stack: Limit = None
    core: Limit = None
    rss: Limit = None
    nproc: Limit = None
    nofile: Limit = None
    memlock: Limit = None
    as_: Limit = None
    locks: Limit = None
    sigpending: Limit = None
    msgqueue: Limit = None
    nice: Limit = None
    rtprio: Limit = None
    rttime: Limit = None


_ATTRIBUTES: Final = tuple(a.name for a in attrs.fields(Rlimits))


def hard_limits() -> tuple[int, ...]:
    """Read the calling process's hard limits, by number: what its children cannot be given more of."""
    import resource

    # RLIM_INFINITY is -1 there.
    return tuple(resource.getrlimit(number)[1] & INFINITY for number in range(len(RESOURCES)))


@lru_cache(maxsize=256)
def rlimit_settings(limits: Rlimits, ceilings: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """Turn a spec into (resource, soft, hard) for the launcher. Cached.

    *ceilings*: `hard_limits` of the process that started the launcher. Defaults of ours are lowered to them; what was asked for
    is not. Nobody in a user namespace can raise a hard limit: that takes CAP_SYS_RESOURCE on the host.

    Raises: UnsupportedError: a limit was asked for that lies above the caller's own.
    """
    settings: list[tuple[int, int, int]] = []
    for number, (name, attribute, ceiling) in enumerate(zip(RESOURCES, _ATTRIBUTES, ceilings, strict=True)):
        asked: tuple[int, int] | None = getattr(limits, attribute)
        if asked is not None and asked[1] > ceiling:
            raise UnsupportedError(
                f"rlimit {name}: {_show(asked[1])} is above this process's own hard limit of {_show(ceiling)}",
                feature="rlimit",
                remedy=f"ask for less, or raise this process's hard limit first (ulimit -H, limits.conf, systemd's Limit{name.upper()}=)",
            )
        chosen = asked or _DEFAULTS.get(name)
        if chosen is not None:
            settings.append((number, min(chosen[0], ceiling), min(chosen[1], ceiling)))
    return tuple(settings)


def _show(value: int) -> str:
    return _UNLIMITED if value == INFINITY else str(value)
