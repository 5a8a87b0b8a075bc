"""Volumes of a limited size: what programs meet at the limit, who shares them, and what is left of their loop devices."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox import Container, SetupError, UsageError, Volume, VolumeInUseError
from sandbox.cli import main
from sandbox.fs import VolumeStore
from tests.escape.targets import make_root
from tests.support import needs, patience

SIZE = 16 << 20
pytestmark = [needs("root", "userns", "loop", "program:mkfs.ext4"), pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VolumeStore:
    """The default store, in a place of the test's own."""
    monkeypatch.setenv("SANDBOX_VOLUMES", str(tmp_path / "volumes"))
    return VolumeStore()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return make_root(tmp_path / "root")


def sh(c: Container, script: str, **options: object) -> str:
    result = c.exec(["sh", "-c", script], **options)  # type: ignore[arg-type]
    assert result.ok, result
    return result.stdout.decode()


def left(store: VolumeStore) -> list[str]:
    return sorted(set(os.listdir(store.path)) - {".lock"})


def image(store: VolumeStore, name: str = "v") -> os.stat_result:
    return os.stat(store.get(name).mountpoint)


def wait_until(is_so: Callable[[], bool]) -> None:
    """The kernel takes a file system and its device down at its leisure."""
    deadline = time.monotonic() + patience(10)
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_so()


def devices(store: VolumeStore) -> list[str]:
    """The loop devices of this store's volumes."""
    found: list[str] = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith(store.path):
                found.append(path.parts[3])
    return found


FILL = "dd if=/dev/zero of=/v/big bs=64K 2>&1; sync -f /v; stat -c %s /v/big"


def test_a_program_meets_the_limit_and_the_host_does_not(store: VolumeStore) -> None:
    with Container(mounts=[Volume("v", "/v", size=SIZE)], user="1000:1000") as c:
        assert sh(c, "ls -A /v; stat -c %u:%g:%a /v") == "0:0:1777\n", "empty, and open to all"
        said = sh(c, FILL)
        assert "No space left" in said
        assert SIZE // 2 < int(said.split()[-1]) < SIZE
        assert image(store).st_blocks * 512 <= SIZE
        full = store.size("v")
        sh(c, "rm /v/big; echo kept >/v/kept; sync -f /v")
    assert image(store).st_size == SIZE
    wait_until(lambda: store.size("v") < full / 2)  # what is removed is given back to the disk
    with Container(mounts=["v:/v:ro"], user="0:0") as c:
        assert sh(c, "cat /v/kept; stat -c %u /v/kept; echo 2>/dev/null >/v/x || echo closed") == "kept\n1000\nclosed\n"
    wait_until(lambda: devices(store) == [])


def test_several_containers_share_one_file_system(store: VolumeStore) -> None:
    with Container(mounts=[Volume("v", "/v", size=SIZE)]) as a, Container(mounts=[Volume("v", "/v")]) as b:
        sh(a, "mkdir -p /v/a/b; echo hello >/v/a/b/x")
        assert sh(b, "cat /v/a/b/x; echo back >/v/y") == "hello\n"
        assert sh(a, "cat /v/y") == "back\n"
        assert len(devices(store)) == 1
        a.close()
        with pytest.raises(VolumeInUseError):
            store.remove("v")
        assert sh(b, "cat /v/a/b/x; ls -d /v/../sys/block /dev/loop* 2>&1 | grep -c loop") == "hello\n1\n"
    store.remove("v")
    assert left(store) == []


def test_many_first_users_at_once_make_one_device(store: VolumeStore) -> None:
    together = threading.Barrier(6)

    def use(number: int) -> None:
        with Container(mounts=[Volume("v", "/v", size=SIZE)]) as c:
            sh(c, f"echo x >/v/{number}")
            together.wait(60)
            counts.append(len(devices(store)))
            together.wait(60)

    counts: list[int] = []
    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [1] * 6
    with Container(mounts=[Volume("v", "/v")]) as c:
        assert sh(c, "ls /v").split() == ["0", "1", "2", "3", "4", "5"]


@needs("kernel:6.15")
def test_a_subpath_is_all_that_is_seen(store: VolumeStore) -> None:
    with Container(mounts=[Volume("v", "/v", size=SIZE)]) as c:
        sh(c, "mkdir -p /v/a/b; echo x >/v/a/b/x; echo secret >/v/secret; ln -s / /v/link")
    with Container(mounts=[Volume("v", "/b", subpath="a/b")]) as c:
        assert sh(c, "ls /b; ls /b/.. | grep -c secret || true; echo y >/b/y") == "x\n0\n"
    with pytest.raises(UsageError, match="link"), Container(mounts=[Volume("v", "/x", subpath="link/etc")]):
        raise AssertionError("followed")


@needs("overlay")
def test_a_new_one_gets_what_the_root_has_or_nothing(store: VolumeStore, root: Path) -> None:
    (root / "data" / "sub").mkdir(parents=True)
    (root / "data" / "file").write_text("text")
    os.chown(root / "data" / "file", 1000, 1000)
    os.chown(root / "data", 999, 998)
    (root / "data").chmod(0o750)
    with Container(root, mounts=[Volume("v", "/data", size=SIZE)]) as c:
        assert sh(c, "cat /data/file; stat -c %u:%g:%a /data /data/file; rm /data/file") == "text999:998:750\n1000:1000:644\n"
    with Container(root, mounts=[Volume("v", "/data")]) as c:
        assert sh(c, "ls /data") == "sub\n"
    (root / "data" / "large").write_bytes(os.urandom(SIZE))
    with pytest.raises(SetupError, match="more room"), Container(root, mounts=[Volume("w", "/data", size=SIZE)]):
        raise AssertionError("it had room")
    assert left(store) == ["v", "w"]
    with Container(root, mounts=[Volume("w", "/data", nocopy=True)]) as c:
        assert sh(c, "ls -A /data") == ""


