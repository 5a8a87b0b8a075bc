"""Volumes in containers: who owns what is in them, what a new one gets, and what is left of them."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import sandbox
from sandbox import Container, Tmpfs, UsageError, Volume, VolumeInUseError
from sandbox.fs import Layers, VolumeStore
from tests import rootfs
from tests.escape.targets import make_root
from tests.support import needs, repeats

pytestmark = [needs("userns"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VolumeStore:
    """The default store, in a place of the test's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
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


@needs("root")
def test_owners_are_the_same_inside_in_the_store_and_in_the_next_container(store: VolumeStore) -> None:
    with Container(mounts=[Volume("v", "/v")], user="1000:1000") as c:
        sh(c, "echo mine >/v/mine")
    with Container(mounts=[Volume("v", "/v")], user="0:0") as c:
        sh(c, "echo roots >/v/roots; chmod 600 /v/roots")
        assert sh(c, "stat -c %u:%g /v/mine /v/roots") == "1000:1000\n0:0\n"
    data = Path(store.get("v").mountpoint)
    assert [(data / name).stat().st_uid for name in ("mine", "roots")] == [1000, 0]
    with Container(mounts=[Volume("v", "/v")], user="1000:1000") as c:
        assert sh(c, "stat -c %u:%g /v/mine; cat /v/mine; cat /v/roots || echo no") == "1000:1000\nmine\nno\n"


@needs("user")
def test_an_ordinary_users_files_are_its_own_on_both_sides(store: VolumeStore) -> None:
    for user in ("1000:1000", "0:0"):
        with Container(mounts=[Volume("v", "/v")], user=user) as c:
            sh(c, f"id -u >/v/{user[0]}; stat -c %u /v/{user[0]} | cmp - /v/{user[0]}")
    data = Path(store.get("v").mountpoint)
    assert {path.stat().st_uid for path in data.iterdir()} == {os.getuid()}


def test_several_containers_share_a_volume_at_once_and_keep_it(store: VolumeStore) -> None:
    with Container(mounts=[Volume("v", "/v")]) as a, Container(mounts=[Volume("v", "/v", read_only=True)]) as b:
        sh(a, "echo hello >/v/x")
        assert sh(b, "cat /v/x; echo y 2>/dev/null >/v/x || echo closed") == "hello\nclosed\n"
        a.close()
        with pytest.raises(VolumeInUseError):
            store.remove("v")
        assert sh(b, "cat /v/x") == "hello\n"
    store.remove("v")
    assert left(store) == []


def test_a_container_that_was_not_made_uses_nothing(store: VolumeStore) -> None:
    with pytest.raises(UsageError), Container(mounts=[Volume("v", "/v"), Volume("w", "/w", subpath="none"), Volume(None, "/x")]):
        raise AssertionError("it was")
    assert not store.is_used("v")
    assert left(store) == ["v", "w"]


def test_an_anonymous_volume_goes_with_its_container(store: VolumeStore) -> None:
    with Container(mounts=[Volume(None, "/a"), Volume(None, "/b")], read_only=True) as c:
        assert sh(c, "mkdir -p /a/d/e; echo x >/a/d/e/f; chmod 0 /a/d/e /a/d; ls /b") == ""
        assert len(left(store)) == 2
        assert store.names() == []
    assert left(store) == []


KILLED = """
import sys, sandbox
c = sandbox.Container(mounts=[sandbox.Volume("v", "/v"), sandbox.Volume(None, "/anonymous")])
with c:
    c.exec(["sh", "-c", "echo x >/v/x; echo y >/anonymous/y"])
    print(c.pid, flush=True)
    sys.stdin.read()
"""


def test_kill_9_of_the_owner_leaves_no_lock_and_no_anonymous_volume(store: VolumeStore) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        init = os.pidfd_open(int(owner.stdout.readline()))
        try:
            assert store.is_used("v")
            owner.send_signal(signal.SIGKILL)
            owner.wait()
            assert not store.is_used("v")
            import select

            select.select([init], [], [], 10)
        finally:
            os.close(init)
    store.create("w")  # in any case, the next one sweeps
    assert left(store) == ["v", "w"]
    store.remove("v")


def test_a_subpath_is_all_that_is_seen(store: VolumeStore) -> None:
    with Container(mounts=[Volume("v", "/v")]) as c:
        sh(c, "mkdir -p /v/a/b; echo x >/v/a/b/x; echo secret >/v/secret")
    with Container(mounts=[Volume("v", "/b", subpath="a/b"), Volume("v", "/again", subpath="a", read_only=True)]) as c:
        assert sh(c, "cd /b; ls /b /b/..; cat /again/b/x; echo 2>/dev/null >/again/y || echo closed").split() >= ["/b:", "x"]
        assert "secret" not in sh(c, "ls -R /b /again")
        assert "closed" in sh(c, "(echo >/again/y) 2>/dev/null || echo closed")


