"""User namespaces and the ids that a container can have."""

from __future__ import annotations

import os
from typing import Final

from sandbox import features
from sandbox.cli.doctor.finding import Finding, State, read, read_number

_SECTION: Final = "user namespaces and ids"
_SYSCTLS: Final = (
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
)


def findings() -> list[Finding]:
    """All about ids."""
    return [_user_namespaces(), *_sysctls(), _our_map(), _procfs(), _subordinate(), _helpers()]


def _user_namespaces() -> Finding:
    obstacle = features.userns_obstacle()
    if obstacle is None:
        return Finding(_SECTION, "user namespaces", State.OK, "nothing forbids them")
    return Finding(_SECTION, "user namespaces", State.MISSING, obstacle.reason, obstacle.remedy)


def _sysctls() -> list[Finding]:
    found: list[Finding] = []
    for path in _SYSCTLS:
        number = read_number(path)
        name = path.removeprefix("/proc/sys/").replace("/", ".")
        found.append(Finding(_SECTION, name, State.NOTE, "this kernel has no such setting" if number is None else str(number)))
    return found


def _our_map() -> Finding:
    lines = (read("/proc/self/uid_map") or "").splitlines()
    rows = [line.split() for line in lines]
    if rows == [["0", "0", "4294967295"]]:
        return Finding(_SECTION, "our own user namespace", State.OK, "the host's first one")
    words = ", ".join(f"{row[2]} from {row[0]} on" for row in rows if len(row) == 3) or "no ids"
    return Finding(_SECTION, "our own user namespace", State.NOTE, f"nested, with the ids: {words}")


def _procfs() -> Finding:
    what, hidden = "/proc is shown whole", features.hidden_proc()
    if not hidden:
        return Finding(_SECTION, what, State.OK, "yes")
    value = f"no: {', '.join(hidden[:3])}{' and more' if len(hidden) > 3 else ''}; needed for every container"
    return Finding(_SECTION, what, State.MISSING, value, features.PROC_REMEDY)


def _subordinate() -> Finding:
    what = "subordinate ids"
    if features.privileged():
        return Finding(_SECTION, what, State.OK, "not needed: root gives each container a range of its own")
    owned = features.subordinate_ids()
    if owned.uids and owned.gids:
        words = ", ".join(f"{count} from {first} on" for first, count in owned.uids)
        return Finding(_SECTION, what, State.OK, words)
    name = _user_name()
    remedy = f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
    return Finding(_SECTION, what, State.NOTE, f"none for {name}: containers have one id, {name}'s own", remedy)


def _helpers() -> Finding:
    what = "newuidmap, newgidmap"
    if features.privileged():
        return Finding(_SECTION, what, State.OK, "not needed: root maps ids itself")
    pair = features.newuidmap()
    if pair is not None:
        return Finding(_SECTION, what, State.OK, " and ".join(pair))
    return Finding(_SECTION, what, State.NOTE, "not installed: subordinate ids cannot be used", "install the package uidmap (Debian) or shadow-utils")


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
