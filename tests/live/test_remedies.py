"""Every remedy that `sandbox doctor` prints is tried where the fact can be made missing here: it is told, and what it says is done as it stands.

docs/reference/doctor.md lists them all, those of machines of their own (tests/vm/remedies.py) and those that could not be tried.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import attr
import pytest

import sandbox
from tests.support import needs, patience

pytestmark = [needs("root", "userns"), pytest.mark.timeout(180)]
PATHS = (str(Path(sandbox.__file__).parents[1]), str(Path(attr.__file__).parents[1]))
USER = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
# Makes a fact missing, asks the doctor, does what he says, and asks again.
ASK = """
import json, os, subprocess, sys
what, setup, who, extract = sys.argv[1:]
env = {**os.environ, "PYTHONPATH": os.pathsep.join(json.loads(os.environ["PATHS"])), "PYTHONDONTWRITEBYTECODE": "1"}
def shell(command):
    subprocess.run(["sh", "-ec", command], check=True, stdout=subprocess.DEVNULL)
def doctor(before=""):
    command = [*json.loads(who), sys.executable, "-m", "sandbox", "doctor", "--json"]
    done = subprocess.run(["bash", "-c", before + ' exec "$@"', "sh", *command], env=env, stdout=subprocess.PIPE, text=True, cwd="/")
    report = json.loads(done.stdout)
    return report["works"], next(f for f in report["findings"] if f["what"] == what)
limits = setup.startswith("ulimit")
if not limits:
    shell(setup)
works, found = doctor(setup + ";" if limits else "")
if limits:
    command = found["remedy"].partition(",")[0]
elif extract == "as root":
    command = found["remedy"].partition("as root: ")[2].partition(",")[0].partition(";")[0]
else:
    command = extract
if not limits:
    shell(command)
