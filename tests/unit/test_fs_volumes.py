"""A store of volumes: what it keeps, who may have it, and what is left when somebody is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import LimitError, SetupError, UnsupportedError, UsageError, VolumeInUseError, VolumeNotFoundError
from sandbox.fs import Directory, FilesystemSpec, Volume, VolumeStore, _volume_content, ops
from sandbox.fs._volume_content import Content
from sandbox.fs._volume_documents import VolumeInfo, decode, encode
from tests.support import needs

pytestmark = pytest.mark.unprivileged
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
LABELS = st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="=\0"), min_size=1).filter(str.strip), TEXTS, max_size=4)


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    return VolumeStore(tmp_path / "a" / "volumes")


@contextlib.contextmanager
def used(store: VolumeStore, name: str | None, **options: object) -> Iterator[Path]:
    with contextlib.closing(store.use(name, **options)) as use:  # type: ignore[arg-type]
        yield Path(f"/proc/self/fd/{use.fd}")


@contextlib.contextmanager
def content(root: Path, path: str = "/data") -> Iterator[Content]:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield Content(fd, path)
    os.close(fd)


def left(store: VolumeStore) -> list[str]:
    return sorted(set(os.listdir(store.path)) - {".lock"})


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_volume_lasts_and_is_open_inside_and_closed_outside(store: VolumeStore) -> None:
    assert store.names() == []
    assert not os.path.exists(store.path), "to look makes nothing"
    umask = os.umask(0o077)
    try:
        os.close(store.open("cache"))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o700
    data = Path(store.get("cache").mountpoint)
    assert stat.S_IMODE(data.stat().st_mode) == 0o1777
    (data / "x").write_text("kept")
    with ops(FilesystemSpec(mounts=[Volume("cache", "/c")]), privileged=True, volumes=store) as opened:
        (fd,) = opened.fds.values()
        assert os.listdir(f"/proc/self/fd/{fd}") == ["x"]
        assert store.is_used("cache")
        opened.release()
        assert store.is_used("cache"), "the container lives"
    assert not store.is_used("cache")
    assert store.names() == ["cache"]
    store.remove("cache")
    assert store.names() == left(store) == []


def test_a_volume_has_labels_and_is_made_once(store: VolumeStore) -> None:
    info = store.create("db", labels={"app": "shop", "empty": ""})
    assert store.create("db") == store.get("db") == info, "what is there is given back"
    assert info.inspect() == {
        "Name": "db", "Driver": "local", "Scope": "local", "Options": {}, "Labels": {"app": "shop", "empty": ""},
        "Mountpoint": f"{store.path}/db/_data", "CreatedAt": info.inspect()["CreatedAt"],
    }  # fmt: skip
    assert (info.has_label("app"), info.has_label("app=shop"), info.has_label("app=x"), info.has_label("x")) == (True, True, False, False)
    with pytest.raises(UsageError, match="other labels"):
        store.create("db", labels={"app": "other"})


def test_one_without_a_name_gets_64_digits(store: VolumeStore) -> None:
    info = store.create()
    assert info.is_anonymous
    assert len(info.name) == 64
    assert store.volumes() == [info]
    assert not store.create("x").is_anonymous


@given(LABELS)
def test_a_document_says_what_it_was_told(labels: dict[str, str]) -> None:
    info = VolumeInfo("x", "/m", 7, labels)
    assert decode(encode(info)) == evolve(info, mountpoint="")


@given(st.binary(max_size=60) | st.sampled_from([b"{}", b"[]", b'{"version": 2}', b'{"version": 1, "name": "../x", "created": 0, "labels": {}, "options": {}}']))
def test_what_is_no_document_is_refused(raw: bytes) -> None:
    try:
        decode(raw)
    except ValueError:
        return
    raise AssertionError("it was read")


@pytest.mark.parametrize("labels", [{"": "x"}, {" ": "x"}, {"a=b": "c"}, {"a": 1}, {"a": "\0"}, {"a": "\ud800"}, {"a": "x" * 70_000}])
def test_labels_that_are_none_are_refused(store: VolumeStore, labels: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        store.create("x", labels=labels)
    assert store.names() == []


def test_options_that_cannot_be_kept_are_refused(store: VolumeStore) -> None:
    with pytest.raises(UsageError, match="not an option"):
        store.create("x", options={"type": "nfs"})
    for size in ("15M", "17T", "1.5X", "-1", ""):
        with pytest.raises(UsageError, match="size"):
            store.create("x", options={"size": size})
    assert store.names() == []


@needs("user")
def test_an_ordinary_user_has_no_volume_with_a_size(store: VolumeStore) -> None:
    with pytest.raises(UnsupportedError, match="root") as caught:
        store.create("x", options={"size": "1G"})
    assert caught.value.feature == "volume-size"
    assert "Tmpfs" in caught.value.remedy
    assert left(store) == []


@pytest.mark.parametrize("lacking", ["program", "device"])
def test_what_a_size_takes_is_named_when_it_is_missing(store: VolumeStore, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    monkeypatch.setattr("sandbox.fs._volume_images.features.privileged", lambda: True)
    monkeypatch.setattr("sandbox.fs._loop._CONTROL", "/none/loop-control")
    monkeypatch.setattr("sandbox.fs._volume_images._PROGRAM", "mkfs.none" if lacking == "program" else "sh")
    with pytest.raises(UnsupportedError, match="e2fsprogs" if lacking == "program" else "modprobe loop"):
        store.create("x", options={"size": "16M"})
    with pytest.raises(UnsupportedError), used(store, None, size="16M"):
        raise AssertionError("there is one")
    assert left(store) == []


def test_a_damaged_document_is_named_and_the_volume_can_be_removed(store: VolumeStore) -> None:
    store.create("x")
    Path(store.path, "x", "volume.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        store.get("x")
    store.remove("x")
    assert store.names() == []


def test_pruning_takes_anonymous_ones_and_with_all_the_others_never_those_in_use(store: VolumeStore) -> None:
    anonymous, used_one = store.create().name, store.create().name
    store.create("named", labels={"keep": "no"})
    store.create("busy")
    Path(store.get(anonymous).mountpoint, "file").write_bytes(os.urandom(100_000))
    with used(store, used_one), used(store, "busy"):
        pruned = store.prune()
        assert pruned.names == (anonymous,)
        assert 100_000 <= pruned.size < 200_000
        assert store.prune(all=True, label="keep=yes").names == ()
        assert store.prune(all=True, label="keep").names == ("named",)
        assert store.prune(all=True).names == ()
    assert store.prune(all=True).names == tuple(sorted((used_one, "busy")))


def test_what_is_not_there_is_not_found(store: VolumeStore) -> None:
    for call in (store.get, store.remove, store.is_used, store.size):
        with pytest.raises(VolumeNotFoundError, match=r"no volume '.*' in"):
            call("x")
    store.create("y")
    for call in (store.get, store.remove, store.is_used, store.size):
        with pytest.raises(VolumeNotFoundError, match="no volume 'x'"):
            call("x")
    store.remove("x", force=True)
    assert store.prune().names == ()


# --- use, and its end -------------------------------------------------------------------------------------------------


def test_a_volume_in_use_is_not_removed(store: VolumeStore) -> None:
    with used(store, "x"), used(store, "x"):
        with pytest.raises(VolumeInUseError, match="in use"):
            store.remove("x")
        with pytest.raises(VolumeInUseError):
            store.remove("x", force=True)
    store.remove("x")


HOLD = """
import os, sys, sandbox.fs
use = sandbox.fs.VolumeStore(sys.argv[1]).use(sys.argv[2] or None)
print("has it", flush=True)
if sys.argv[3]:
    if os.fork():
        os.wait()
    print("forked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(store: VolumeStore, name: str, fork: str = "") -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", HOLD, store.path, name, fork], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"has it\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_user_that_is_killed_leaves_nothing_locked(store: VolumeStore) -> None:
    with holder(store, "x") as process:
        assert store.is_used("x")
        process.kill()
        process.wait()
        assert not store.is_used("x")
    store.remove("x")


