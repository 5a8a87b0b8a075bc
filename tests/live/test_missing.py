"""Hosts that lack things: either the fallback works with a real container and a real program, or the error names what is missing."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import Bind, Container, Status, UnsupportedError, _host, cg, features
from sandbox import _plan as plan
from sandbox._compile import helper_plan
from sandbox._launch import codec, wire
from sandbox._refusals import setup_error
from tests.leak.snapshot import Snapshot
from tests.refused import python_without
from tests.support import needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]


def refused(**options: Any) -> UnsupportedError:
    """The error of a container that cannot be; nothing, not even the launcher, was started for it."""
    before = Snapshot.take()
    with pytest.raises(UnsupportedError) as caught:
        Container(**options).create()
    assert before.wait_until_clean() == []  # the launcher would stay
    assert caught.value.remedy
    assert caught.value.remedy in str(caught.value)
    return caught.value


# --- what every container needs


@pytest.mark.parametrize("need", features.NEEDS, ids=lambda need: need.probe)
def test_a_host_below_the_floor_is_refused_before_anything_is_touched(need: features.Need) -> None:
    with features.pretend(**{need.probe: False}):
        error = refused()
    assert error.feature == need.probe
    assert need.words in str(error)
    assert sandbox.run(["true"]).ok


def test_all_that_is_missing_is_said_at_once() -> None:
    with features.pretend(openat2=False, close_range=False):
        error = refused(strict=False)
    assert "openat2, close_range" in str(error)
    assert str(error).count(f"boot Linux {features.FLOOR}") == 1


@needs("root")
def test_helpers_of_namespaces_have_the_same_floor() -> None:
    with features.pretend(openat2=False), pytest.raises(UnsupportedError, match="openat2"):
        sandbox.ns.Namespace.create("uts")


ASK = """
import json, os, sandbox
before = len(os.listdir("/proc/self/fd"))
try:
    result = sandbox.run(["echo", "hi"])
    print(json.dumps(["ran", result.stdout.decode()]))
except sandbox.UnsupportedError as error:
    print(json.dumps([error.feature, str(error), len(os.listdir("/proc/self/fd")) - before]))
"""


@pytest.mark.parametrize(
    ("call", "feature"),
    [
        ("pidfd_open", "pidfd"),
        ("pidfd_send_signal", "pidfd"),
        ("memfd_create", "memfd_seals"),
        ("openat2", "openat2"),
        ("fsopen", "new_mount_api"),
        ("fsconfig", "new_mount_api"),
        ("fsmount", "new_mount_api"),
        ("open_tree", "new_mount_api"),
        ("move_mount", "new_mount_api"),
        ("close_range", "close_range"),
    ],
)
def test_a_call_that_is_refused_for_good_is_named(call: str, feature: str) -> None:
    done = python_without(call, ASK)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told[0] == feature
    assert call in told[1]
    assert features.FLOOR in told[1]
    assert told[2] == 0


# --- what there is a substitute for


def test_without_clone3_clone_makes_the_container() -> None:
    done = python_without("clone3", ASK)
    assert json.loads(done.stdout) == ["ran", "hi\n"], done.stderr


@needs("root", "cgroup-v1", "cgroup:memory", "cgroup:pids")
def test_without_clone3_limits_of_v1_hold() -> None:
    code = """
import sandbox
with sandbox.Container(memory="64M", pids=16) as c:
    for _ in range(3):
        r = c.exec(["sh", "-c", "x=$(head -c 200M /dev/zero | tr '\\\\0' a)"])
        print(r.status.name)
    print(c.exec(["true"], memory="32M").ok, c.degraded)
"""
    done = python_without("clone3", code)
    *statuses, last = done.stdout.splitlines()
    assert statuses == ["MEMORY_LIMIT"] * 3, done.stderr
    assert last == "True ()"


@needs("root")
def test_without_clone3_a_namespace_can_be_joined_before_the_clone() -> None:
    code = """
import os, sandbox
with sandbox.Container() as a, sandbox.Container(net=a) as b:
    print(len({os.readlink(f"/proc/{c.pid}/ns/net") for c in (a, b)}), b.exec(["true"]).ok)
