"""Plans of file systems, without a kernel: the order of things, and what is never done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import _plan as plan
from sandbox._sys import constants as sys
from sandbox.fs import MASKED_PATHS, READ_ONLY_PATHS, Bind, Directory, FilesystemSpec, HostView, Layers, Mount, Scratch, Tmpfs, Volume, name_ops
from sandbox.fs._build import Host, Source, Sources, build
from sandbox.fs._host import HostFiles

FILES = HostFiles(
    trees=("/usr", "/lib64"),
    binds=("/etc/alternatives", "/etc/ssl/certs"),
    links=(("/bin", "usr/bin"), ("/etc/localtime", "/usr/share/zoneinfo/UTC")),
    files=(("/etc/services", b"ssh 22/tcp\n"), ("/etc/ssl/openssl.cnf", b"")),
    throttles=("/sys/devices/system/cpu/cpu0/thermal_throttle",),
)
ROOT = "fs.root"
SMALL = Scratch("8M", inodes=100)

TARGETS = ["/data", "/data/a", "/data/a/b", "/tmp", "/dev/shm", "/dev/x", "/home/u", "/etc", "/usr/local"]


def kinds_of_mounts(target: str) -> list[Mount]:
    return [
        Tmpfs(target),
        Bind("/srv/a", target),
        Bind("/srv/b", target, read_only=True),
        Bind("/srv/c", target, recursive=False),
        Volume("v", target),
    ]


mounts = st.lists(
    st.sampled_from([mount for target in TARGETS for mount in kinds_of_mounts(target)]), max_size=6, unique_by=lambda mount: mount.target
)
specs = st.builds(
    FilesystemSpec,
    root=st.sampled_from([HostView(), Directory("/srv/root"), Layers("/srv/layers", ("a", "b"))]),
    scratch=st.sampled_from([None, SMALL, Scratch(disk="/srv/scratch")]),
    mounts=mounts,
    mqueue=st.booleans(),
    sysfs=st.sampled_from([None, True, False]),
    masked=st.sampled_from([(), MASKED_PATHS]),
    read_only_paths=st.sampled_from([(), READ_ONLY_PATHS]),
)


def make(spec, *, privileged=True, ids=65536, submounts=()):
    def source(slot, path):
        return Source(slot, "" if privileged else path, id_map=privileged)

    host = Host(FILES, submounts, ids, privileged)
    return build(
        spec,
        host,
        Sources(
            tuple(None if isinstance(mount, Tmpfs) else source(f"fs.mount{index}", "/srv/x") for index, mount in enumerate(spec.mounts)),
            source("fs.src.root", "/srv/root") if not isinstance(spec.root, HostView) else None,
            source("fs.src.scratch", "/srv/scratch/1") if spec.scratch is not None and spec.scratch.disk is not None else None,
        ),
    )


def init_ops(static):
    names = name_ops("box", etc=static.etc)
    return (*static.early(names), *static.late(names))


def host_ops(static):
    return (*static.root_host_ops, *static.host_ops)


def given_slots(spec):
    """What the caller hands in."""
    slots = {f"fs.mount{index}" for index, mount in enumerate(spec.mounts) if not isinstance(mount, Tmpfs)}
    return slots | {"fs.src.root", "fs.src.scratch"}


def place(op, spec):
    """The path inside that a `MakeTarget` or an `Attach` is about."""
    above = {f"fs.mount{index}": mount.target for index, mount in enumerate(spec.mounts)} | {"fs.dev": "/dev"}
    return f"{above.get(op.at, '')}/{op.path.lstrip('/')}"


def is_the_callers(target, spec):
    """Whether a `MakeTarget` is for a mount that the caller asked for."""
    return place(target, spec) in {mount.target for mount in spec.mounts}


def kinds(ops, kind):
    return [op for op in ops if isinstance(op, kind)]


def reads(op):
    """The slots that an operation takes from."""
    if isinstance(op, (plan.NewFs, plan.NewOverlay)):
        return {value.slot for _, value in op.options if isinstance(value, plan.FdPath)}
    names = ("src", "slot", "at", "like", "same_as", "file_slot", "dir_slot")
    return {getattr(op, name) for name in names if hasattr(op, name)} - {plan.HOST}


@given(specs, st.booleans())
def test_every_slot_is_filled_before_it_is_used(spec, privileged):
    static = make(spec, privileged=privileged)
    filled = given_slots(spec)
    for op in (*host_ops(static), *init_ops(static)):
        assert reads(op) <= filled, op.describe()
        filled |= {op.out} if hasattr(op, "out") else set()


@given(specs, st.booleans())
def test_a_parent_is_mounted_before_what_lies_inside_it(spec, privileged):
    targets = [place(op, spec) for op in kinds(init_ops(make(spec, privileged=privileged)), plan.Attach)]
    user = [target for target in targets if target in {mount.target for mount in spec.mounts}]
    assert sorted(user) == sorted(mount.target for mount in spec.mounts)
    for index, target in enumerate(user):
        assert not any(target.startswith(f"{later}/") for later in user[index:])


@given(specs, st.booleans())
def test_nothing_is_written_outside_the_root_and_its_own_layers(spec, privileged):
    static = make(spec, privileged=privileged)
    # In a tmpfs or a volume, places for other mounts are made; in a directory of the caller's, nothing.
    ours = {ROOT, "fs.base", "fs.dev", *(f"fs.mount{index}" for index, mount in enumerate(spec.mounts) if not isinstance(mount, Bind))}
    for op in init_ops(static):
        if isinstance(op, (plan.MakeDir, plan.WriteFile, plan.Symlink, plan.Unlink, plan.MakeTarget)):
            assert op.at in ours, op.describe()
    assert not any(isinstance(op, (plan.MakeDir, plan.WriteFile, plan.Symlink, plan.MakeTarget, plan.BindMount)) for op in host_ops(static))


@given(specs, st.booleans())
def test_names_are_written_before_anything_of_the_caller_is_mounted(spec, privileged):
    ops = init_ops(make(spec, privileged=privileged))
    written = max(index for index, op in enumerate(ops) if isinstance(op, plan.WriteFile) and op.path.endswith("etc/resolv.conf"))
    first = [index for index, op in enumerate(ops) if isinstance(op, plan.MakeTarget) and is_the_callers(op, spec)]
    assert not first or written < first[0]


@given(specs, st.booleans())
def test_proc_comes_before_its_masks_and_over_a_directory_covers_every_mount_outside_dev(spec, privileged):
    ops = init_ops(make(spec, privileged=privileged))
    made = next(index for index, op in enumerate(ops) if isinstance(op, plan.Attach) and op.slot == "fs.proc")
    placed = max(index for index, op in enumerate(ops) if isinstance(op, plan.Attach) and op.slot == "fs.proc")
    assert (made < placed) == (not isinstance(spec.root, HostView))
    for index, op in enumerate(ops):
        if isinstance(op, plan.MakeTarget) and op.at == ROOT and not isinstance(spec.root, HostView):
            assert index < placed
        if isinstance(op, (plan.Mask, plan.ReadOnlyPath)):
            assert index > made


@given(specs, st.booleans())
def test_every_path_of_proc_that_is_asked_for_is_masked_in_procfs_itself(spec, privileged):
    ops = init_ops(make(spec, privileged=privileged))
    for path in spec.masked:
        if path.startswith("/proc/"):
            assert plan.Mask(path.removeprefix("/proc/"), "fs.proc", "fs.null", "fs.empty") in ops
    for path in spec.read_only_paths:
        assert plan.ReadOnlyPath(path.removeprefix("/proc/"), "fs.proc") in ops


@given(specs, st.booleans())
def test_a_plan_ends_with_the_pivot_and_the_root_is_closed_right_before(spec, privileged):
    ops = init_ops(make(spec, privileged=privileged))
    assert ops[0] == plan.MakePrivate()
    (pivot,) = kinds(ops, plan.Pivot)
    assert pivot == plan.Pivot(ROOT)
    after_pivot = ops[ops.index(pivot) + 1 :]
    # Only where everything that is still to come is known by its descriptor.
    assert not after_pivot or (privileged and isinstance(spec.root, HostView) and not any(getattr(op, "src", ROOT) == plan.HOST for op in after_pivot))
    upper = {plan.ROLE_UPPER} if isinstance(spec.root, Layers) else set()
    unsealed = {plan.ROLE_UNSEALED} if spec.scratch is None else set()
    assert {op.role for op in kinds(ops, plan.Sethook)} == {plan.ROLE_ROOT, plan.ROLE_PROC, plan.ROLE_PTS, *upper, *unsealed}
    closed = plan.SetAttr(ROOT, set=sys.MOUNT_ATTR_RDONLY, recursive=False)
    assert (closed in ops) == (spec.scratch is None)
    after = ops[ops.index(closed) + 1 :] if closed in ops else ()
    assert all(isinstance(op, (plan.Sethook, plan.Pivot)) for op in after)


@given(specs, st.booleans())
def test_every_tmpfs_is_limited_in_bytes_and_inodes(spec, privileged):
    for op in kinds(init_ops(make(spec, privileged=privileged)), plan.NewFs):
        if op.fstype == "tmpfs":
            options = dict(op.options)
            assert int(options["size"]) >= 4096
            assert int(options["nr_inodes"]) >= 2


@given(specs)
def test_sources_are_private_and_mapped_by_the_launcher_and_never_opened_by_path(spec):
    static = make(spec)
    changed = kinds(host_ops(static), plan.SetAttr)
    assert len(changed) == len(kinds(host_ops(static), plan.CloneTree))
    for op in changed:
        assert op.idmap
        assert op.propagation == sys.MS_PRIVATE
        assert op.set & sys.MOUNT_ATTR_NODEV
        assert op.set & sys.MOUNT_ATTR_NOSUID
    assert not [op for op in kinds(init_ops(static), plan.Open) if op.at == plan.HOST]


@given(specs)
def test_without_privileges_init_opens_sources_and_compares_them(spec):
    static = make(spec, privileged=False)
    assert host_ops(static) == ()
    opened = [op for op in kinds(init_ops(static), plan.Open) if op.at == plan.HOST]
    assert all(op.same_as and op.flags & sys.O_NOFOLLOW for op in opened)
    assert not any(op.idmap for op in kinds(init_ops(static), plan.SetAttr))


@given(specs, st.booleans())
def test_host_paths_are_bound_read_only_and_never_mapped(spec, privileged):
    ops = init_ops(make(spec, privileged=privileged))
    for clone, change in zip(ops, ops[1:], strict=False):
        if isinstance(clone, plan.CloneTree) and clone.src == plan.HOST and not clone.path.startswith("/dev/"):
            assert isinstance(change, plan.SetAttr)
            assert change.slot == clone.out
            assert change.set & sys.MOUNT_ATTR_RDONLY
            assert change.recursive
            assert not change.idmap


@pytest.mark.parametrize("privileged", [True, False])
def test_a_read_only_bind_is_read_only_all_the_way_down(privileged):
    static = make(FilesystemSpec(mounts=[Bind("/srv", "/srv", read_only=True)]), privileged=privileged)
    (change,) = [op for op in kinds((*host_ops(static), *init_ops(static)), plan.SetAttr) if op.slot == "fs.mount0"]
    assert change.set & sys.MOUNT_ATTR_RDONLY
    assert change.recursive


@pytest.mark.parametrize("privileged", [True, False])
@pytest.mark.parametrize("recursive", [True, False])
def test_a_bind_copies_what_lies_below_only_when_asked(privileged, recursive):
    static = make(FilesystemSpec(mounts=[Bind("/srv", "/srv", recursive=recursive)]), privileged=privileged)
    (clone,) = [op for op in kinds((*host_ops(static), *init_ops(static)), plan.CloneTree) if op.out == "fs.mount0"]
    assert clone.recursive is recursive


def test_a_mount_in_another_mount_goes_from_that_ones_own_descriptor():
    mounts = [Bind("/srv", "/srv"), Tmpfs("/srv/a"), Bind("/x", "/srv/a/b"), Volume("v", "/srv/v"), Tmpfs("/srv/v/w")]
    ops = init_ops(make(FilesystemSpec(mounts=mounts)))
    attached = [(op.path, op.at) for op in kinds(ops, plan.Attach) if op.at.startswith("fs.mount") or op.slot.startswith("fs.mount")]
    assert attached == [("/srv", ROOT), ("a", "fs.mount0"), ("b", "fs.mount1"), ("v", "fs.mount0"), ("w", "fs.mount3")]
    opened = [op for op in kinds(ops, plan.Open) if op.at.startswith("fs.mount")]
    assert [(op.path, op.at) for op in opened] == [("a", "fs.mount0"), ("v", "fs.mount0")]
    assert all(op.resolve & sys.RESOLVE_NO_SYMLINKS for op in opened)


def test_on_a_directory_our_own_mounts_go_to_real_directories_only():
    ops = init_ops(make(FilesystemSpec(root=Directory("/srv/root"))))
    for slot, path in (("fs.proc", "proc"), ("fs.dev", "dev"), ("fs.sys", "sys")):
        at = max(index for index, op in enumerate(ops) if isinstance(op, plan.Attach) and op.slot == slot)
        opened = ops[at - 1]
        assert isinstance(opened, plan.Open)
        assert (opened.path, opened.out) == (path, ops[at].at)
        assert opened.resolve & sys.RESOLVE_NO_SYMLINKS
        assert opened.resolve & sys.RESOLVE_IN_ROOT
        assert ops[at].path == ""


def test_a_directory_is_only_ever_a_lower_layer():
    static = make(FilesystemSpec(root=Directory("/srv/root"), scratch=SMALL))
    (overlay,) = [op for op in kinds(init_ops(static), plan.NewFs) if op.fstype == "overlay"]
    assert dict(overlay.options) == {
        "lowerdir": plan.FdPath("fs.lower"),
        "upperdir": plan.FdPath("fs.base", "/upper"),
        "workdir": plan.FdPath("fs.base", "/work"),
        "userxattr": None,
    }
    assert [op.set & sys.MOUNT_ATTR_RDONLY for op in kinds(host_ops(static), plan.SetAttr)] == [sys.MOUNT_ATTR_RDONLY]


def test_a_scratch_layer_on_disk_is_not_synced():
    static = make(FilesystemSpec(root=Directory("/srv/root"), scratch=Scratch(disk="/srv/scratch")))
    (overlay,) = [op for op in kinds(init_ops(static), plan.NewFs) if op.fstype == "overlay"]
    assert ("volatile", None) in overlay.options


def test_one_scratch_file_system_carries_all_layers_and_its_limits():
    static = make(FilesystemSpec(root=HostView(overlay=True), scratch=SMALL), submounts=(("/usr", ("/usr/local",)), ("/lib64", ())))
    (scratch,) = [op for op in kinds(init_ops(static), plan.NewFs) if op.out == "fs.base"]
    assert dict(scratch.options)["size"] == str(8 << 20)
    assert dict(scratch.options)["nr_inodes"] == "100"
    uppers = [dict(op.options)["upperdir"] for op in kinds(init_ops(static), plan.NewFs) if op.fstype == "overlay"]
    assert uppers == [plan.FdPath("fs.base", "/upper0"), plan.FdPath("fs.base", "/upper1")]
    attached = [op.path for op in kinds(init_ops(static), plan.Attach)]
    assert attached.index("/usr") < attached.index("/usr/local")


@pytest.mark.parametrize(("ids", "expected"), [(65536, True), (6, True), (5, False), (1, False)])
def test_the_group_tty_is_used_where_it_exists(ids, expected):
    (pts,) = [op for op in kinds(init_ops(make(FilesystemSpec(), ids=ids)), plan.NewFs) if op.fstype == "devpts"]
    assert (("gid", "5") in pts.options) is expected


@pytest.mark.parametrize(("ids", "expected"), [(65536, True), (1001, True), (1000, False), (1, False)])
def test_the_sandbox_user_has_an_account_where_its_ids_exist(ids, expected):
    ops = init_ops(make(FilesystemSpec(), ids=ids))
    (passwd,) = [op.data for op in kinds(ops, plan.WriteFile) if op.path == "etc/passwd"]
    assert (b"sandbox:x:1000:1000:" in passwd) is expected
    assert [op.path for op in kinds(ops, plan.MakeDir) if op.uid == 1000] == (["home/sandbox"] if expected else [])


def test_parents_of_the_files_of_etc_are_made_first_and_once():
    ops = init_ops(make(FilesystemSpec()))
    made = [op.path for op in kinds(ops, plan.MakeDir) if op.path == "/etc/ssl"]
    assert made == ["/etc/ssl"]
    written = next(index for index, op in enumerate(ops) if isinstance(op, plan.WriteFile) and op.path == "/etc/ssl/openssl.cnf")
    assert ops.index(plan.MakeDir("/etc/ssl", ROOT)) < written


def test_shm_of_the_caller_replaces_ours():
    ops = init_ops(make(FilesystemSpec(mounts=[Tmpfs("/dev/shm", size="1M")], scratch=SMALL)))
    assert [dict(op.options)["size"] for op in kinds(ops, plan.NewFs) if op.fstype == "tmpfs"] == [str(8 << 20), str(1 << 20)]
    assert [op.at for op in kinds(ops, plan.Attach) if op.path == "shm"] == ["fs.dev"]


def test_a_kernel_without_queues_gets_an_empty_directory():
    static = build(FilesystemSpec(), Host(HostFiles((), (), (), (), (), has_mqueue=False)), Sources())
    assert not [op for op in kinds(init_ops(static), plan.NewFs) if op.fstype == "mqueue"]
    assert plan.MakeDir("mqueue", "fs.dev") in init_ops(static)


@pytest.mark.parametrize(("sysfs", "optional"), [(None, True), (True, False)])
def test_sysfs_is_optional_only_when_nobody_asked_for_it(sysfs, optional):
    ops = init_ops(make(FilesystemSpec(root=Directory("/srv/root"), sysfs=sysfs)))
    assert [op.optional for op in kinds(ops, plan.NewFs) if op.fstype == "sysfs"] == [optional]
    assert [op.optional for op in kinds(ops, plan.Attach) if op.slot == "fs.sys"] == [False, False]


@given(specs, st.booleans())
def test_what_may_be_skipped_leaves_a_slot_that_is_filled_already(spec, privileged):
    filled = given_slots(spec)
    for op in init_ops(make(spec, privileged=privileged)):
        if getattr(op, "optional", False):
            assert op.out in filled
        filled |= {op.out} if hasattr(op, "out") else set()


def test_the_throttles_of_each_cpu_are_masked_with_sysfs_only():
    path = FILES.throttles[0].removeprefix("/sys/")
    assert [op.path for op in kinds(init_ops(make(FilesystemSpec(sysfs=True))), plan.Mask)].count(path) == 1
    assert path not in [op.path for op in kinds(init_ops(make(FilesystemSpec())), plan.Mask)]


@pytest.mark.parametrize(("suid", "expected"), [(False, sys.MOUNT_ATTR_NOSUID), (True, 0)])
def test_set_user_id_bits_of_the_root_work_only_when_asked(suid, expected):
    ops = init_ops(make(FilesystemSpec(root=Directory("/srv/root"), suid=suid)))
    (overlay,) = [op for op in kinds(ops, plan.NewFs) if op.fstype == "overlay"]
    assert overlay.attrs & sys.MOUNT_ATTR_NOSUID == expected
    assert overlay.attrs & sys.MOUNT_ATTR_NODEV


def test_equal_specs_share_one_plan():
    def spec():
        return FilesystemSpec(mounts=[Tmpfs("/tmp", size="1M")], scratch=Scratch("2M"))

    assert make(spec()) is make(spec())


@given(specs, st.booleans())
def test_fd_paths_are_used_only_while_the_proc_of_the_host_is_in_sight(spec, privileged):
    ops = init_ops(make(spec, privileged=privileged))
    pivot = next(index for index, op in enumerate(ops) if isinstance(op, plan.Pivot))
    for index, op in enumerate(ops):
        if isinstance(op, plan.NewFs) and any(isinstance(value, plan.FdPath) for _, value in op.options):
            assert index < pivot


@pytest.mark.parametrize("size", [1, 80, 4096, 5000])
def test_what_is_written_is_described_by_its_size_alone(size: int) -> None:
    data = (b"hunter2" * 1000)[:size]
    said = plan.WriteFile("etc/token", data, "fs.root", uid=5, gid=6, offset=7).describe()
    assert "hunter" not in said
    assert said == f"WriteFile(path='etc/token', {size} bytes, at='fs.root', mode=0o644, uid=5, gid=6, offset=7)"
    assert plan.WriteFile("f", data, "s").describe() == f"WriteFile(path='f', {size} bytes, at='s', mode=0o644)"
