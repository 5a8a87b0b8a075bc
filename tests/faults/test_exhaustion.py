"""Descriptors, processes, namespaces, memory, control groups, disk and inodes that run out: a typed error that says which, at once, and nothing left."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import pytest

import sandbox
from sandbox import Container, Network, Pool, Scratch, cg
from tests.faults.cases import Outcome, Scenario, begin
from tests.faults.scenarios import beside, limited, plain
from tests.support import needs, patience, why_not

pytestmark = [needs("userns", "root"), pytest.mark.timeout(900)]


def outcomes(scenarios: dict[object, Scenario]) -> dict[object, Outcome]:
    """Carry them all out; no outcome may give cause for complaint, twice: a machine with other work may be slow once."""
    found = {key: begin(scenario).outcome() for key, scenario in scenarios.items()}
    found |= {key: again for key, outcome in found.items() if outcome.complaints and not (again := begin(scenarios[key]).outcome()).complaints}
    assert not (wrong := {key: outcome.complaints for key, outcome in found.items() if outcome.complaints}), wrong
    return found


# --- descriptors


def with_descriptors(count: int, scenario: Scenario) -> Scenario:
    """*scenario* where so many more descriptors can be opened."""

    def limited_scenario() -> None:
        import select  # noqa: F401 - what is imported late takes descriptors, and is not what is tried out
        import socket  # noqa: F401

        last = max(map(int, os.listdir("/proc/self/fd")))
        fillers = set(range(last)) - set(map(int, os.listdir("/proc/self/fd")))
        for fd in fillers:
            os.dup2(0, fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + count, last + count))
        try:
            scenario()
        finally:
            for fd in fillers:
                os.close(fd)

    return limited_scenario


def with_terminal() -> None:
    with Container() as c, c.popen(["true"], tty=True) as p:
        assert p.wait(10.0).ok


def networked() -> None:
    with Network(internal=True) as net, Container(net=net) as c:
        c.exec(["true"]).check()


def watched() -> None:
    with Container(memory="64M") as c:
        c.pause()
        c.resume()
        c.stats()
        with c.monitor(0.01):
            c.exec(["true"]).check()


def assert_named(found: dict[object, Outcome], words: tuple[str, ...]) -> None:
    """Each error says what there is too little of."""
    assert not (wrong := {key: outcome.message for key, outcome in found.items() if outcome.error and not any(word in outcome.message for word in words)}), wrong


@pytest.mark.parametrize("scenario", [plain, limited, beside, with_terminal, networked, watched])
def test_any_number_of_descriptors_is_enough_or_is_said_to_be_too_few(scenario: Scenario) -> None:
    found = outcomes({count: with_descriptors(count, scenario) for count in range(1, 64, 1)})
    assert found[1].error
    assert_named(found, ("EMFILE", "descriptors"))
    assert not found[63].error


def test_any_number_of_descriptors_is_enough_for_a_scratch_layer_on_disk_or_is_said_to_be_too_few(tmp_path: Path) -> None:
    found = outcomes({count: with_descriptors(count, lambda: scratch_on_disk(tmp_path)) for count in range(1, 32)})
    assert found[1].error
    assert_named(found, ("EMFILE", "descriptors"))
    assert not found[31].error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["listdir", "rmdir", "unlink"])
def test_a_scratch_layer_that_cannot_be_removed_is_a_typed_error_and_goes_with_the_process(call: str, tmp_path: Path) -> None:
    def scenario() -> None:
        c = Container(scratch=Scratch(disk=str(tmp_path)), user="0:0").create()
        c.exec(["sh", "-c", "mkdir -p /tmp/a/b && echo x >/tmp/a/b/file"]).check()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, call, refuse)
            c.close()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    found = outcomes({0: scenario})
    assert "remove the scratch directory" in found[0].message
    assert_named(found, ("EMFILE",))
    assert os.listdir(tmp_path) == []


def test_a_container_outlives_a_shortage_of_descriptors() -> None:
    def scenario() -> None:
        with Container(memory="64M") as c:
            c.exec(["true"]).check()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            errors = 0
            for more in range(12):
                resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + more, hard))
                try:
                    c.exec(["true"], input=b"x").check()
                except sandbox.SandboxError:
                    errors += 1
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                c.exec(["true"], input=b"x").check()
            assert errors

    outcomes({0: scenario})


def test_an_init_that_has_no_descriptors_left_says_so_and_goes_on() -> None:
    def scenario() -> None:
        with Container() as c:
            limits = resource.prlimit(c.pid, resource.RLIMIT_NOFILE)
            c.exec(["true"], input=b"x").check()
            resource.prlimit(c.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
            for attempt in (lambda: c.exec(["true"], input=b"x"), lambda: c.read_bytes("/etc/hostname")):
                with pytest.raises(sandbox.SetupError, match="EMFILE"):
                    attempt()
            resource.prlimit(c.pid, resource.RLIMIT_NOFILE, limits)
            c.exec(["true"], input=b"x").check()

    outcomes({0: scenario})


# --- processes


@pytest.fixture
def few_processes() -> Iterator[Callable[[int, Scenario], Scenario]]:
    with ExitStack() as stack:

        def within(count: int, scenario: Scenario) -> Scenario:
            # Each its own: on v2 nobody comes into a group any more in which one of them has had groups made.
            group = stack.enter_context(cg.Cgroup(f"few-{count}", cg.Limits(pids=count)))
            directory = next(path for path in map(Path, group.paths) if (path / "pids.max").exists())

            def confined() -> None:
                (directory / "cgroup.procs").write_text("0")
                scenario()

            return confined

        yield within


def pooled() -> None:
    with Pool(size=2, read_only=True) as pool:
        for _ in range(3):
            pool.exec(["true"]).check()
        pool.submit(["true"]).result(patience(20)).check()


@needs("cgroup:pids")
def test_any_number_of_threads_is_enough_for_a_pool_or_is_said_to_be_too_few(few_processes: Callable[[int, Scenario], Scenario]) -> None:
    found = outcomes({count: few_processes(count, pooled) for count in (*range(1, 12), 30)})
    assert found[1].error
    assert_named(found, ("EAGAIN", "processes"))
    assert not found[30].error


@needs("cgroup:pids")
@pytest.mark.parametrize("scenario", [plain, beside])
def test_any_number_of_processes_is_enough_or_is_said_to_be_too_few(scenario: Scenario, few_processes: Callable[[int, Scenario], Scenario]) -> None:
    found = outcomes({count: few_processes(count, scenario) for count in range(1, 10)})
    assert found[1].error
    assert "EAGAIN" in found[3].message or "processes" in found[3].message
    assert not found[9].error


STRANGER = 54321  # from here on are users who have no other processes, those of the run before among them
_BY_STRANGER = """
import resource, sys
import sandbox
resource.setrlimit(resource.RLIMIT_NPROC, (int(sys.argv[1]),) * 2)
try:
    with sandbox.Container() as c:
        c.exec(["true"]).check()
    print("ran")