"""
    done = python_without("clone3", code)
    assert done.stdout == "1 True\n", done.stderr


@pytest.mark.parametrize("calls", ["epoll_pwait2 sched_setaffinity", "clone3 epoll_pwait2"])
def test_calls_of_convenience_are_not_needed(calls: str) -> None:
    done = python_without(calls, ASK)
    assert json.loads(done.stdout) == ["ran", "hi\n"], done.stderr


# --- cgroups


@needs("root", "cgroup-v1", "cgroup:memory")
def test_limits_of_v1_take_no_clone_into_cgroup() -> None:
    with features.pretend(clone3=False, clone_into_cgroup=False), Container(memory="64M") as c:
        assert c.exec(["true"], memory="32M").ok
        assert c.degraded == ()


@pytest.fixture
def unified(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose limits are all cgroup v2's, as far as the refusal goes: nothing is made there."""
    monkeypatch.setattr(_host, "detect", lambda: cg.hosts.Host((cg.hosts.Hierarchy(2, ("memory", "pids"), "/sys/fs/cgroup", "/sys/fs/cgroup"),)))


@needs("cgroup:memory")
@pytest.mark.usefixtures("unified")
def test_limits_of_v2_without_clone_into_cgroup_are_refused_or_listed() -> None:
    with features.pretend(clone_into_cgroup=False):
        assert refused(memory="64M").feature == "clone_into_cgroup"
        with Container(memory="64M", strict=False) as c:
            assert c.exec(["echo", "hi"]).stdout == b"hi\n"
            assert sum("CLONE_INTO_CGROUP" in line for line in c.degraded) == 1  # beside the ids that a user may not have
            assert c.exec(["true"], memory="32M").ok
            assert any("a run's control group" in line for line in c.degraded)
        with Container() as c:
            assert c.exec(["true"]).ok
            with pytest.raises(UnsupportedError, match="CLONE_INTO_CGROUP"):
                c.exec(["true"], memory="32M")
            assert c.exec(["true"]).ok


