"""Try what `sandbox doctor` says to do, on a machine of one's own: ``tests/vm/run KERNEL -- /usr/bin/python3 -m tests.vm.remedies CASE...``.

Each case makes a fact missing, asks the doctor, does what he says as it stands, and asks again. Nothing is put back: the machine goes with it.
As root; `USERS` are asked about as uid 1000. docs/reference/doctor.md tells what came of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

CGROUPS: Final = Path("/sys/fs/cgroup")


class UnhelpfulError(Exception):
    """What the doctor says does not help. Cases after this one see what was made missing."""


def doctor(what: str, *, user: bool = False) -> tuple[bool, dict[str, Any]]:
    """Whether a container works, and the finding about *what*."""
    who = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"] if user else []
    done = subprocess.run([*who, sys.executable, "-m", "sandbox", "doctor", "--json"], stdout=subprocess.PIPE, text=True, check=False)
    report = json.loads(done.stdout)
    return report["works"], next(finding for finding in report["findings"] if finding["what"] == what)


def shell(command: str) -> None:
    subprocess.run(["sh", "-ec", command], check=True, stdout=subprocess.DEVNULL)


def remedy(what: str, missing: str, *, user: bool = False, take: Callable[[str], str] = lambda text: text.partition("as root: ")[2].partition(",")[0]) -> str:
    """Make it missing by the shell command *missing*, and do what the doctor says. Raises: UnhelpfulError."""
    shell(missing)
    works, found = doctor(what, user=user)
    command = take(found["remedy"])
    before = f"{found['state']}, a container {'works' if works else 'does not work'}"
    if not command:
        raise UnhelpfulError(f"{before}; nothing to do in {found['remedy']!r} ({found['value']})")
    shell(command)
    works, after = doctor(what, user=user)
    told = f"{before}; did: {command}; {after['state']}, a container {'works' if works else 'does not work'}"
    if after["state"] != "ok" or not works:
        raise UnhelpfulError(told)
    return told


def cgroups() -> str:
    """No control groups at all, as in a bare machine; then what is said, in a group of our own."""
    told = remedy("mounted", f"umount --lazy {CGROUPS}; mkdir -p {CGROUPS}", take=lambda text: text)
    shell(f"for c in $(cat {CGROUPS}/cgroup.controllers); do echo +$c >{CGROUPS}/cgroup.subtree_control; done")
    works, found = doctor("limit memory")
    return f"{told}; limit memory: {found['state']}, {works}"


def swap() -> str:
    return remedy("swap", "dd if=/dev/zero of=/tmp/swap bs=1M count=16 2>/dev/null; "
                  "chmod 600 /tmp/swap; mkswap /tmp/swap; swapon /tmp/swap")  # fmt: skip


def huge_pages() -> str:
    return remedy("transparent huge pages", "echo always >/sys/kernel/mm/transparent_hugepage/enabled")


def debian_switch() -> str:
    return remedy("user namespaces", "sysctl -w kernel.unprivileged_userns_clone=0", user=True)


def no_user_namespaces() -> str:
    return remedy("user namespaces", "sysctl -w user.max_user_namespaces=0", user=True)


def landlock() -> str:
    """For a machine that was booted with APPEND=lsm=capability, and one without."""
    works, found = doctor("Landlock")
    return f"{found['state']}: {found['value']}; remedy: {found['remedy']}; a container {'works' if works else 'does not work'}"


def modules() -> str:
    """What networks are made of, none of it loaded, nor to be loaded by who asks for it."""
    shell("echo /bin/false >/proc/sys/kernel/modprobe")
    return "; ".join(f"{what}: {remedy(what, f'modprobe --remove --all {names}')}" for what, names in MODULES.items())


MODULES: Final = {"bridges, veth": "bridge veth", "nf_tables": "nf_tables", "tbf": "sch_tbf", "ifb": "ifb", "netem": "sch_netem"}
CASES: Final[dict[str, Callable[[], str]]] = {
    "modules": modules,
    "landlock": landlock,
    "no-user-namespaces": no_user_namespaces,
    "debian-switch": debian_switch,
    "huge-pages": huge_pages,
    "swap": swap,
    "cgroups": cgroups,
}


def main(names: Sequence[str]) -> int:
    """Print what came of each."""
    failed = False
    for name in names or CASES:
        try:
            print(f"{name}: {CASES[name]()}", flush=True)
        except (UnhelpfulError, subprocess.CalledProcessError, OSError, StopIteration) as error:
            print(f"{name}: FAILS: {error}", flush=True)
            failed = True
    return failed


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    sys.exit(main(sys.argv[1:]))