def test_a_forked_child_does_not_keep_its_parents_volumes(store: VolumeStore) -> None:
    with holder(store, "x", fork="fork") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"forked\n"
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        assert store.is_used("x")
        process.kill()
        process.wait()
        assert not store.is_used("x")
        os.kill(child, signal.SIGKILL)


def test_an_anonymous_volume_goes_with_its_use_and_that_of_a_dead_one_with_the_next(store: VolumeStore) -> None:
    told: list[str] = []
    with used(store, None, announce=told.append) as data:
        (data / "deep" / "er").mkdir(parents=True)
        assert told == [str(data.resolve().parent)]
        assert store.names() == []
    assert left(store) == []
    with holder(store, "") as process:
        process.kill()
    assert len(left(store)) == 1
    with used(store, None):
        assert len(left(store)) == 1
    assert left(store) == []


def test_what_a_killed_process_left_half_made_is_swept_and_what_lives_is_not(store: VolumeStore) -> None:
    with used(store, None):
        for name in (".new-1", ".gone-2", ".temp-3"):
            Path(store.path, name, "_data").mkdir(parents=True)
        store.create("x")
        assert len(left(store)) == 2
    assert left(store) == ["x"]


def test_many_threads_make_use_and_remove_the_same_names(store: VolumeStore) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(30):
                name = f"v{(number + turn) % 3}"
                with used(store, name) as data:
                    (data / f"{number}-{turn}").touch()
                with contextlib.suppress(VolumeInUseError, VolumeNotFoundError):
                    store.remove(name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    store.prune(all=True)
    assert left(store) == []


# --- sub-paths --------------------------------------------------------------------------------------------------------


def test_a_subpath_is_a_directory_of_the_volume(store: VolumeStore, tmp_path: Path) -> None:
    data = Path(store.create("x").mountpoint)
    (data / "a" / "b").mkdir(parents=True)
    (data / "a" / "b" / "file").touch()
    with used(store, "x", subpath="a/b") as found:
        assert os.listdir(found) == ["file"]
    (data / "link").symlink_to(tmp_path)
    (data / "a" / "up").symlink_to("..")
    for subpath, words in (("a/c", "no such"), ("link", "link"), ("link/a", "link"), ("a/up", "link"), ("a/b/file", "[Dd]irectory")):
        with pytest.raises(UsageError, match=words):
            store.use("x", subpath=subpath)
    assert not store.is_used("x")


@pytest.mark.parametrize("subpath", ["/a", "../x", "a/../../b", "a\0b", "x" * 300])
def test_a_subpath_that_leads_elsewhere_is_refused(subpath: str) -> None:
    with pytest.raises(UsageError):
        Volume("x", "/x", subpath=subpath)


def test_an_anonymous_volume_has_no_subpath() -> None:
    with pytest.raises(UsageError, match="anonymous"):
        Volume(None, "/x", subpath="a")


# --- hostile stores ---------------------------------------------------------------------------------------------------


def test_a_store_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir(mode=0o755)
    with pytest.raises(UsageError, match="open to other users"):
        VolumeStore(tmp_path / "volumes").open("x")


def test_links_in_a_store_are_not_followed(store: VolumeStore, tmp_path: Path) -> None:
    store.create("x")
    (tmp_path / "outside").mkdir()
    Path(store.path, "evil").symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError):
        store.open("evil")
    with pytest.raises(UsageError):
        store.remove("evil")
    data = Path(store.get("x").mountpoint)
    data.rmdir()
    data.symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match="no volume"):
        store.open("x")
    store.remove("x")
    assert (tmp_path / "outside").is_dir()