def test_an_anonymous_one_goes_with_its_container(store: VolumeStore) -> None:
    with Container(mounts=["type=volume,target=/v,volume-opt=size=16M"]) as c:
        assert "No space left" in sh(c, FILL)
        assert len(left(store)) == 1
    assert left(store) == []


KILLED = """
import sys, sandbox
with sandbox.Container(mounts=[sandbox.Volume("v", "/v", size="16M"), sandbox.Volume(None, "/w", size="16M")]) as c:
    c.exec(["sh", "-c", "echo x >/v/x; sync -f /v; echo y >/v/y"])
    print(c.pid, flush=True)
    sys.stdin.read()
"""


def test_kill_9_of_the_owner_leaves_no_device(store: VolumeStore) -> None:
    """That the devices go is seen by `no_leftovers`: the kernel takes them down after the last process has ended."""
    with subprocess.Popen([sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        init = os.pidfd_open(int(owner.stdout.readline()))
        try:
            assert len(devices(store)) == 2
            owner.send_signal(signal.SIGKILL)
            owner.wait()
            select.select([init], [], [], 10)
        finally:
            os.close(init)
    with Container(mounts=[Volume("v", "/v")]) as c:
        assert sh(c, "cat /v/x /v/y") == "x\ny\n"
    assert left(store) == ["v"]


MAKER = "import sys; from sandbox.fs import VolumeStore; print(flush=True); VolumeStore().create('v', options={'size': '16M'})"


def test_kill_9_while_one_is_made_leaves_it_whole_or_not_there(store: VolumeStore) -> None:
    for number in range(12):
        with subprocess.Popen([sys.executable, "-c", MAKER], stdout=subprocess.PIPE) as maker:
            assert maker.stdout is not None
            maker.stdout.readline()
            with contextlib.suppress(subprocess.TimeoutExpired):
                maker.wait(number * 0.01)
            maker.kill()
        if "v" in store.names():
            with Container(mounts=[Volume("v", "/v", size="16M")]) as c:
                assert sh(c, "echo x >/v/x; ls /v") == "x\n"
            store.remove("v")
    store.create("w")  # sweeps
    assert left(store) == ["w"]


def zeros(place: Path, mode: int, *, owner: int = 0) -> None:
    place.write_bytes(bytes(SIZE))
    place.chmod(mode)
    os.chown(place, owner, owner)


def test_a_file_that_somebody_put_there_is_not_mounted(store: VolumeStore, tmp_path: Path) -> None:
    place = Path(store.create("v", options={"size": "16M"}).mountpoint)
    place.rename(tmp_path / "kept")
    attempts: list[Callable[[], object]] = [
        lambda: place.symlink_to(tmp_path / "kept"),
        lambda: os.link(tmp_path / "kept", place),
        place.mkdir,
        lambda: os.mkfifo(place, 0o600),
        lambda: zeros(place, 0o644),
        lambda: zeros(place, 0o600, owner=1),
    ]
    for attempt in attempts:
        attempt()
        with pytest.raises((UsageError, OSError)) as caught, Container(mounts=[Volume("v", "/v")]):
            raise AssertionError("mounted")
        assert not isinstance(caught.value, SetupError) or "mount the file system" not in str(caught.value)
        place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
    zeros(place, 0o600)
    with pytest.raises(SetupError, match="e2fsck"), Container(mounts=[Volume("v", "/v")]):
        raise AssertionError("zeros were mounted")
    wait_until(lambda: devices(store) == [])


def test_one_that_is_there_keeps_its_size(store: VolumeStore) -> None:
    store.create("v", options={"size": "16M"})
    store.create("plain")
    store.create("v", options={"size": str(SIZE)})
    for name in ("v", "plain"):
        with pytest.raises(UsageError, match="other options"), Container(mounts=[Volume(name, "/v", size="32M")]):
            raise AssertionError("of another size")
    with pytest.raises(SetupError, match="bytes left"):
        store.create("x", options={"size": "15T"})
    assert left(store) == ["plain", "v"]


def test_the_command_line_shows_size_and_use(store: VolumeStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["volume", "create", "-o", "size=16M", "v"]) == 0
    capsys.readouterr()
    assert main(["volume", "inspect", "v"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["Options"], found["Status"]["Size"]) == ({"size": str(SIZE)}, SIZE)
    assert 0 < found["Status"]["Used"] < SIZE / 2
    assert main(["run", "-v", "v:/v", "--", "df", "--output=fstype", "/v"]) == 0
    assert main(["volume", "rm", "v"]) == 0


def test_set_user_id_bits_and_devices_do_nothing_in_it(store: VolumeStore) -> None:
    with Container(mounts=[Volume("v", "/v", size=SIZE)], user="0:0") as c:
        sh(c, "cp /usr/bin/id /v/id; chmod 4755 /v/id; mknod /v/null c 1 3 2>/dev/null || true")
        assert sh(c, "grep ' /v ' /proc/mounts | cut -d' ' -f4").startswith("rw,nosuid,nodev")
        assert sh(c, "/v/id -u", user="1000:1000") == "1000\n"


@pytest.fixture(autouse=True)
def _nothing_is_mounted_on_the_host(store: VolumeStore) -> Iterator[None]:
    yield
    assert store.path not in Path("/proc/self/mountinfo").read_text()