after = doctor(f"{setup}; {command};" if limits else "")
print(json.dumps({"before": [works, found["state"]], "remedy": found["remedy"], "done": command, "after": [after[0], after[1]["state"]], "now": after[1]["value"]}))
"""
KINDS = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
NESTED = ("unshare", "--user", "--map-root-user", "--mount")


def try_remedy(outside: tuple[str, ...], what: str, setup: str, *, user: bool = False, extract: str = "as root", more: dict[str, str] | None = None) -> Any:
    command = [*outside, sys.executable, "-B", "-c", ASK, what, setup, json.dumps(USER if user else ()), extract]
    env = {"PATHS": json.dumps(PATHS), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **(more or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["done"]
    return told


def test_user_namespaces_that_are_switched_off_are_switched_on() -> None:
    told = try_remedy(NESTED, "user namespaces", "echo 0 >/proc/sys/user/max_user_namespaces")
    assert told["before"] == [False, "missing"]
    assert told["after"] == [True, "ok"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_on_namespaces_is_raised(kind: str) -> None:
    told = try_remedy(NESTED, f"user.max_{kind}_namespaces", f"echo 0 >/proc/sys/user/max_{kind}_namespaces")
    assert told["before"] == [kind == "time", "missing"]
    assert told["after"] == [True, "ok"]


def test_memfds_that_may_not_be_executed_are_allowed() -> None:
    # The setting belongs to the pid namespace (Linux 6.3).
    if not Path("/proc/sys/vm/memfd_noexec").exists():
        pytest.skip("this kernel has no vm.memfd_noexec")
    told = try_remedy(("unshare", "--pid", "--fork", "--mount-proc"), "executable memfds", "sysctl -w vm.memfd_noexec=2")
    assert told["before"] == [False, "missing"]
    assert told["after"] == [True, "ok"]


@needs("program:usermod", "program:newuidmap")
def test_subordinate_ids_are_given_by_usermod(tmp_path: Path) -> None:
    setup = f"cp -a /etc {tmp_path}/etc; mount --bind {tmp_path}/etc /etc; : >/etc/subuid; : >/etc/subgid; "
    setup += "grep -q '^[^:]*:[^:]*:1000:' /etc/passwd || { echo tester:x:1000:1000::/tmp:/bin/sh >>/etc/passwd; echo tester:x:1000: >>/etc/group; }"
    told = try_remedy(("unshare", "--mount"), "subordinate ids", setup, user=True)
    assert told["before"] == [True, "note"]
    assert told["done"].startswith("usermod --add-subuids")
    assert told["after"] == [True, "ok"]


@needs("program:newuidmap")
def test_a_missing_newuidmap_is_installed() -> None:
    told = try_remedy(("unshare", "--mount"), "newuidmap, newgidmap", "mount --bind /dev/null /usr/bin/newuidmap", user=True, extract="umount /usr/bin/newuidmap")
    assert told["before"] == [True, "note"]
    assert "uidmap" in told["remedy"]
    assert told["after"] == [True, "ok"]


@pytest.mark.parametrize(("what", "setup"), [("open files (nofile)", "ulimit -S -n 200"), ("processes (nproc)", "ulimit -S -u 200")])
def test_few_files_and_processes_become_more(what: str, setup: str) -> None:
    told = try_remedy(("env",), what, setup, user=True)
    assert told["before"][1] == "missing"
    assert told["done"].startswith("ulimit")
    assert told["after"] == [True, "ok"]


def test_forwarding_is_switched_on() -> None:
    told = try_remedy(("unshare", "--net"), "the host forwards (ip_forward)", "sysctl -w net.ipv4.ip_forward=0")
    assert told["before"] == [True, "note"]
    assert told["now"] == "yes"


def test_control_groups_that_are_not_mounted_are_mounted() -> None:
    command = "mount -t cgroup2 none /sys/fs/cgroup"
    told = try_remedy(("unshare", "--mount"), "mounted", "umount --lazy /sys/fs/cgroup", extract=command)
    assert told["before"] == [True, "missing"]
    assert told["remedy"] == command
    assert told["after"] == [True, "ok"]


def test_a_chroot_that_was_moved_over_the_root_lets_user_namespaces_be_made(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    tmp_path.chmod(0o755)
    code = f"import sys; sys.path[:0] = {PATHS!r}\nimport sandbox\ntry: print(sandbox.run(['echo', 'hi']).stdout)\nexcept sandbox.SandboxError as e: print(e)"
    python = [sys.executable if sys.executable.startswith("/usr/") else "/usr/bin/python3", "-B", "-c", code]
    inside = ["chroot", "--userspec=1000:1000", ".", *python]
    fill = f"cd {root}; mkdir -p usr proc dev tmp etc{''.join(path for path in map(' .{}'.format, PATHS))}; for l in bin sbin lib lib64; do ln -sfn usr/$l $l; done; "
    fill += "mount --rbind /usr usr; mount --rbind /proc proc; mount --rbind /dev dev; " + " ".join(f"mount --bind {path} .{path};" for path in PATHS)
    said = [
        subprocess.run(["unshare", "--mount", "sh", "-ec", before + fill + then + ' exec "$@"', "sh", *inside], capture_output=True, text=True, check=False, timeout=patience(60))
        for before, then in (("", ""), (f"mount --bind {root} {root}; ", f"cd {root}; mount --move . /;"))
    ]
    assert "this process runs in a chroot" in said[0].stdout, said[0]
    assert "mount --bind DIR DIR; cd DIR; mount --move . /; chroot ." in said[0].stdout
    assert said[1].stdout == "b'hi\\n'\n", said[1]


def test_setarch_switches_the_randomising_of_addresses_off() -> None:
    runs = [sandbox.run(["setarch", "-R", "grep", "stack", "/proc/self/maps"]).stdout for _ in range(3)]
    assert runs[0]
    assert len(set(runs)) == 1
    assert len({sandbox.run(["grep", "stack", "/proc/self/maps"]).stdout for _ in range(3)}) > 1
