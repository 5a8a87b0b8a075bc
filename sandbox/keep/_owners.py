"""Who has a port of the host: below this layer a keeper is one more process of Python's."""

from __future__ import annotations

from contextlib import suppress

from sandbox import PortInUseError, SandboxError
from sandbox.keep._kept import containers


def with_owner(error: SandboxError) -> SandboxError:
    """The same error; where a container that outlives its command has the port, it names that one."""
    if not isinstance(error, PortInUseError) or error.pid is None:
        return error
    for kept in containers():
        with suppress(SandboxError):  # it has just gone
            if kept.config.keeper == error.pid and kept.status != "dead":
                owner = f"container {kept.name!r}"
                message = str(error).replace(f"taken by {error.owner};", f"taken by {owner} (pid {error.pid});")
                return PortInUseError(message, port=error.port, owner=owner, pid=error.pid, program=error.program)
    return error
