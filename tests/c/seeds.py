"""Write seeds for the fuzzers, made by the Python codec: ``seeds.py DIRECTORY``, a folder below it for each fuzzer."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from sandbox import _plan as plan
from sandbox._launch import codec, wire

OPS: tuple[plan.Op, ...] = (
    plan.Unshare(0x20000),
    plan.SetHostname("box"),
    plan.SetDomainname("example"),
    plan.LoopbackUp(),
    plan.MakePrivate(),
    plan.NewFs("t", "tmpfs", (("size", "64M"), ("ro", None))),
    plan.NewFs("o", "overlay", (("upperdir", plan.FdPath("t", "/upper")),), optional=True),
    plan.MakeDir("a/b", "t", 0o700, 1, 2),
    plan.MakeDir("a/c", "t"),
    plan.Symlink("a/l", "/target", "t"),
    plan.Symlink("a/m", "l", "t", 1, 2),
    plan.WriteFile("a/f", b"data", "t", 0o600, 3, 4),
    plan.WriteFile("a/f", b"more", "t", 0o600, 3, 4, offset=4096),
    plan.WriteFile("a/f", b"", "t", offset=1 << 40),
    plan.WriteFrom("a/g", "t", "o", 4096, 65537, 0o755, 3, 4),
    plan.SetTimes("a/f", "t", -1, 999_999_999),
    plan.Remove("a/b", "t"),
    plan.Remove("a", "t", recursive=True),
    plan.Unlink("a/f", "t"),
    plan.Attach("t", "/mnt", "o"),
    plan.Open("f", "etc/passwd", 0, "t", same_as="o"),
    plan.CloneTree("c", "t", "sub"),
    plan.SetAttr("c", set=1, idmap=True),
    plan.MakeTarget("deep/er/still", "t", "f"),
    plan.Mask("proc/kcore", "t", "f", "c"),
    plan.ReadOnlyPath("proc/sys", "t"),
    plan.Sethook("t", plan.ROLE_ROOT),
    plan.BindMount("f", "/run/netns/x"),
    plan.Setns("f", 0x40000000),
    plan.Socket("s", 16, 3, 0),
    plan.Netlink("s", bytes(20), 0, "f", 16),
    plan.LinkProgram("l", "f", 2, 46),
    plan.Unmount("/mnt", optional=True),
    plan.CopyTree("f", "t", "a"),
    plan.NewOverlay("o", (("lowerdir+", plan.FdPath("t", "/a")), ("upperdir", plan.FdPath("t", "/u")), ("userxattr", None)), plan.FdPath("t", "l")),
    plan.NewOverlay("o", (("lowerdir+", plan.FdPath("t", "/a")), ("xino", "on"), ("lowerdir+", "b")), plan.FdPath("t", "l"), 0x1F, True),
    plan.WriteProc("self/timens_offsets", b"monotonic 1 0", "t"),
    plan.Landlock(7, 1, 0, (("t", 3), ("f", 4))),
    plan.DropBounding(0x1FF),
    plan.NoNewPrivs(),
    plan.Seccomp(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000), listen=True),
    plan.Seccomp(struct.pack("<HBBIHBBI", 0x15, 0, 0, 0x7C3A95D1, 6, 0, 0, 0x7FFF0000), listen=True, policy=struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)),
    plan.Chdir("/"),
    plan.Close("f"),
    plan.Pivot("t"),
)
EXECS = (
    codec.ExecRequest((b"true",), (b"/bin/true",)),
    codec.ExecRequest(
        (b"sh", b"-c", b"exit 3"),
        (b"/bin/sh", b"/usr/bin/sh"),
        (b"PATH=/bin", b"LANG=C"),
        cwd=b"/tmp",
        groups=None,
        wall_ns=10**9,
        cpu_ns=10**9,
        cpu_fd=0,
        cpu_format=wire.CpuFormat.CPU_STAT,
        into_cgroup=1,
        joins=(2, 3),
        fds=((wire.OWN_NULL, 0), (5, 1), (5, 2)),
        rlimits=((7, 64, 64), (4, 0, 0)),
        rows=24,
        columns=80,
        flags=wire.EXEC_TTY,
    ),
    codec.ExecRequest(tuple(b"%d" % n for n in range(3000)), (b"/bin/echo",), groups=(1, 2, 3)),
)


MAKE, WRITE, REMOVE, READ, JOIN, GIVE, OWN = wire.GroupStep
GROUP = b"/sys/fs/cgroup/x"
GROUPS = codec.encode_steps(
    [
        (REMOVE, b"/sys/fs/cgroup/y", b""),
        (MAKE, GROUP, b""),
        (WRITE, GROUP + b"/pids.max", b"64"),
        (READ, GROUP, b""),
        (JOIN, GROUP + b"/tasks", b""),
        (OWN, GROUP + b"/cgroup.procs", b"1000"),
        (GIVE, GROUP, b""),
    ]
)


def write(directory: Path, name: str, seeds: list[bytes]) -> None:
    folder = directory / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number}").write_bytes(seed)


def encoded(ops: tuple[plan.Op, ...]) -> bytes:
    return struct.pack("<I", len(ops)) + codec.encode_ops(ops, codec.SlotTable(first=0))


def creation(request: codec.ExecRequest) -> bytes:
    maps = codec.encode_maps((plan.IdMap(0, 100000, 65536),))
    return codec.encode_create(
        codec.CreateRequest(0x30000000, 0, 0, 0, maps, maps, ((1, 0x40000000),), (b"/sys/fs/cgroup/x",), GROUPS, encoded(OPS[:8]), encoded(OPS), codec.encode_exec(request))
    )


def main(directory: Path) -> None:
    write(directory, "ops", [struct.pack("<I", seed) + encoded(ops) for seed in (0, 1) for ops in (OPS, *((op,) for op in OPS))])
    write(directory, "exec", [b"\x10" + codec.encode_exec(request) for request in EXECS])
    write(directory, "create", [b"\x10" + creation(request) for request in EXECS])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
