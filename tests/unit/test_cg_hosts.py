"""The parsers of /proc/self/cgroup and /proc/self/mountinfo, on samples of every kind of host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.cg.hosts import CONTROLLERS, ROOM, CgroupMount, Hierarchy, Host, Membership, Mode, assemble, parse_memberships, parse_mounts
from sandbox.cg.tree import parse_owner
from sandbox.errors import UnsupportedError

V1_CGROUP = """\
12:pids:/user.slice/user-0.slice/session-1.scope
11:cpu,cpuacct:/user.slice
10:memory:/user.slice/user-0.slice
9:blkio:/user.slice
8:cpuset:/
7:freezer:/
6:devices:/user.slice
5:name=systemd:/user.slice/user-0.slice/session-1.scope
"""
V1_MOUNTS = """\
22 27 0:21 / /proc rw,nosuid - proc proc rw
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/systemd rw,nosuid shared:9 - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/pids rw,nosuid shared:11 - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:12 - cgroup cgroup rw,cpu,cpuacct
35 30 0:31 / /sys/fs/cgroup/memory rw,nosuid shared:13 - cgroup cgroup rw,memory
36 30 0:32 / /sys/fs/cgroup/blkio rw,nosuid shared:14 - cgroup cgroup rw,blkio
37 30 0:33 / /sys/fs/cgroup/cpuset rw,nosuid shared:15 - cgroup cgroup rw,cpuset
38 30 0:34 / /sys/fs/cgroup/freezer rw,nosuid shared:16 - cgroup cgroup rw,freezer
39 30 0:35 / /sys/fs/cgroup/devices rw,nosuid shared:17 - cgroup cgroup rw,devices
"""
V2_CGROUP = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-u7.scope\n"
V2_MOUNTS = "29 22 0:25 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
HYBRID_CGROUP = V1_CGROUP.replace("9:blkio:/user.slice\n", "") + "0::/user.slice/user-0.slice/session-1.scope\n"
HYBRID_MOUNTS = V1_MOUNTS + "32 30 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate\n"
# docker on v1 without a cgroup namespace: the mounts show our own cgroups only, and read-only
DOCKER_V1_CGROUP = "9:memory:/docker/0123\n8:pids:/docker/0123\n3:cpu,cpuacct:/docker/0123/inner\n"
DOCKER_V1_MOUNTS = """\
700 690 0:31 /docker/0123 /sys/fs/cgroup/memory ro,nosuid master:13 - cgroup cgroup rw,memory
701 690 0:29 /docker/0123 /sys/fs/cgroup/pids ro,nosuid master:11 - cgroup cgroup rw,pids
702 690 0:30 /docker/0123 /sys/fs/cgroup/cpu,cpuacct ro,nosuid master:12 - cgroup cgroup rw,cpu,cpuacct
"""


def host_of(cgroup: str, mounts: str, delegated: str = "") -> Host:
    return assemble(parse_memberships(cgroup), parse_mounts(mounts), lambda _: delegated.split())


def start(host: Host, controller: str) -> tuple[int, str] | None:
    home = host.find(controller)
    return None if home is None else (home.version, home.start)


def test_v1_finds_each_controller_in_its_own_hierarchy():
    host = host_of(V1_CGROUP, V1_MOUNTS)
    assert host.mode is Mode.V1
    assert start(host, "memory") == (1, "/sys/fs/cgroup/memory/user.slice/user-0.slice")
    assert start(host, "pids") == (1, "/sys/fs/cgroup/pids/user.slice/user-0.slice/session-1.scope")
    assert start(host, "io") == (1, "/sys/fs/cgroup/blkio/user.slice")
    assert start(host, "cpuset") == (1, "/sys/fs/cgroup/cpuset")
    assert start(host, "pressure") is None
    assert host.unified is None


def test_v1_co_mounted_controllers_share_one_hierarchy():
    host = host_of(V1_CGROUP, V1_MOUNTS)
    assert host.find("cpu") is host.find("cpuacct")
    assert host.require("cpu").start == "/sys/fs/cgroup/cpu,cpuacct/user.slice"


def test_v2_has_what_was_delegated_and_what_is_built_in():
    host = host_of(V2_CGROUP, V2_MOUNTS, "memory pids")
    begin = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/run-u7.scope"
    assert host.mode is Mode.V2
    assert {name: start(host, name) for name in CONTROLLERS if start(host, name)} == dict.fromkeys(
        ("memory", "pids", "cpuacct", "freezer", "pressure"), (2, begin)
    )
    with pytest.raises(UnsupportedError, match="Delegate=yes") as caught:
        host.require("cpu")
    assert caught.value.feature == "cgroup:cpu"


def test_v2_says_why_it_has_no_device_rules():
    with pytest.raises(UnsupportedError, match="eBPF"):
        host_of(V2_CGROUP, V2_MOUNTS, "memory").require("devices")


def test_hybrid_uses_v2_for_what_is_found_there_only():
    host = host_of(HYBRID_CGROUP, HYBRID_MOUNTS, "io hugetlb")
    assert host.mode is Mode.HYBRID
    assert dict(host.versions) == {
        **dict.fromkeys(("memory", "cpu", "cpuacct", "cpuset", "pids", "devices", "freezer"), 1),
        **dict.fromkeys(("io", "hugetlb", "pressure"), 2),
    }


def test_docker_without_a_cgroup_namespace_starts_where_the_mount_shows_us():
    host = host_of(DOCKER_V1_CGROUP, DOCKER_V1_MOUNTS)
    assert start(host, "memory") == (1, "/sys/fs/cgroup/memory")
    assert start(host, "cpu") == (1, "/sys/fs/cgroup/cpu,cpuacct/inner")


def test_docker_with_a_cgroup_namespace_starts_at_the_mount():
    mounts = "29 22 0:25 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"
    assert start(host_of("0::/\n", mounts, "memory"), "memory") == (2, "/sys/fs/cgroup")


def test_a_mount_from_outside_of_the_cgroup_namespace_cannot_be_used_and_the_error_says_so():
    mounts = "29 22 0:25 /../.. /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
    host = host_of("0::/\n", mounts, "memory")
    assert host.mode is Mode.NONE
    with pytest.raises(UnsupportedError, match="cannot be reached from here"):
        host.require("memory")


def test_our_cgroup_outside_of_the_namespace_is_not_escaped_to():
    assert host_of("0::/../other\n", "29 22 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n", "memory").hierarchies == ()


def test_no_cgroups_at_all():
    host = host_of("", "22 27 0:21 / /proc rw - proc proc rw\n")
    assert host.mode is Mode.NONE
    with pytest.raises(UnsupportedError, match="mount -t cgroup2"):
        host.require("memory")


def test_a_writable_mount_is_preferred_to_a_read_only_one():
    mounts = "1 2 0:25 / /ro ro - cgroup2 cgroup2 rw\n3 2 0:25 / /rw rw - cgroup2 cgroup2 rw\n"
    assert host_of("0::/a\n", mounts, "pids").require("pids").start == "/rw/a"


def test_a_process_that_was_moved_down_to_make_room_starts_one_level_up():
    host = host_of(f"0::/scope/{ROOM}\n", V2_MOUNTS, "memory")
    assert host.require("memory").start == "/sys/fs/cgroup/scope"


def test_a_path_with_colons_and_a_mount_point_with_a_blank():
    host = host_of("0::/a:b c\n", "29 22 0:25 / /mnt/c\\040g\\134 rw - cgroup2 cgroup2 rw\n", "pids")
    assert host.require("pids").start == "/mnt/c g\\/a:b c"


@given(st.text())
def test_parsers_take_any_text(text: str):
    host_of(text, text, text)


paths = st.lists(st.text(st.characters(exclude_characters="/\n\r\0", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1), max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)
names = st.lists(st.sampled_from(["memory", "pids", "cpu", "cpuacct", "blkio"]), min_size=1, unique=True).map(tuple)


@given(st.lists(st.builds(Membership, st.integers(1, 20), names, paths), max_size=6))
def test_memberships_survive_a_round_trip(members: list[Membership]):
    text = "".join(f"{m.hierarchy_id}:{','.join(m.controllers)}:{m.path}\n" for m in members)
    assert parse_memberships(text) == tuple(members)


@given(paths, paths)
def test_mounts_survive_a_round_trip(root: str, point: str):
    def escape(path: str) -> str:
        return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in path)

    text = f"29 22 0:25 {escape(root)} {escape(point)} rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct\n"
    assert parse_mounts(text) == (CgroupMount(1, frozenset({"cpu", "cpuacct"}), root, point, is_writable=True),)


@given(paths, paths)
def test_the_start_never_leaves_the_mount(path: str, root: str):
    host = assemble([Membership(0, (), path)], [CgroupMount(2, frozenset(), root, "/sys/fs/cgroup", is_writable=True)], lambda _: ["memory"])
    for hierarchy in host.hierarchies:
        assert hierarchy.start == "/sys/fs/cgroup" or hierarchy.start.startswith("/sys/fs/cgroup/")
        assert ".." not in hierarchy.start.split("/")


@pytest.mark.parametrize("name", ["sandbox-", "sandbox-1-2", "sandbox-1-2-x", "sandbox-supervisor", "user.slice", "sandbox-1-2-3-4", "sandbox-²-2-3"])
def test_strangers_are_not_taken_for_an_owner(name: str):
    assert parse_owner(name) is None


def test_an_owner_is_read_from_its_name():
    assert parse_owner("sandbox-12-345-4026531836") == (12, 345, 4026531836)


def test_a_host_is_hashable_and_compares_by_value():
    one, two = host_of(V2_CGROUP, V2_MOUNTS, "memory"), host_of(V2_CGROUP, V2_MOUNTS, "memory")
    assert one == two
    assert hash(one) == hash(two)
    assert one != Host((Hierarchy(2, ("memory",), "/a", "/a"),))