def test_removing_measuring_and_filling_leave_what_links_lead_to(store: VolumeStore, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"x" * 100_000)
    data = Path(store.create("x").mountpoint)
    (data / "link").symlink_to(tmp_path / "outside")
    (data / "to").symlink_to("/etc/passwd")
    assert store.size("x") < 20_000
    store.remove("x")
    assert os.listdir(tmp_path / "outside") == ["file"]


def test_a_tree_that_is_deeper_than_any_path_is_measured_and_removed(store: VolumeStore) -> None:
    at = os.open(store.create("x").mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(2500):
        os.mkdir("d", dir_fd=at)
        inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    with open(f"{store.get('x').mountpoint}/file", "wb") as file:  # directories take no room on some file systems
        file.write(bytes(100_000))
        file.flush()
        os.fsync(file.fileno())
    assert store.size("x") >= 100_000
    store.remove("x")
    assert left(store) == []


# --- what an image has there ------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    data = tmp_path / "root" / "data"
    (data / "sub").mkdir(parents=True)
    (data / "file").write_text("text")
    (data / "file").chmod(0o640)
    os.link(data / "file", data / "sub" / "again")
    (data / "link").symlink_to("/etc/passwd")
    os.mkfifo(data / "fifo", 0o600)
    os.truncate(os.open(data / "sparse", os.O_CREAT | os.O_WRONLY), 1 << 40)
    with open(data / "sparse", "r+b") as file:
        file.seek(1 << 30)
        file.write(b"island")
    os.utime(data / "file", ns=(1, 1_234_567_890_123_456_789))
    (data / "sub").chmod(0o555)
    data.chmod(0o750)
    return tmp_path / "root"


def test_the_first_use_copies_what_the_root_has(store: VolumeStore, root: Path) -> None:
    with content(root) as there, used(store, "x", content=there) as data:
        assert sorted(os.listdir(data)) == ["fifo", "file", "link", "sparse", "sub"]
        info = (data / "file").stat()
        assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns, info.st_nlink) == (0o640, 1_234_567_890_123_456_789, 2)
        assert os.path.samestat(info, (data / "sub" / "again").stat())
        assert os.readlink(data / "link") == "/etc/passwd"
        assert (data / "sparse").stat().st_size == 1 << 40
        assert (data / "sparse").stat().st_blocks < 100
        assert os.pread(os.open(data / "sparse", os.O_RDONLY), 6, 1 << 30) == b"island"
        assert [stat.S_IMODE(path.stat().st_mode) for path in (data, data / "sub")] == [0o750, 0o555]
        (data / "file").write_text("changed")
    (root / "data" / "later").touch()
    with content(root) as there, used(store, "x", content=there) as data:
        assert (data / "file").read_text() == "changed"
        assert not (data / "later").exists(), "only an empty volume is filled"
    (root / "data" / "sub").chmod(0o755)


