"""The harness itself: each kind of thing that can be left behind is seen. A count that cannot fail proves nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.leak.killed import run_and_kill
from tests.leak.snapshot import Snapshot, describe, nested_lines
from tests.support import cgroup_of_self, needs

pytestmark = pytest.mark.unprivileged

# Makes one thing, and hands the stack what removes it.
Leave = Callable[[ExitStack, Path], None]


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


def leave_process(stack: ExitStack, _: Path) -> None:
    process = stack.enter_context(subprocess.Popen(["sleep", "60"]))
    stack.callback(process.kill)


def leave_zombie(stack: ExitStack, _: Path) -> None:
    process = stack.enter_context(subprocess.Popen(["true"]))
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def leave_fd(stack: ExitStack, _: Path) -> None:
    stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))


def leave_thread(stack: ExitStack, _: Path) -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    stack.callback(thread.join)
    stack.callback(end.set)


def leave_unix_socket(stack: ExitStack, _: Path) -> None:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(f"\0harness-{uuid.uuid4().hex}")


def leave_file(stack: ExitStack, scratch: Path) -> None:
    (scratch / "tmp").write_text("x")


def leave_shared_memory(stack: ExitStack, _: Path) -> None:
    path = Path(f"/dev/shm/sandbox-harness-{uuid.uuid4().hex}")
    path.touch()
    stack.callback(path.unlink)


def leave_cgroup(stack: ExitStack, _: Path) -> None:
    own = cgroup_of_self("memory")
    assert own is not None
    directory = own / f"sandbox-harness-{uuid.uuid4().hex[:8]}"
    directory.mkdir()
    stack.callback(directory.rmdir)


def leave_named_netns(stack: ExitStack, _: Path) -> None:
    # As `ip netns add` does, which besides makes /run/netns a mount of its own that stays.
    directory = Path("/run/netns")
    if not directory.exists():
        directory.mkdir()
        stack.callback(directory.rmdir)
    name = directory / f"harness-{uuid.uuid4().hex[:8]}"
    name.touch()
    stack.callback(name.unlink)
    run("unshare", "--net", "sh", "-c", f"mount --bind /proc/self/ns/net {name}")
    stack.callback(run, "umount", name)


def leave_link(stack: ExitStack, _: Path) -> None:
    name = f"hv{uuid.uuid4().hex[:8]}"
    run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
    stack.callback(run, "ip", "link", "delete", name)


def leave_mount(stack: ExitStack, scratch: Path) -> None:
    run("mount", "-t", "tmpfs", "harness", scratch)
    stack.callback(run, "umount", scratch)


def leave_namespace_fd(stack: ExitStack, _: Path) -> None:
    with subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        process.stdout.read(1)  # unshare has become cat: the namespace is there
        stack.callback(os.close, os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY))
        process.stdin.close()


LEAVE_ALL = [
    pytest.param(leave_process, "processes", id="process"),
    pytest.param(leave_zombie, "processes", id="zombie"),
    pytest.param(leave_thread, "threads", id="thread"),
    pytest.param(leave_fd, "fds", id="fd"),
    pytest.param(leave_unix_socket, "unix_sockets", id="unix socket"),
    pytest.param(leave_file, "files", id="file"),
    pytest.param(leave_shared_memory, "files", id="shared memory"),
    pytest.param(leave_cgroup, "cgroups", id="cgroup", marks=needs("cgroup:memory")),
    pytest.param(leave_namespace_fd, "namespaces", id="namespace", marks=needs("userns", "program:unshare")),
    pytest.param(leave_named_netns, "links", id="named netns", marks=needs("root")),
    pytest.param(leave_link, "links", id="link", marks=needs("root", "program:ip")),
    pytest.param(leave_mount, "mounts", id="mount", marks=needs("root")),
]


@pytest.mark.parametrize(("leave", "kind"), LEAVE_ALL)
def test_what_is_left_behind_is_seen_and_what_is_removed_is_not(leave: Leave, kind: str, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = Snapshot.take()
    with ExitStack() as stack:
        leave(stack, tmp_path)
        left = before.left_behind(Snapshot.take())
        assert [line for line in left if line.startswith(f"{kind}: ")], left
    (tmp_path / "tmp").unlink(missing_ok=True)
    assert before.wait_until_clean() == []


@needs("root", "nft")
def test_a_packet_filter_rule_is_seen():
    table = f"harness{uuid.uuid4().hex[:8]}"
    before = Snapshot.take()
    run("nft", "add", "table", "inet", table)
    try:
        left = before.left_behind(Snapshot.take())
    finally:
        run("nft", "delete", "table", "inet", table)
    assert [line for line in left if line.startswith("rules: ") and table in line], left


def test_rules_are_told_apart_by_the_blocks_that_they_are_in() -> None:
    text = "table ip a { # handle 1\n\tset s {\n\t\ttype ipv4_addr\n\t}\n\tchain c { # handle 2\n\t\taccept # handle 3\n\t}\n}\ntable ip b { # handle 9\n}\n"
    around = "table ip a { # handle 1"
    assert list(nested_lines(text)) == [
        around,
        f"{around} / set s {{",
        f"{around} / set s {{ / type ipv4_addr",
        f"{around} / chain c {{ # handle 2",
        f"{around} / chain c {{ # handle 2 / accept # handle 3",
        "table ip b { # handle 9",
    ]


def test_an_orphan_of_a_killed_process_is_seen_even_when_it_has_detached_itself():
    code = """
import subprocess
subprocess.Popen(["setsid", "--fork", "sleep", "60"]).wait()
print("ready", flush=True)
signal.pause()
"""
    left = run_and_kill(code, patience_s=0.1)
    assert len(left) == 1, left
    assert left[0].startswith("processes: sleep pid ")


def test_an_orphan_that_ends_in_time_is_not_counted():
    code = """
import subprocess
subprocess.Popen(["cat"], stdin=subprocess.PIPE)
print("ready", flush=True)
signal.pause()
"""
    assert run_and_kill(code) == []


def test_a_process_that_fails_before_it_is_ready_is_an_error():
    with pytest.raises(RuntimeError, match="no such thing"):
        run_and_kill("raise SystemExit('no such thing')")


@needs("cgroup:memory")
@pytest.mark.parametrize("owner", ["self", "parent", "nobody"])
def test_groups_of_a_stranger_that_lives_are_not_ours_to_count(owner: str) -> None:
    # Our parent does not descend from us; a start time that is not its own says that the pid was used again.
    pid = {"self": os.getpid()}.get(owner, os.getppid())
    started = "1" if owner == "nobody" else describe(pid).split()[-1]
    before = Snapshot.take()
    own = cgroup_of_self("memory")
    assert own is not None
    directory = own / f"sandbox-{pid}-{started}-0"
    directory.mkdir()
    try:
        left = [line for line in before.left_behind(Snapshot.take()) if line.startswith("cgroups: ")]
    finally:
        directory.rmdir()
    assert left == ([] if owner == "parent" else [f"cgroups: {directory}"])
