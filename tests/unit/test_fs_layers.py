"""Layers: what they are as values, what plan they give, and what is seen in them from outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import _plan as plan
from sandbox.errors import UsageError
from sandbox.fs import Directory, FilesystemSpec, Layers, Scratch
from sandbox.fs._build import Host, Source, Sources, build
from sandbox.fs._layers import highest_with, read_layered, remembered
from sandbox.fs._names import name_ops
from sandbox.fs._specs import MAX_LAYERS
from tests.unit.test_fs_build import FILES


def ops_of(spec: FilesystemSpec, *, privileged: bool = True) -> list[plan.Op]:
    root = Source("fs.src.root", "" if privileged else "/srv/layers", id_map=privileged)
    static = build(spec, Host(FILES, privileged=privileged), Sources(tuple(None for _ in spec.mounts), root))
    names = name_ops("box", etc=static.etc)
    return [*static.root_host_ops, *static.early(names), *static.host_ops, *static.late(names)]


def overlay_of(ops: list[plan.Op]) -> plan.NewOverlay:
    (found,) = [op for op in ops if isinstance(op, plan.NewOverlay)]
    return found


# ---- Values ----


@given(st.lists(st.sampled_from("abcdef"), max_size=12))
def test_a_layer_that_comes_twice_counts_where_it_is_highest(names):
    kept = Layers("/srv", tuple(names)).names
    assert sorted(kept) == sorted(set(names))
    last = {name: max(index for index, each in enumerate(names) if each == name) for name in kept}
    assert list(kept) == sorted(kept, key=lambda name: last[name])


@pytest.mark.parametrize("name", ["", ".", "..", "a//b", "/a", "a/", "a/..", "a/./b", "../x", "a:b", "a,b", "-a", "a\nb", "x" * 201, 7, b"a"])
def test_what_is_no_name_of_a_layer_is_refused(name):
    with pytest.raises(UsageError, match="not the name of a layer"):
        Layers("/srv", (name,))


def test_more_layers_than_overlay_takes_are_refused_before_anything_is_touched():
    assert len(Layers("/srv", [f"{n:064x}" for n in range(MAX_LAYERS)]).names) == MAX_LAYERS
    with pytest.raises(UsageError, match=f"{MAX_LAYERS} at most"):
        Layers("/srv", [f"{n:064x}" for n in range(MAX_LAYERS + 1)])
    with pytest.raises(UsageError, match="one string"):
        Layers("/srv", "abc")


def test_places_and_a_workdir_are_of_layers_only():
    with pytest.raises(UsageError, match="root of Layers"):
        FilesystemSpec(root=Directory("/srv"), workdir="/app")
    with pytest.raises(UsageError, match="root of Layers"):
        FilesystemSpec(root=Directory("/srv"), writable_places=("/data",))
    assert FilesystemSpec(root=Layers("/srv", ()), writable_places=("/b/c", "/a", "/b", "/a")).writable_places == ("/a", "/b", "/b/c")


@pytest.mark.parametrize("path", ["/", "/proc", "/proc/x", "/sys", "/dev", "/dev/pts", "relative", "/a/../b"])
def test_a_writable_place_is_never_where_the_kernels_files_are(path):
    with pytest.raises(UsageError):
        FilesystemSpec(root=Layers("/srv", ("a",)), writable_places=(path,))


# ---- Plans ----


@pytest.mark.parametrize("privileged", [True, False])
def test_all_layers_take_one_mount_and_one_slot_the_highest_comes_first_and_ours_above_it(privileged):
    names = tuple(f"layer{n}" for n in range(120))
    ops = ops_of(FilesystemSpec(root=Layers("/srv/layers", names), scratch=Scratch("8M")), privileged=privileged)
    below = [value for key, value in overlay_of(ops).options if key == "lowerdir+" and isinstance(value, plan.FdPath)]
    assert [value.suffix for value in below] == ["/ours", *(f"/{name}" for name in reversed(names))]
    assert {value.slot for value in below[1:]} == {"fs.lower"}
    assert len([op for op in ops if isinstance(op, plan.CloneTree) and op.out == "fs.lower"]) == privileged
    assert len(overlay_of(ops).describe()) < 400


def test_what_is_ours_lies_below_the_upper_layer_which_is_empty_at_first():
    ops = ops_of(FilesystemSpec(root=Layers("/srv/layers", ("a",))))
    written = [op.path for op in ops if isinstance(op, (plan.MakeDir, plan.WriteFile)) and op.at == "fs.base"]
    assert not [path for path in written if path.startswith("upper/")]
    assert {"ours/etc", "ours/etc/hostname", "ours/proc", "ours/dev", "upper", "work"} <= set(written)


def test_places_are_made_before_anything_is_mounted_in_the_root_and_the_workdir_after_all_is():
    ops = ops_of(FilesystemSpec(root=Layers("/srv/layers", ("a",)), writable_places=("/data",), workdir="/app/x"))
    attached = [(op.path, op.at) for op in ops if isinstance(op, plan.Attach)]
    assert attached.index(("/data", "fs.root")) < attached.index(("", "fs.point"))  # the first of /proc, /dev and /sys
    last = max(index for index, op in enumerate(ops) if isinstance(op, plan.Attach))
    assert ops.index(plan.MakeTarget("/app/x/.", "fs.root", "fs.root")) > last


@pytest.mark.parametrize("path", ["/", "/proc/self/x", "/dev/x", "/sys/x"])
def test_no_workdir_is_made_where_the_kernels_files_are(path):
    ops = ops_of(FilesystemSpec(root=Layers("/srv/layers", ("a",)), workdir=path))
    assert not [op for op in ops if isinstance(op, plan.MakeTarget) and op.path.endswith("/.")]


# ---- From outside ----


@pytest.mark.unprivileged
def test_a_file_is_read_as_programs_would_see_it(tmp_path: Path):
    for name in "abcdef":
        (tmp_path / name / "etc").mkdir(parents=True)
    (tmp_path / "a/etc/passwd").write_text("lowest")
    assert read_layered(tmp_path_fd(tmp_path), "abcdef", "/etc/passwd", 100) == b"lowest"
    (tmp_path / "c/etc/passwd").write_text("above")
    assert read_layered(tmp_path_fd(tmp_path), "abcdef", "/etc/passwd", 100) == b"above"
    assert read_layered(tmp_path_fd(tmp_path), "abcdef", "/etc/passwd", 3) == b"abo"
    assert read_layered(tmp_path_fd(tmp_path), "ab", "/etc/passwd", 100) == b"lowest"
    os.mknod(tmp_path / "d/etc/passwd", 0o20000, 0)  # a whiteout
    assert read_layered(tmp_path_fd(tmp_path), "abcdef", "/etc/passwd", 100) == b""
    os.setxattr(tmp_path / "b/etc", "user.overlay.opaque", b"y")
    assert read_layered(tmp_path_fd(tmp_path), "ab", "/etc/passwd", 100) == b""


def tmp_path_fd(path: Path, keep: list[int] = []) -> int:  # noqa: B006 - closed by the next call
    while keep:
        os.close(keep.pop())
    keep.append(os.open(path, os.O_PATH | os.O_DIRECTORY))
    return keep[0]


@pytest.mark.unprivileged
@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "linked parent", "file as parent"])
def test_whatever_else_is_there_is_no_file_and_nothing_is_followed(tmp_path: Path, kind: str):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/passwd").write_text("secret")
    etc = tmp_path / "a/etc"
    (tmp_path / "a").mkdir()
    if kind == "linked parent":
        etc.symlink_to(tmp_path / "secret")
    elif kind == "file as parent":
        etc.write_text("x")
    else:
        etc.mkdir()
    if kind == "link":
        (etc / "passwd").symlink_to(tmp_path / "secret/passwd")
    elif kind == "fifo":
        os.mkfifo(etc / "passwd")
    elif kind == "directory":
        (etc / "passwd").mkdir()
    assert read_layered(tmp_path_fd(tmp_path), "a", "/etc/passwd", 100) == b""


@pytest.mark.unprivileged
def test_descriptors_are_closed_whatever_is_found(tmp_path: Path):
    for name in "abc":
        (tmp_path / name / "etc").mkdir(parents=True)
    (tmp_path / "a/etc/passwd").write_text("x")
    root = tmp_path_fd(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for path in ("/etc/passwd", "/etc/nothing", "/no/thing", "/x", "/etc/passwd/x"):
        read_layered(root, "abc", path, 10)
        highest_with(root, "abc", "etc")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.unprivileged
def test_what_was_found_is_remembered_until_a_layer_comes_or_goes(tmp_path: Path):
    (tmp_path / "a").mkdir()
    root, calls = tmp_path_fd(tmp_path), []

    def look(fd: int, name: str) -> int:
        calls.append(name)
        return len(calls)

    assert [remembered(look, root, "a"), remembered(look, root, "a"), remembered(look, root, "b")] == [1, 1, 2]
    os.utime(tmp_path, ns=(1, 1))
    (tmp_path / "b").mkdir()
    assert remembered(look, root, "a") == 3