except sandbox.SandboxError as error:
    print(type(error).__name__, error)
"""


def test_any_number_of_processes_of_a_user_is_enough_or_is_said_to_be_too_few() -> None:
    told: dict[int, str] = {}
    for count in range(1, 13):
        command, user = [sys.executable, "-c", _BY_STRANGER, str(count)], STRANGER + count
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience(60), user=user, group=user, extra_groups=[])
        assert done.returncode == 0, done.stderr
        told[count] = done.stdout
    assert all("processes" in line for line in told.values() if line != "ran\n"), told
    assert told[1] != "ran\n"
    assert told[12] == "ran\n", told


# --- namespaces, below a user namespace whose limits are ours to set

NESTED = ["unshare", "--user", "sh", "-c", 'echo ready; read go; exec "$@"', "sh", sys.executable, "-c"]
_CODE = """
import sys
from pathlib import Path
import sandbox
kind, most = sys.argv[1:]
sandbox.run(["true"])
Path(f"/proc/sys/user/max_{kind}_namespaces").write_text(most)
sandbox.shut_down()
for _ in range(2):
    try:
        with sandbox.Container() as c:
            c.exec(["true"]).check()
    except sandbox.SandboxError as error:
        print(type(error).__name__, error)
Path(f"/proc/sys/user/max_{kind}_namespaces").write_text("1000")
assert sandbox.run(["true"]).ok
"""


@pytest.mark.parametrize("kind", ["user", "mnt", "pid", "net", "uts", "ipc", "cgroup"])
def test_namespaces_that_run_out_are_named(kind: str) -> None:
    def scenario() -> None:
        process = subprocess.Popen([*NESTED, _CODE, kind, "0"], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text("0 0 1000000")
        told, complaint = process.communicate("go\n", timeout=patience(60))
        assert process.returncode == 0, complaint
        lines = told.splitlines()
        assert len(lines) == 2, told
        assert all("sysctl" in line for line in lines), lines

    outcome = begin(scenario).outcome()
    assert (outcome.error, outcome.left) == ("", []), outcome


# --- memory


def in_group(group: cg.Cgroup, scenario: Scenario) -> Scenario:
    """*scenario* where all that takes part in it is in *group*, the embedding process too."""

    def confined() -> None:
        for path in group.paths:
            (Path(path) / "cgroup.procs").write_text("0")
        scenario()

    return confined


def greedy() -> None:
    """A program that may have all there is, and wants more."""
    with Container() as c:
        result = c.exec(["sh", "-c", "head -c 500M /dev/zero | tail"])
        assert not result.ok, result
        c.exec(["true"]).check()


@needs("cgroup:memory")
@pytest.mark.parametrize("scenario", [plain, limited, beside, greedy])
def test_memory_that_runs_out_around_all_of_it_leaves_nothing(scenario: Scenario) -> None:
    with ExitStack() as stack:
        sizes = (1, 2, 4, 6, 8, 12, 16, 200)
        groups = {size: stack.enter_context(cg.Cgroup(f"little-{size}", cg.Limits(memory=size << 20, swap=0))) for size in sizes}
        found = outcomes({size: in_group(group, scenario) for size, group in groups.items()})
        assert groups[1].events().oom_kill
    assert not found[200].error
    # On v2 the groups of this library go as a whole, the embedding process too: it can tell nothing then.
    assert found[200].seconds or (scenario is greedy and not why_not("cgroup-v2"))


# --- control groups


def with_groups(count: int, number: int, scenario: Scenario) -> Scenario:
    """*scenario* where so many more control groups can be made from Python, and the next ends in *number*."""

    def short() -> None:
        make, left = os.mkdir, count

        def mkdir(path: str | bytes, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            nonlocal left
            where = os.fsdecode(path) if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
            if where.startswith("/sys/fs/cgroup"):
                if left == 0:
                    raise OSError(number, os.strerror(number), path)
                left -= 1
            make(path, mode, dir_fd=dir_fd)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "mkdir", mkdir)
            scenario()

    return short


@needs("cgroup:memory", "cgroup:pids")
@pytest.mark.parametrize(("number", "words"), [(errno.EAGAIN, "cgroup.max.descendants"), (errno.ENOSPC, "65,535")])
def test_any_number_of_control_groups_is_enough_or_is_said_to_be_too_few(number: int, words: str) -> None:
    found = outcomes({count: with_groups(count, number, limited) for count in (*range(40), 400)})
    assert found[0].error
    assert all(words in outcome.message for outcome in found.values() if outcome.error)
    assert not found[400].error


@pytest.mark.parametrize("file", ["cgroup.max.descendants", "cgroup.max.depth"])
def test_a_limit_on_the_number_of_control_groups_is_named(file: str) -> None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    top = next((Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2"), None)
    if top is None:
        pytest.skip("no cgroup v2 is mounted")
    above = top / f"few-groups-{os.getpid()}"
    above.mkdir()
    try:
        (above / file).write_text("0")
        with pytest.raises(sandbox.SetupError, match=file):
            cg.files.make_directory(str(above / "below"))
    finally:
        above.rmdir()


# --- file systems


def on_tmpfs(options: str, directory: Path, scenario: Callable[[Path], object]) -> Scenario:
    """*scenario* with a tmpfs of its own, in a mount namespace of its own."""

    def mounted() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x00020000) == 0  # CLONE_NEWNS
        assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
        assert libc.mount(b"none", os.fsencode(directory), b"tmpfs", 0, options.encode()) == 0
        try:
            scenario(directory)
        finally:
            assert os.listdir(directory) == []

    return mounted


def scratch_on_disk(directory: Path) -> None:
    with Container(scratch=Scratch(disk=str(directory))) as c:
        c.exec(["sh", "-c", "head -c 1M /dev/zero >/tmp/file || true"]).check()


@needs("kernel:6.3")  # tmpfs that can be id-mapped stands for a disk
def test_a_scratch_directory_without_inodes_is_an_error(tmp_path: Path) -> None:
    found = outcomes({count: on_tmpfs(f"nr_inodes={count}", tmp_path, scratch_on_disk) for count in (*range(2, 12), 400)})
    assert "ENOSPC" in found[2].message
    assert not found[400].error


@needs("kernel:6.3")
def test_a_scratch_directory_without_room_is_an_error(tmp_path: Path) -> None:
    found = outcomes({count: on_tmpfs(f"size={count}k", tmp_path, scratch_on_disk) for count in (4, 8, 16, 32, 64, 4096)})
    assert "ENOSPC" in found[4].message
    assert not found[4096].error


def test_a_scratch_layer_in_memory_without_room_is_an_error() -> None:
    def scenario(size: int) -> Scenario:
        return lambda: Container(scratch=Scratch(size=size)).create().close()

    found = outcomes({size: scenario(size) for size in (4096, 16384, 1 << 20)})
    assert "ENOSPC" in found[4096].message
    assert not found[1 << 20].error


@pytest.mark.parametrize("limit", [0, 64 << 10])
def test_a_limit_on_the_size_of_files_below_the_launcher_s_is_named(limit: int) -> None:
    code = f"import resource, sandbox; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sandbox.run(['true'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("sandbox.errors.SetupError: start the launcher: EFBIG")
    assert "RLIMIT_FSIZE" in done.stderr.splitlines()[-1]
