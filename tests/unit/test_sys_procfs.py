from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox._plan import IdMap
from sandbox._sys import procfs

ids = st.integers(0, 0xFFFFFFFE)
id_maps = st.builds(IdMap, ids, ids, st.integers(1, 0xFFFFFFFE)).filter(lambda m: max(m.inside, m.outside) + m.count - 1 <= 0xFFFFFFFE)


@given(st.lists(id_maps, max_size=10))
def test_id_maps_survive_a_round_trip(maps):
    assert procfs.parse_id_map(procfs.format_id_map(maps).decode()) == tuple(maps)


def test_the_kernels_own_map_is_read():
    assert procfs.read_id_map("uid")
    assert procfs.parse_id_map("         0     524288      65536\n") == (IdMap(0, 524288, 65536),)


@pytest.mark.parametrize("text", ["0 0", "0 0 0", "0 -1 1", "x 0 1", "0 0 4294967296", "4294967295 0 1", "0 0 1 1", "0 0 \u0661"])
def test_a_wrong_id_map_is_refused(text):
    with pytest.raises(ValueError):
        procfs.parse_id_map(text)


@given(st.text(st.characters(codec="ascii", exclude_characters="\n\0"), max_size=15))
def test_a_process_name_cannot_forge_its_stat(name):
    fields = " ".join(str(number) for number in range(5, 60))
    stat = procfs.parse_stat(f"42 ({name}) S 1 {fields}\n")
    assert (stat.pid, stat.comm, stat.state, stat.ppid, stat.start_time) == (42, name, "S", 1, 22)


@given(st.text(max_size=60))
def test_what_is_no_stat_raises_value_error_only(text):
    try:
        procfs.parse_stat(text)
    except ValueError:
        return
    pytest.fail("60 characters cannot hold 20 fields and be a stat") if len(text) < 40 else None


def test_the_start_time_names_a_process():
    with subprocess.Popen(["sleep", "60"]) as process:
        first = procfs.read_start_time(process.pid)
        assert first == procfs.read_start_time(process.pid) >= procfs.read_start_time(os.getpid())
        process.kill()


def test_status_of_ourselves():
    status = procfs.read_status()
    assert status["Pid"] == str(os.getpid())
    assert status["Uid"].split()[0] == str(os.getuid())


def test_a_colon_in_a_name_stays_in_the_value():
    assert procfs.parse_status("Name:\ta: b\nPid:\t1\n") == {"Name": "a: b", "Pid": "1"}


def escape(text: str) -> str:
    for letter in "\\ \t\n#":
        text = text.replace(letter, f"\\{ord(letter):03o}") if letter != "\\" else text.replace("\\", "\\134")
    return text


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.lists(st.sampled_from(["shared:1", "master:2"])),
)
def test_mount_points_are_unescaped(path, fields):
    line = " ".join(["36", "35", "98:0", "/", escape("/" + path), "rw,nosuid", *fields, "-", "ext4", escape(path), "rw,errors=continue"])
    (mount,) = procfs.parse_mountinfo(line + "\n")
    assert (mount.mount_point, mount.source, mount.fields) == ("/" + path, path, tuple(fields))
    assert (mount.mount_id, mount.parent_id, mount.device, mount.fstype) == (36, 35, "98:0", "ext4")
    assert mount.options == {"rw", "nosuid"}


def test_the_kernels_own_mountinfo_is_read():
    assert "/proc" in {mount.mount_point for mount in procfs.read_mountinfo() if mount.fstype == "proc"}


def test_a_wrong_mountinfo_is_refused():
    with pytest.raises(ValueError):
        procfs.parse_mountinfo("36 35 98:0 / /mnt rw ext4 /dev/root rw\n")


def test_a_missing_sysctl_is_none():
    assert procfs.read_number("/proc/sys/kernel/no_such_thing") is None
    assert procfs.read_number("/proc/sys/kernel/pid_max")
