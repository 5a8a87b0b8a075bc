"""What the options of ``sandbox run`` about shared namespaces mean: Docker's words to the argument *share* of `Container`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

from sandbox import UsageError

OPTIONS: Final = ("ipc", "uts", "pid", "cgroupns", "userns")
_CONTAINER: Final = "container:"
_OWN: Final = ("", "private")
_NEVER: Final = {
    "pid": "a container's programs end with its own PID 1, for sure, and are seen by nobody else's; `sandbox exec CONTAINER PROGRAM` runs one "
    "among those of another container",
    "userns": "a container has a user namespace of its own, always, as root too; --ipc container:NAME gives it the ids of that one",
}


def arguments(parsed: Namespace) -> dict[str, Any]:
    """What is said of namespaces; empty: nothing. Raises: UsageError; ContainerNotFoundError."""
    share = {}
    for option in OPTIONS:
        word = getattr(parsed, option, "") or ""
        if word in _OWN or (option, word) == ("ipc", "shareable"):  # what every container's is
            continue
        share["cgroup" if option == "cgroupns" else option] = _whose(option, word)
    return {"share": share} if share else {}


def _whose(option: str, word: str) -> Any:  # noqa: ANN401 - whatever `Container` takes
    if option in _NEVER:
        raise UsageError(f"--{option}: {word!r} is not offered: {_NEVER[option]}")
    if word == "host":
        return word
    if word.startswith(_CONTAINER) and option != "cgroupns":
        from sandbox.keep import resident_of

        return resident_of(f"--{option}", word.removeprefix(_CONTAINER))
    words = {"ipc": "private, shareable, host or container:NAME", "uts": "private, host or container:NAME", "cgroupns": "private or host"}
    raise UsageError(f"--{option}: {word!r} is none of {words[option]}")


def explained(container: Mapping[str, Any]) -> list[str]:
    """A line for each namespace that is not its own, of what `arguments` gave."""
    share: Mapping[str, Any] = container.get("share", {})
    return [f"share {kind} with {'the host' if whose == 'host' else f'process {whose.pid}'}" for kind, whose in share.items()]