def test_a_planted_link_is_no_subpath_however_it_is_exchanged(store: VolumeStore, tmp_path: Path) -> None:
    """CVE-2021-30465, CVE-2023-2728 and their like: the way to a sub-path becomes a link while a container starts."""
    (tmp_path / "canary" / "b").mkdir(parents=True)
    (tmp_path / "canary" / "b" / "secret").write_text("secret")
    data = Path(store.create("v").mountpoint)
    (data / "a" / "b").mkdir(parents=True)
    (data / "link").symlink_to(tmp_path / "canary")
    with pytest.raises(UsageError, match="link"), Container(mounts=[Volume("v", "/x", subpath="link/b")]):
        raise AssertionError("followed")
    done = threading.Event()

    def exchange() -> None:
        while not done.is_set():
            os.rename(data / "a", data / "kept")
            os.rename(data / "link", data / "a")
            os.rename(data / "a", data / "link")
            os.rename(data / "kept", data / "a")

    attacker = threading.Thread(target=exchange)
    attacker.start()
    started = 0
    try:
        for _ in range(repeats(60)):
            with contextlib.suppress(sandbox.SetupError, UsageError), Container(mounts=[Volume("v", "/x", subpath="a/b")]) as c:
                assert sh(c, "ls /x") == ""
                started += 1
    finally:
        done.set()
        attacker.join()
    assert (tmp_path / "canary" / "b" / "secret").read_text() == "secret"


@pytest.fixture
def filled(root: Path) -> Path:
    """A root with something where volumes will be mounted."""
    (root / "data" / "sub").mkdir(parents=True)
    (root / "data" / "file").write_text("text")
    (root / "data" / "link").symlink_to("/etc/passwd")
    (root / "data").chmod(0o750)
    return root


@needs("overlay")
def test_a_new_volume_gets_what_the_root_has_once(store: VolumeStore, filled: Path) -> None:
    with Container(filled, mounts=[Volume("v", "/data"), Volume("n", "/bin/none"), Volume(None, "/etc2"), Volume("e", "/data2", nocopy=True)]) as c:
        assert sh(c, "cat /data/file; readlink /data/link; stat -c %a /data; rm /data/file") == "text\n/etc/passwd\n750\n".replace("text\n", "text")
    with Container(filled, mounts=[Volume("v", "/data", read_only=True)]) as c:
        assert sh(c, "ls /data").split() == ["link", "sub"]
    assert (filled / "data" / "file").read_text() == "text"
    assert (store.get("v").labels, os.listdir(store.get("n").mountpoint)) == ({}, [])


@needs("overlay")
def test_nocopy_and_a_read_only_first_use(store: VolumeStore, filled: Path) -> None:
    with Container(filled, mounts=[Volume("n", "/data", nocopy=True), Volume("r", "/bin", read_only=True)]) as c:
        assert c.exec(["/bin/busybox", "ls", "/data"]).stdout == b""
        assert b"busybox" in c.exec(["/bin/busybox", "ls", "/bin"]).stdout


@needs("root", "overlay")
def test_owners_of_a_root_are_those_of_its_copy(store: VolumeStore, filled: Path) -> None:
    for path, owner in (("data", (999, 998)), ("data/file", (1000, 1000)), ("data/link", (7, 8))):
        os.chown(filled / path, *owner, follow_symlinks=False)
    with Container(filled, mounts=[Volume("v", "/data")], user="999:998") as c:
        assert sh(c, "stat -c %u:%g /data /data/file /data/link; touch /data/new") == "999:998\n1000:1000\n7:8\n"
    assert Path(store.get("v").mountpoint, "new").stat().st_uid == 999


@needs("overlay")
def test_many_first_users_at_once_all_see_the_whole(store: VolumeStore, filled: Path) -> None:
    for number in range(300):
        (filled / "data" / "sub" / f"{number}").write_text("x" * 100)
    seen: list[str] = []

    def use() -> None:
        with Container(filled, mounts=[Volume("v", "/data")]) as c:
            seen.append(sh(c, "ls /data/sub | wc -l").strip())

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["300"] * 6


@needs("overlay")
def test_links_of_the_root_do_not_lead_the_copy_outside(store: VolumeStore, filled: Path, tmp_path: Path) -> None:
    """`VOLUME` on a path that is a link: its content must not be the host's."""
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary" / "secret").write_text("secret")
    (filled / "srv").symlink_to(tmp_path / "canary")
    (filled / "up").symlink_to("../../../../../../" + str(tmp_path / "canary"))
    for target in ("/srv/x", "/up/x"):
        with contextlib.suppress(sandbox.SetupError), Container(filled, mounts=[Volume("v", target)]) as c:
            assert "secret" not in sh(c, f"ls -R {target}")
    (filled / "srv").unlink()
    (filled / "srv").symlink_to("/data")
    with Container(filled, mounts=[Volume("w", "/srv/sub"), Tmpfs("/other")]) as c:
        assert sh(c, "ls /srv").split() == ["file", "link", "sub"]
    assert stat.S_ISDIR(os.stat(store.get("v").mountpoint).st_mode)
    assert sorted(os.listdir(tmp_path / "canary")) == ["secret"]


@needs("overlay", "program:busybox")
def test_layers_of_a_root_are_merged_into_a_new_volume(store: VolumeStore, tmp_path: Path) -> None:
    rootfs.busybox(tmp_path / "layers" / "low", {"data/old": "old", "data/gone": "x", "data/sub/a": "a", "real/x/y": "y"})
    rootfs.write_layer(tmp_path / "layers" / "high", {"data/new": "new", "data/gone": rootfs.GONE, "data/sub/b": "b", "var": "-> /real"})
    for name in ("low", "high"):
        (tmp_path / "layers" / name).chmod(0o755)
    with Container(Layers(tmp_path / "layers", ("low", "high")), mounts=[Volume("v", "/data"), Volume("w", "/var/x")]) as c:
        assert sh(c, "cd /data; ls . sub; cat old new; ls /var/x").split() == [".:", "new", "old", "sub", "sub:", "a", "b", "oldnewy"]