def test_a_place_without_write_bits_is_copied_too(store: VolumeStore, root: Path) -> None:
    (root / "data").chmod(0o555)
    with content(root) as there, used(store, "x", content=there) as data:
        assert stat.S_IMODE(data.stat().st_mode) == 0o555
        assert (data / "file").exists()


def test_a_volume_that_somebody_uses_is_not_filled(store: VolumeStore, root: Path) -> None:
    with used(store, "x"), content(root) as there, used(store, "x", content=there) as data:
        assert os.listdir(data) == []
    assert not store.is_used("x")


def test_an_anonymous_volume_is_filled_too(store: VolumeStore, root: Path) -> None:
    with content(root) as there, used(store, None, content=there) as data:
        assert (data / "file").read_text() == "text"
    assert left(store) == []


def test_without_such_a_place_a_volume_stays_empty_and_open_to_all(store: VolumeStore, root: Path) -> None:
    for path in ("/none", "/data/file", "/data/file/x", "/data/link"):
        with content(root, path) as there, used(store, "x", content=there) as data:
            assert os.listdir(data) == []
            assert stat.S_IMODE(data.stat().st_mode) == 0o1777


def test_links_on_the_way_lead_to_places_of_the_root(store: VolumeStore, root: Path, tmp_path: Path) -> None:
    (root / "var").mkdir()
    (root / "var" / "abs").symlink_to("/data")
    (root / "var" / "rel").symlink_to("../../../../data")
    (root / "loop").symlink_to("loop")
    (root / "out").symlink_to(str(tmp_path))
    for path, names in (("/var/abs/sub", ["again"]), ("/var/rel/sub", ["again"]), ("/loop", []), ("/out", []), ("/out/root/data", [])):
        with content(root, path) as there, used(store, path.strip("/").replace("/", "."), content=there) as data:
            assert os.listdir(data) == names


def test_nocopy_and_a_view_of_the_host_copy_nothing(store: VolumeStore, root: Path) -> None:
    for number, spec in enumerate((FilesystemSpec(root=Directory(root), mounts=[Volume("x", "/data", nocopy=True)]), FilesystemSpec(mounts=[Volume("x", "/data")]))):
        with ops(spec, privileged=number == 1, volumes=store) as opened:
            assert os.listdir(f"/proc/self/fd/{opened.fds['fs.mount0']}") == []


def test_layers_are_merged_with_their_whiteouts(store: VolumeStore, tmp_path: Path) -> None:
    layers = [tmp_path / name for name in ("low", "middle", "top")]
    for layer in layers:
        (layer / "data" / "sub").mkdir(parents=True)
        (layer / "data" / layer.name).write_text(layer.name)
        (layer / "data" / "same").write_text(layer.name)
        (layer / "data" / "sub" / layer.name).touch()
    (layers[0] / "data" / "gone").touch()
    (layers[0] / "data" / "wasdir").mkdir()
    (layers[0] / "data" / "wasdir" / "x").touch()
    (layers[2] / "data" / "wasdir").write_text("now a file")
    os.mknod(layers[1] / "data" / "gone", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    os.setxattr(layers[1] / "data" / "sub", "user.overlay.opaque", b"y")
    top = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    with used(store, "x", content=Content(top, "/data", ("low", "middle", "top"))) as data:
        assert sorted(os.listdir(data)) == ["low", "middle", "same", "sub", "top", "wasdir"]
        assert sorted(os.listdir(data / "sub")) == ["middle", "top"]
        assert (data / "same").read_text() == "top"
        assert (data / "wasdir").read_text() == "now a file"
    os.close(top)


@pytest.mark.parametrize("limit", ["max_bytes", "max_entries"])
def test_more_than_is_sensible_is_refused_and_leaves_nothing(store: VolumeStore, root: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    filling = _volume_content.Filling
    monkeypatch.setattr(_volume_content, "Filling", lambda tree, target: filling(tree, target, **{limit: 2}))
    with content(root) as there, pytest.raises(LimitError, match="nocopy") as caught:
        store.use("x", content=there)
    assert caught.value.limit == limit
    assert left(store) == ["x"]
    assert not store.is_used("x")
    assert os.listdir(store.get("x").mountpoint) == []


def test_a_copy_that_fails_leaves_the_volume_as_it_was(store: VolumeStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sandbox.fs._fill._copy_range", full)
    with content(root) as there, pytest.raises(SetupError, match="ENOSPC"):
        store.use("x", content=there)
    assert (left(store), os.listdir(store.get("x").mountpoint)) == (["x"], [])