class Without:
    """The kernel's control group files, but for some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.names = names
        self._open, self._exists = cg.files.os.open, cg.files.os.path.exists
        monkeypatch.setattr("os.open", self.open)
        monkeypatch.setattr("os.path.exists", lambda path: not self.hides(path) and self._exists(path))
        cg.files.existing.cache_clear()

    def hides(self, path: Any) -> bool:
        text = path if isinstance(path, bytes) else str(path).encode()
        return text.rpartition(b"/")[2].decode(errors="replace") in self.names

    def open(self, path: Any, *args: Any, **options: Any) -> int:
        if self.hides(path):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return self._open(path, *args, **options)


@needs("root", "cgroup:memory")
def test_without_peaks_the_result_says_none_and_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    Without(monkeypatch, "memory.peak", "memory.max_usage_in_bytes", "pids.peak")
    with Container(memory="64M", pids=16) as c:
        result = c.exec(["sh", "-c", "x=$(head -c 200M /dev/zero | tr '\\0' a)"])
        assert (result.status, result.memory_peak, result.pids_peak) == (Status.MEMORY_LIMIT, None, None)
    cg.files.existing.cache_clear()


@needs("root", "cgroup:memory")
def test_without_swap_accounting_a_limit_on_memory_holds_and_one_on_swap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Without(monkeypatch, "memory.memsw.limit_in_bytes", "memory.swap.max")
    with Container(memory="64M") as c:
        assert c.exec(["sh", "-c", "x=$(head -c 200M /dev/zero | tr '\\0' a)"]).status is Status.MEMORY_LIMIT
    with pytest.raises(UnsupportedError, match="no file memory") as caught:
        Container(memory="64M", swap="64M").create()
    assert caught.value.remedy
    with Container(memory="64M", swap="64M", strict=False) as c:
        assert c.exec(["true"]).ok
        assert sum("no file memory" in line for line in c.degraded) == 1
        assert c.exec(["sh", "-c", "x=$(head -c 200M /dev/zero | tr '\\0' a)"]).status is Status.MEMORY_LIMIT
    with Container(memory="64M", strict=False) as c:
        for _ in range(2):  # the container's limit holds although the run's cannot be set
            assert c.exec(["sh", "-c", "x=$(head -c 200M /dev/zero | tr '\\0' a)"], memory="512M", swap="16M").status is Status.MEMORY_LIMIT
        assert [line for line in c.degraded if "a run's control group" in line] == [c.degraded[-1]]
    cg.files.existing.cache_clear()


@needs("root", "cgroup:memory")
def test_without_cgroup_kill_a_group_is_emptied_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    Without(monkeypatch, "cgroup.kill")
    program = subprocess.Popen(["sh", "-c", "while :; do sleep 0.01 & wait; done"])
    try:
        with cg.Cgroup("left", cg.Limits(memory="64M")) as group:
            group.attach(program.pid)
            group.kill()
            # A shell that is not let fork any more may end by itself before it is killed.
            assert program.wait(patience(30)) in {-signal.SIGKILL, 2}
            assert group.pids() == []
    finally:
        program.kill()
        program.wait()


# --- namespaces and file systems


def test_without_time_namespaces_own_clocks_are_refused_or_listed() -> None:
    with features.pretend(time_namespace=False):
        assert refused(time_offsets=(1000.0, 1000.0)).feature == "time_namespace"
        with Container(time_offsets=(1e6, 1e6), strict=False) as c:
            assert [line.partition(":")[0] for line in c.degraded if "time" in line] == ["time_offsets"]
            theirs = float(c.exec(["cat", "/proc/uptime"]).stdout.split()[0])
            assert theirs <= float(Path("/proc/uptime").read_text().split()[0])  # without what was asked for
        with Container() as c:
            assert c.exec(["true"]).ok


@needs("overlay")
@pytest.mark.parametrize("probe", ["overlay", "overlay_in_userns"])
def test_without_overlay_a_directory_is_refused_and_the_view_of_the_host_works(probe: str, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    with features.pretend(**{probe: False}):
        error = refused(image=tmp_path)
        assert error.feature == "overlay"
        assert sandbox.run(["true"]).ok


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENODEV])
def test_an_overlay_that_the_kernel_refuses_is_named_too(number: int) -> None:
    mount = plan.NewFs("root", "overlay", (("lowerdir", "/"),))
    compiled = helper_plan(plan.Plan(clone_flags=0, init_ops=(mount,)), ())
    error = setup_error(codec.Failed(wire.Phase.INIT, 0, 0, number), compiled.ops, 0)
    assert isinstance(error, UnsupportedError)
    assert error.feature == "overlay"


@needs("root")
def test_without_id_mapped_mounts_what_is_read_only_works_and_the_rest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with features.pretend(idmapped_mounts=False):
        assert refused(image=tmp_path).feature == "idmapped-mounts"
        assert refused(mounts=[Bind(tmp_path, "/data")]).feature == "idmapped-mounts"
        with Container(mounts=[Bind(tmp_path, "/data", read_only=True)]) as c:
            tmp_path.chmod(0o755)
            assert c.exec(["cat", "/data/file"]).stdout == b"text"


@needs("root", "idmap")
def test_a_mount_below_one_that_cannot_be_id_mapped_is_named_and_left_out(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    tmp_path.chmod(0o755)
    subprocess.run(["mount", "-t", "proc", "proc", below], check=True)
    try:
        with pytest.raises(sandbox.SetupError, match="recursive=False"):
            sandbox.run(["true"], mounts=[Bind(tmp_path, "/data")])
        assert sandbox.run(["ls", "-A", "/data/below"], mounts=[Bind(tmp_path, "/data", recursive=False)]).stdout == b""
    finally:
        subprocess.run(["umount", below], check=True)


# --- Landlock


def test_without_landlock_it_is_listed_and_refused_where_it_is_asked_for() -> None:
    with features.pretend(landlock_abi=0):
        with Container() as c:
            assert c.exec(["true"]).ok
            assert [line for line in c.degraded if line.startswith("landlock: off")]
        assert refused(security=sandbox.sec.Security(landlock=True)).feature == "landlock"


@pytest.mark.parametrize("call", ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"])
def test_a_part_of_landlock_that_is_refused_is_no_landlock(call: str) -> None:
    code = """
import sandbox
with sandbox.Container() as c:
    print(c.exec(["true"]).ok, c.degraded)
"""
    done = python_without(call, code)
    assert done.stdout.startswith("True ('landlock: off"), done.stderr


def test_a_missing_feature_is_told_after_a_start_that_had_it() -> None:
    with Container() as c:
        assert c.exec(["true"]).ok
        with features.pretend(openat2=False), pytest.raises(UnsupportedError, match="openat2"):
            Container().create()
