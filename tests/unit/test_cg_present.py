"""CPUs that are there, and disks that heed weights, as hosts of all kinds show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.cg.hosts import Hierarchy, Host
from sandbox.cg.limits import Limits
from sandbox.cg.present import check_present, weighing_disks
from sandbox.errors import UnsupportedError, UsageError


def host(version: int, at: Path, **files: str) -> Host:
    """One with a hierarchy below *at*, whose start group has *files*; ``__`` stands for a dot."""
    start = at / "group"
    start.mkdir(exist_ok=True)
    for name, text in files.items():
        (start / name.replace("__", ".")).write_text(text)
    return Host((Hierarchy(version, ("cpuset", "blkio" if version == 1 else "io"), str(at), str(start)),))


def disks(at: Path, **schedulers: str) -> str:
    for name, text in schedulers.items():
        (at / "block" / name / "queue").mkdir(parents=True)
        (at / "block" / name / "queue" / "scheduler").write_text(f"{text}\n")
    return str(at / "block")


def test_cpus_are_those_of_the_group_that_we_were_started_in(tmp_path: Path) -> None:
    v2 = host(2, tmp_path, cpuset__cpus__effective="0-3\n", cpuset__cpus="\n")
    check_present(Limits(cpuset="0-3"), v2)
    with pytest.raises(UsageError, match=r"cpuset: 4-5,9: no such CPU here; choose from 0-3$"):
        check_present(Limits(cpuset="3-5,9"), v2)


def test_on_v1_what_is_offline_is_not_there(tmp_path: Path) -> None:
    v1 = host(1, tmp_path, cpuset__cpus="0-7\n", cpuset__effective_cpus="0-3\n")
    with pytest.raises(UsageError, match=r"7: no such CPU here; choose from 0-3"):
        check_present(Limits(cpuset="7"), v1)


def test_a_v1_kernel_that_tells_less_is_believed(tmp_path: Path) -> None:
    v1 = host(1, tmp_path, cpuset__cpus="2,5\n")
    check_present(Limits(cpuset="2,5"), v1)
    with pytest.raises(UsageError, match="choose from 2,5"):
        check_present(Limits(cpuset="0"), v1)


@pytest.mark.parametrize("version", [1, 2])
def test_a_weight_is_refused_while_no_disk_has_bfq(tmp_path: Path, version: int) -> None:
    block = disks(tmp_path, vda="[none] mq-deadline kyber bfq", sda="mq-deadline [kyber]")
    with pytest.raises(UnsupportedError, match="BFQ") as caught:
        check_present(Limits(io_weight=50), host(version, tmp_path), block=block)
    assert caught.value.feature == ("cgroup:blkio.bfq.weight" if version == 1 else "cgroup:io.weight")
    assert "scheduler" in caught.value.remedy
    assert "io_max=" in caught.value.remedy
    assert ("io.cost.qos" in caught.value.remedy) is (version == 2)


@pytest.mark.parametrize("version", [1, 2])
def test_a_weight_is_taken_where_a_disk_has_bfq(tmp_path: Path, version: int) -> None:
    block = disks(tmp_path, vda="[none] mq-deadline bfq", sda="none [bfq]")
    found = host(version, tmp_path)
    check_present(Limits(io_weight=50), found, block=block)
    assert weighing_disks(found.hierarchies[0], block) == {"sda"}


def test_a_weight_is_taken_on_v2_where_io_cost_is_enabled_for_a_disk(tmp_path: Path) -> None:
    block, found = disks(tmp_path, sda="[none]"), host(2, tmp_path)
    qos = tmp_path / "io.cost.qos"
    qos.write_text("8:0 enable=0 ctrl=auto rpct=0.00\n")
    with pytest.raises(UnsupportedError):
        check_present(Limits(io_weight=50), found, block=block)
    qos.write_text("8:0 enable=0 ctrl=auto\n8:16 enable=1 ctrl=user rpct=95.00\n")
    assert weighing_disks(found.hierarchies[0], block) == {"8:16"}


def test_a_host_without_sysfs_has_no_such_disk(tmp_path: Path) -> None:
    assert weighing_disks(host(2, tmp_path).hierarchies[0], str(tmp_path / "none")) == frozenset()


def test_disks_and_pages_that_are_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("8:0", "8:1/partition", "pages/hugepages-2048kB", "pages/hugepages-1048576kB"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.setattr("sandbox.cg.present._NUMBERS", str(tmp_path))
    monkeypatch.setattr("sandbox.cg.present._PAGES", str(tmp_path / "pages"))
    found = host(2, tmp_path)
    check_present(Limits(io_max={"8:0": {"rbps": 1}}, hugetlb={"2M": 0, "1G": 0}), found)
    for number, said in (("9:9", "no disk 9:9"), ("8:1", "part of a disk")):
        with pytest.raises(UsageError, match=said):
            check_present(Limits(io_max={number: {"rbps": 1}}), found)
    with pytest.raises(UnsupportedError, match=r"no pages of 4194304 bytes; .* 2097152, 1073741824"):
        check_present(Limits(hugetlb={"4M": 0}), found)


def test_without_the_controller_it_is_others_who_refuse(tmp_path: Path) -> None:
    check_present(Limits(cpuset="4000", io_weight=50), Host(()), block=str(tmp_path))
