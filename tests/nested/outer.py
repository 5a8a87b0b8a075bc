"""Outer containers, behind one small interface: each runs this checkout's ``tests.vm.features`` inside, and gives back what came of it.

Every one sees the host's /usr (with the interpreter), this checkout and what it imports, all read-only, and nothing else of the host. Docker has a
daemon for this run alone (`tests.escape.targets`), and an image that holds nothing but an empty tree.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attr
from attrs import frozen

import sandbox
from sandbox import Bind, Container, Security, Tmpfs
from tests.escape.targets import DockerTarget

CHECKOUT: Final = Path(sandbox.__file__).parents[1]
SITE: Final = Path(attr.__file__).parents[1]
PYTHON: Final = "/usr/bin/python3"
ENV: Final = {"PYTHONPATH": "/checkout:/site", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": "/tmp"}
PATIENCE_S: Final = 100.0
LINKS: Final = ("bin", "sbin", "lib", "lib64")
USER: Final = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")

SECCOMP: Final = "--security-opt seccomp=unconfined"
PATHS: Final = "--security-opt systempaths=unconfined"
APPARMOR: Final = "--security-opt apparmor=unconfined"
GROUPS: Final = "--cgroupns=host --volume /sys/fs/cgroup:/sys/fs/cgroup"
ALL_CAPS: Final = "--cap-add ALL --cap-drop SYS_RESOURCE"  # the privileged one of a machine whose root has no CAP_SYS_RESOURCE


@frozen
class Outer:
    """One outer container: *tool* with *flags*, as *user* inside ("": as the tool does) or, for what needs no daemon, outside."""

    tool: str
    flags: str = ""
    user: str = ""

    @property
    def title(self) -> str:
        who = {"": "", "1000": ", as uid 1000", "caller": ", started by uid 1000"}[self.user]
        return f"`{self.tool}{' ' if self.flags else ''}{self.flags}`{who}"

    @property
    def needs(self) -> tuple[str, ...]:
        programs = {"docker run": ("program:docker", "program:dockerd", "program:tar"), "bwrap": ("program:bwrap",)}
        return ("root", "userns", *programs.get(self.tool, ()))


DOCKER: Final = (
    Outer("docker run"),
    Outer("docker run", user="1000"),
    Outer("docker run", SECCOMP),
    Outer("docker run", PATHS),
    Outer("docker run", f"{PATHS} --cap-add SYS_ADMIN"),
    Outer("docker run", f"{SECCOMP} {PATHS}"),
    Outer("docker run", f"{SECCOMP} {PATHS} {APPARMOR}"),
    Outer("docker run", f"{SECCOMP} {PATHS}", user="1000"),
    Outer("docker run", f"{SECCOMP} {PATHS} {GROUPS}"),
    Outer("docker run", f"{SECCOMP} {PATHS} {GROUPS} {APPARMOR}"),
    Outer("docker run", f"{SECCOMP} {PATHS} {GROUPS} --cap-add SYS_ADMIN"),
    Outer("docker run", f"{SECCOMP} {PATHS} {GROUPS} --cap-add SYS_ADMIN --tmpfs /tmp:exec"),
    Outer("docker run", "--privileged"),
    Outer("docker run", "--privileged", user="1000"),
)
BWRAP: Final = (
    Outer("bwrap", "--proc /proc"),
    Outer("bwrap", "--bind /proc /proc"),
    Outer("bwrap", "--unshare-user --bind /proc /proc"),
    Outer("bwrap", "--bind /proc /proc --bind /sys/fs/cgroup /sys/fs/cgroup"),
    Outer("bwrap", "--unshare-all --proc /proc"),
    Outer("bwrap", "--unshare-all --proc /proc", user="caller"),
    Outer("bwrap", "--unshare-user --uid 0 --gid 0 --cap-add ALL --proc /proc", user="caller"),
    Outer("bwrap", "--unshare-user --disable-userns --proc /proc", user="caller"),
    Outer("bwrap", "--unshare-user --bind /proc /proc --bind /sys/fs/cgroup /sys/fs/cgroup", user="caller"),
)
OURS: Final = (
    Outer("Container()"),
    Outer("Container()", "security=Security(nesting=True)"),
    Outer("Container()", "security=Security(nesting=True, masks=False)"),
    Outer("Container()", "security=Security(nesting=True, masks=False)", user="caller"),
    Outer("Container()", "user=0, security=Security(nesting=True, masks=False, cap_add=['ALL'])"),
)
CGROUPNS: Final = (Outer("unshare --cgroup --mount", "and cgroups mounted anew"),)
ALL: Final = (*DOCKER, *BWRAP, *OURS, *CGROUPNS)


class Docker(DockerTarget):
    """A daemon, and the image of an empty tree."""

    def image(self) -> str:
        return self._image(self.root)

    def command(self, *more: str) -> list[str]:
        return [*self._client, *more]


def make_docker(scratch: Path) -> Docker:
    """Start a daemon. `close` ends it."""
    root = scratch / "root"
    for name in ("etc", "proc", "sys", "dev", "tmp", "usr", "var", "root", "home", "checkout", "site"):
        (root / name).mkdir(parents=True)
    for name in LINKS:
        (root / name).symlink_to(f"usr/{name}")
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\ntester:x:1000:1000::/tmp:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\ntester:x:1000:\n")
    (root / "etc/ld.so.cache").write_bytes(Path("/etc/ld.so.cache").read_bytes())
    docker = Docker(attacks=root, root=root, scratch=scratch)
    docker.start()
    return docker


def usable() -> str:
    """Why nothing here can run; "" when it can."""
    if not os.path.samefile(os.path.realpath(sys.executable), os.path.realpath(PYTHON)):
        return f"the interpreter is not {PYTHON}, which is all that is shown of it inside"
    return "" if all(os.path.islink(f"/{name}") for name in LINKS) else "this host's /bin is no link to /usr/bin"


def features(outer: Outer, names: Sequence[str], docker: Docker | None = None) -> dict[str, Any]:
    """What `tests.vm.features` finds in *outer*: what of *names* works, by name. Raises: RuntimeError: nothing ran at all."""
    inner = [PYTHON, "-m", "tests.vm.features", *names]
    if outer.tool == "Container()" and not outer.user:
        said, complaint = _in_ours(outer, inner)
    else:
        if outer in CGROUPNS:
            sandbox.cg.make_room()  # v2: no processes beside its group
        done = subprocess.run(command(outer, inner, docker), capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd=CHECKOUT)
        said, complaint = done.stdout, done.stderr
    if "{" not in said:
        raise RuntimeError(complaint.strip()[-600:])
    result: dict[str, Any] = json.loads(said[said.index("{") :])["features"]
    return result


def command(outer: Outer, inner: Sequence[str], docker: Docker | None) -> list[str]:
    """The command that runs *inner* in *outer*."""
    as_user = [*USER] if outer.user == "caller" else []
    if outer.tool == "docker run":
        if docker is None:
            raise AssertionError("a daemon comes first")
        words = ["run", "--rm", "--network", "none", "--workdir", "/checkout", *outer.flags.split()]
        words += ["--volume=/usr:/usr:ro", f"--volume={CHECKOUT}:/checkout:ro", f"--volume={SITE}:/site:ro"]
        words += [f"--env={name}={value}" for name, value in ENV.items()]
        words += ["--user", f"{outer.user}:{outer.user}"] if outer.user else []
        return docker.command(*words, docker.image(), *inner)
    if outer.tool == "bwrap":
        binds = ["--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc", "--dev", "/dev", "--tmpfs", "/tmp", "--dir", "/checkout"]
        binds += ["--ro-bind", str(CHECKOUT), "/checkout", "--ro-bind", str(SITE), "/site", "--chdir", "/checkout"]
        links = [word for name in LINKS for word in ("--symlink", f"usr/{name}", f"/{name}")]
        env = [word for name, value in ENV.items() for word in ("--setenv", name, value)]
        return [*as_user, "bwrap", *links, *binds, *env, *outer.flags.split(), *inner]
    if outer.tool == "Container()":
        code = f"import sys; sys.path[:0] = [{str(CHECKOUT)!r}, {str(SITE)!r}]; sys.dont_write_bytecode = True; from tests.nested import outer; outer.main(sys.argv[1:])"
        return [*as_user, PYTHON, "-c", code, str(ALL.index(outer)), *inner]
    return ["sh", "-c", _REMOUNT, "sh", "env", *(f"{k}={v}" for k, v in {**ENV, "PYTHONPATH": f"{CHECKOUT}:{SITE}"}.items()), *inner]


# In a group of its own in each hierarchy, as the first of a new cgroup namespace; each hierarchy is mounted where it was.
_REMOUNT: Final = """
set -e
groups=
while IFS=: read -r number names path; do
    case $names in name=*) continue ;; esac
    if [ -n "$names" ]; then mount=$(awk -v c=",${names%%,*}," '$3 == "cgroup" && index("," $4 ",", c) { print $2; exit }' /proc/self/mounts)
    else mount=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts); fi
    path=${path%/sandbox-supervisor}
    group=$mount${path%/}/outer-$$
    mkdir "$group" || continue
    groups="$groups $group"
    [ -n "$names" ] || for name in $(cat "$group/../cgroup.controllers"); do echo "+$name" >"$group/../cgroup.subtree_control" || true; done
    [ ! -e "$group/cpuset.mems" ] || [ -z "$names" ] || { cat "$group/../cpuset.cpus" >"$group/cpuset.cpus"; cat "$group/../cpuset.mems" >"$group/cpuset.mems"; }
