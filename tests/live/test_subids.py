"""More ids than one, as an ordinary user: those of /etc/subuid and /etc/subgid, which newuidmap and newgidmap map.

Each test runs code as uid 1000; as root, in a mount namespace whose two files give that user ids. As the user himself, with the host's own files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attr
import pytest

import sandbox
from tests.support import needs, patience, why_not

pytestmark = [needs("userns", "program:newuidmap", "program:setpriv"), pytest.mark.unprivileged]
PATHS = (str(Path(sandbox.__file__).parents[1]), str(Path(attr.__file__).parents[1]))
BEGIN = f"import sys; sys.path[:0] = {PATHS!r}; import json, os, sandbox; from sandbox import Container, Bind\n"
FILES = 'mount --bind {0} /etc/subuid && mount --bind {0} /etc/subgid && cd /tmp && exec setpriv --reuid=1000 --regid=1000 --clear-groups "$@"'


class World:
    """Runs code as uid 1000, who may use the ids of *lines*."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def __call__(self, code: str, lines: str = "1000:200000:65536\n", *, env: dict[str, str] | None = None) -> Any:
        command = [sys.executable, "-B", "-c", BEGIN + code]
        if os.geteuid() == 0:
            file = self.scratch / "subids"
            file.write_text(lines)
            command = ["unshare", "--mount", "sh", "-c", FILES.format(file), "sh", *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience(60), env={**os.environ, **(env or {})})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def world(tmp_path: Path) -> World:
    if os.geteuid() == 0 and (reason := why_not("root")):
        pytest.skip(reason)
    if os.geteuid() != 0 and (reason := why_not("subids")):
        pytest.skip(f"needs subids: {reason}")
    tmp_path.chmod(0o755)
    return World(tmp_path)


def test_the_containers_user_is_the_caller_and_the_others_are_subordinate(world: World) -> None:
    maps, who, degraded = world("""
with Container(subids=True) as c:
    maps = [c.exec(["cat", f"/proc/self/{kind}_map"]).stdout.split() for kind in ("uid", "gid")]
    who = c.exec(["id", "-u"], user="77:78").stdout, c.exec(["id", "-G"], user="77:78").stdout
    print(json.dumps([[[int(n) for n in m] for m in maps], [w.decode() for w in who], c.degraded]))
""")
    own = os.geteuid() or 1000
    for numbers in maps:
        lines = list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
        assert (1000, own, 1) in lines
        assert sum(count for _, _, count in lines) == 65536
    assert who == ["77\n", "78\n"]
    assert not degraded or "landlock" in degraded[0]


def test_root_inside_has_the_rights_of_root_there_and_none_outside(world: World) -> None:
    owners, outside, secret = world("""
import tempfile
with tempfile.TemporaryDirectory() as d:
    with Container(subids=True, user=0, mounts=[Bind(d, "/data")], security=sandbox.Security(cap_add=["CHOWN"])) as c:
        r = c.exec(["sh", "-c", "touch /data/mine /data/theirs && chown 33:33 /data/theirs && stat -c %u:%g /data/mine /data/theirs; cat /etc/shadow"])
        print(json.dumps([r.stdout.decode().split(), [os.stat(f"{d}/{n}").st_uid for n in ("mine", "theirs")], r.stderr.decode()]))
        c.exec(["rm", "/data/theirs"])
""")
    assert owners == ["0:0", "33:33"]
    assert outside[0] == (os.geteuid() or 1000)
    assert outside[1] not in (0, 33, 1000)
    assert "shadow" in secret


def test_programs_of_other_ids_do_not_reach_the_callers_files(world: World) -> None:
    assert world("""
import tempfile
with tempfile.TemporaryDirectory() as d:
    open(f"{d}/file", "w").write("x")
    with Container(subids=True, mounts=[Bind(d, "/data", read_only=True)]) as c:
        print(json.dumps([c.exec(["cat", "/data/file"]).ok, c.exec(["cat", "/data/file"], user=5).ok]))
""") == [True, False]


def test_containers_of_one_kind_are_made_ahead_with_the_same_ids(world: World) -> None:
    assert world("""
counts = []
for subids in (True, True, False, True, False):
    counts.append(len(sandbox.run(["cat", "/proc/self/uid_map"], subids=subids).stdout.splitlines()))
print(json.dumps(counts))
""") == [3, 3, 1, 3, 1]


def test_a_range_of_few_ids_gives_few(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("takes files of its own")
    told = world("""
with Container(subids=True, user=0) as c:
    try:
        c.exec(["true"], user=10)
    except sandbox.UsageError as error:
        print(json.dumps([c.exec(["id", "-u"], user=9).stdout.decode(), str(error)]))
""", lines="1000:200000:9\n")
    assert told[0] == "9\n"
    assert "the ids 0 to 9" in told[1]


def test_without_a_range_strict_refuses_and_otherwise_it_is_listed(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("takes files of its own")
    error, degraded, lines = world("""
try:
    sandbox.run(["true"], subids=True)
except sandbox.UnsupportedError as error:
    with Container(subids=True, strict=False) as c:
        print(json.dumps([str(error), c.degraded, len(c.exec(["cat", "/proc/self/uid_map"]).stdout.splitlines())]))
""", lines="other:200000:65536\n")
    assert "no range in /etc/subuid" in error
    assert "usermod --add-subuids" in error
    assert any(line.startswith("subids: ") for line in degraded)
    assert lines == 1


def test_a_range_that_is_not_the_users_is_refused_by_newuidmap(world: World) -> None:
    error = world("""
from sandbox import features
from sandbox._sys.subid import Owned
with features.pretend(subordinate_ids=Owned(((500000, 65536),), ((500000, 65536),))):
    try:
        sandbox.run(["true"], subids=True)
    except sandbox.SetupError as error:
        print(json.dumps(str(error)))
""")
    assert "/etc/subuid" in error


def test_without_newuidmap_the_package_is_named() -> None:
    with sandbox.features.pretend(newuidmap=None, privileged=False), pytest.raises(sandbox.UnsupportedError, match="uidmap"):
        sandbox.run(["true"], subids=True)


@needs("root")
def test_roots_containers_have_a_range_in_any_case() -> None:
    inside = [sandbox.run(["cat", "/proc/self/uid_map"], subids=subids).stdout.split()[2] for subids in (True, False)]
    assert inside == [b"65536", b"65536"]
