"""Run programs in Linux containers: no daemon, no setuid helper, no root needed.

Importing this package loads nothing else; each name is loaded at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sandbox import aio, builder, cg, errors, features, fs, image, keep, noise, ns, sec
    from sandbox._files.limits import CopyProgress
    from sandbox._interact import Chunk, Interaction, Party, Verdict, interact
    from sandbox._networks.capture import Capture
    from sandbox._networks.store import NetworkStore
    from sandbox._networks.wishes import Join
    from sandbox._start import shut_down
    from sandbox._types import DEVNULL, PIPE, STDOUT
    from sandbox.builder import build
    from sandbox.cg import Limits
    from sandbox.cg.details import Details
    from sandbox.container import Container, run
    from sandbox.errors import (
        BrokenError,
        ClosedError,
        CommandError,
        ContainerNotFoundError,
        DockerfileError,
        ImageError,
        ImageInUseError,
        ImageNotFoundError,
        LimitError,
        NameInUseError,
        NetworkInUseError,
        NetworkNotFoundError,
        PortInUseError,
        ProgramNotFoundError,
        ProtocolError,
        RegistryError,
        SandboxError,
        SetupError,
        UnsupportedError,
        UsageError,
        VolumeInUseError,
        VolumeNotFoundError,
    )
    from sandbox.estimates import Estimate
    from sandbox.fs import Bind, Scratch, Tmpfs, Volume
    from sandbox.measurements import Comparison, Measurement, Ratio
    from sandbox.measuring import compare, measure
    from sandbox.monitoring import Monitor, Sample
    from sandbox.net.counters import NetStats
    from sandbox.net.shape import Shape
    from sandbox.network import Endpoint, Network
    from sandbox.pool import Lease, Leases, Pool, PoolStats
    from sandbox.process import Process, Result, Status
    from sandbox.sec import Rlimits, Security

_HOMES: Final = {
    "sandbox._files.limits": "CopyProgress",
    "sandbox._interact": "Chunk Interaction Party Verdict interact",
    "sandbox._networks.capture": "Capture",
    "sandbox._networks.store": "NetworkStore",
    "sandbox._networks.wishes": "Join",
    "sandbox._start": "shut_down",
    "sandbox.builder": "build",
    "sandbox.cg": "Limits",
    "sandbox.cg.details": "Details",
    "sandbox.container": "Container run",
    "sandbox.errors": "BrokenError ClosedError CommandError ContainerNotFoundError DockerfileError ImageError ImageInUseError ImageNotFoundError "
    "LimitError NameInUseError NetworkInUseError NetworkNotFoundError PortInUseError ProgramNotFoundError ProtocolError RegistryError SandboxError "
    "SetupError UnsupportedError UsageError VolumeInUseError VolumeNotFoundError",
    "sandbox.estimates": "Estimate",
    "sandbox.fs": "Bind Scratch Tmpfs Volume",
    "sandbox.measurements": "Comparison Measurement Ratio",
    "sandbox.measuring": "compare measure",
    "sandbox.monitoring": "Monitor Sample",
    "sandbox.net.counters": "NetStats",
    "sandbox.net.shape": "Shape",
    "sandbox.network": "Endpoint Network",
    "sandbox._types": "DEVNULL PIPE STDOUT",
    "sandbox.pool": "Lease Leases Pool PoolStats",
    "sandbox.process": "Process Result Status",
    "sandbox.sec": "Rlimits Security",
}
_HOME_OF: Final = {name: module for module, names in _HOMES.items() for name in names.split()}
_PACKAGES: Final = frozenset(("aio", "builder", "cg", "errors", "features", "fs", "image", "keep", "noise", "ns", "sec"))

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "Bind",
    "BrokenError",
    "Capture",
    "Chunk",
    "ClosedError",
    "CommandError",
    "Comparison",
    "Container",
    "ContainerNotFoundError",
    "CopyProgress",
    "Details",
    "DockerfileError",
    "Endpoint",
    "Estimate",
    "ImageError",
    "ImageInUseError",
    "ImageNotFoundError",
    "Interaction",
    "Join",
    "Lease",
    "Leases",
    "LimitError",
    "Limits",
    "Measurement",
    "Monitor",
    "NameInUseError",
    "NetStats",
    "Network",
    "NetworkInUseError",
    "NetworkNotFoundError",
    "NetworkStore",
    "Party",
    "Pool",
    "PoolStats",
    "PortInUseError",
    "Process",
    "ProgramNotFoundError",
    "ProtocolError",
    "Ratio",
    "RegistryError",
    "Result",
    "Rlimits",
    "Sample",
    "SandboxError",
    "Scratch",
    "Security",
    "SetupError",
    "Shape",
    "Status",
    "Tmpfs",
    "UnsupportedError",
    "UsageError",
    "Verdict",
    "Volume",
    "VolumeInUseError",
    "VolumeNotFoundError",
    "aio",
    "build",
    "builder",
    "cg",
    "compare",
    "errors",
    "features",
    "fs",
    "image",
    "interact",
    "keep",
    "measure",
    "noise",
    "ns",
    "run",
    "sec",
    "shut_down",
]


def __getattr__(name: str) -> object:
    """Load a public name at its first use."""
    import importlib

    if name in _PACKAGES:
        package = importlib.import_module(f"sandbox.{name}")
        if name == "ns":  # its helper processes are children of the launcher, which it must not know
            package.bind_spawner(lambda: importlib.import_module("sandbox._spawner").Helpers())
        return package
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'sandbox' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value  # the next use finds it there
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