done </proc/self/cgroup
status=0
(
    own=$(sh -c 'echo $PPID')
    for group in $groups; do echo "$own" >"$group/cgroup.procs"; done
    exec unshare --cgroup --mount sh -ec '
        awk "\\$3 ~ /^cgroup/ { print \\$2, \\$3, \\$4 }" /proc/self/mounts | while read -r place kind options; do
            case $kind,$options in cgroup,*name=*) continue ;; cgroup2,*) options=rw ;; *) options=${options##*,} ;; esac
            umount --lazy "$place" # the same file system does not go onto itself
            mount -t "$kind" -o "$options" none "$place"
        done
        exec "$@"' sh "$@"
) || status=$?
for group in $groups; do rmdir "$group"/sandbox-supervisor 2>/dev/null || true; rmdir "$group"; done
exit "$status"
"""


def _in_ours(outer: Outer, inner: Sequence[str]) -> tuple[str, str]:
    mounts = [Bind(CHECKOUT, "/checkout", read_only=True), Bind(SITE, "/site", read_only=True), Tmpfs("/tmp")]
    options = eval(f"dict({outer.flags})", {"Security": Security})
    with Container(mounts=mounts, env=ENV, cwd="/checkout", **options) as c:
        done = c.exec(inner, timeout=PATIENCE_S)
    return done.stdout.decode(), done.stderr.decode()


def main(arguments: Sequence[str]) -> None:
    """What `features` runs as another user."""
    said, complaint = _in_ours(ALL[int(arguments[0])], arguments[1:])
    sys.stderr.write(complaint)
    print(said)


@contextlib.contextmanager
def daemon(scratch: Path) -> Iterator[Docker]:
    """A daemon for a while."""
    docker = make_docker(scratch)
    try:
        yield docker
    finally:
        docker.close()
