"""Inside other containers: what works there does, and what is refused says by whom and what helps. docs/reference/nested.md has all of it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox._sys import outer as words
from tests.nested import outer
from tests.nested.outer import Docker, Outer
from tests.support import needs, why_not

ECHO, MEMORY, BIND, DIRECTORY = "run(['echo', 'hi'])", "memory=", "Bind, writable", "a directory as root, overlay"
pytestmark = [needs("root", "userns"), pytest.mark.skipif(bool(outer.usable()), reason=outer.usable() or "-"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    with outer.daemon(tmp_path_factory.mktemp("docker")) as running:
        yield running


def find(tool: str, flags: str = "", user: str = "") -> Outer:
    return next(each for each in outer.ALL if (each.tool, each.flags, each.user) == (tool, flags, user))


dockers = needs("program:docker", "program:dockerd")


@dockers
def test_dockers_default_filter_is_named_with_the_flag_that_takes_it_away(docker: Docker) -> None:
    for user in ("", "1000"):
        found = outer.features(find("docker run", user=user), [ECHO], docker)[ECHO]
        assert found.startswith("refused: this host")
        assert "move_mount, which every container needs" in found
        assert words.SECCOMP_REMEDY in found


@dockers
def test_dockers_masks_of_proc_are_named_with_the_flag_that_takes_them_away(docker: Docker) -> None:
    found = outer.features(find("docker run", outer.SECCOMP), [ECHO], docker)[ECHO]
    assert found.startswith("refused: the kernel refuses a /proc of the container's own: /proc/")
    assert words.PROC_REMEDY in found


@dockers
def test_a_call_that_dockers_filter_forbids_even_with_sys_admin_is_named(docker: Docker) -> None:
    found = outer.features(find("docker run", f"{outer.PATHS} --cap-add SYS_ADMIN"), [ECHO], docker)[ECHO]
    assert found.startswith("refused: Pivot")
    assert words.SECCOMP_REMEDY in found


@dockers
@pytest.mark.parametrize("user", ["", "1000"])
def test_with_two_flags_all_but_limits_work_in_docker(docker: Docker, user: str) -> None:
    found = outer.features(find("docker run", f"{outer.SECCOMP} {outer.PATHS}", user), [ECHO, BIND, DIRECTORY, MEMORY], docker)
    assert [found[name] for name in (ECHO, BIND, DIRECTORY)] == ["works"] * 3
    assert "Read-only file system; mount it writable; in an outer container: docker run --cgroupns=host --volume" in found[MEMORY]


@dockers
def test_with_the_groups_mounted_limits_work_in_docker(docker: Docker) -> None:
    found = outer.features(find("docker run", f"{outer.SECCOMP} {outer.PATHS} {outer.GROUPS}"), [ECHO, MEMORY], docker)
    assert found == {ECHO: "works", MEMORY: "works"}


@dockers
def test_root_with_sys_admin_but_not_sys_ptrace_can_map_ids(docker: Docker) -> None:
    # The user namespace of an init that is not dumpable takes CAP_SYS_PTRACE to open, which Docker does not give.
    flags = f"{outer.SECCOMP} {outer.PATHS} {outer.GROUPS} --cap-add SYS_ADMIN --tmpfs /tmp:exec"
    names = [ECHO, MEMORY, BIND, DIRECTORY, "subids=True"]
    found = outer.features(find("docker run", flags), names, docker)
    if "id-mapped" in found[BIND]:
        pytest.skip("tmpfs cannot be id-mapped before Linux 6.3")
    assert found == dict.fromkeys(names, "works")


@dockers
def test_a_privileged_docker_lets_an_ordinary_user_work(docker: Docker) -> None:
    assert outer.features(find("docker run", "--privileged", "1000"), [ECHO, DIRECTORY], docker) == {ECHO: "works", DIRECTORY: "works"}


@needs("program:bwrap")
@pytest.mark.parametrize("flags", ["--unshare-all --proc /proc", "--unshare-user --uid 0 --gid 0 --cap-add ALL --proc /proc"])
def test_in_bwrap_all_but_limits_work(flags: str) -> None:
    found = outer.features(find("bwrap", flags, "caller"), [ECHO, BIND, DIRECTORY, MEMORY])
    assert [found[name] for name in (ECHO, BIND, DIRECTORY)] == ["works"] * 3
    assert "it is not mounted; mount the cgroup file system" in found[MEMORY]


@needs("program:bwrap")
def test_bwrap_without_user_namespaces_is_named() -> None:
    found = outer.features(find("bwrap", "--unshare-user --disable-userns --proc /proc", "caller"), [ECHO])[ECHO]
    assert "bwrap --disable-userns" in found


@needs("program:bwrap")
def test_bwrap_as_root_hides_parts_of_proc_and_a_bind_shows_them() -> None:
    assert "/proc/irq" in outer.features(find("bwrap", "--proc /proc"), [ECHO])[ECHO]
    assert outer.features(find("bwrap", "--bind /proc /proc"), [ECHO]) == {ECHO: "works"}


def test_in_a_container_of_ours_nesting_and_the_whole_proc_have_to_be_asked_for() -> None:
    assert words.SECCOMP_REMEDY in outer.features(find("Container()"), [ECHO])[ECHO]
    assert words.PROC_REMEDY in outer.features(find("Container()", "security=Security(nesting=True)"), [ECHO])[ECHO]


@pytest.mark.parametrize(
    ("flags", "user"),
    [
        ("security=Security(nesting=True, masks=False)", ""),
        ("security=Security(nesting=True, masks=False)", "caller"),
        ("user=0, security=Security(nesting=True, masks=False, cap_add=['ALL'])", ""),
    ],
)
def test_containers_work_in_a_container_of_ours_that_allows_nesting(flags: str, user: str) -> None:
    names = [ECHO, BIND, DIRECTORY, "Security(nesting=True)", "tty"]
    assert outer.features(find("Container()", flags, user), names) == dict.fromkeys(names, "works")


@needs("cgroup:memory")
def test_in_a_cgroup_namespace_of_another_container_limits_hold_below_its_group() -> None:
    names = [ECHO, MEMORY, "pids=", "limits of one run"]
    assert outer.features(outer.CGROUPNS[0], names) == dict.fromkeys(names, "works")


def test_the_page_lists_every_outer_container() -> None:
    page = Path(outer.CHECKOUT, "docs/reference/nested.md").read_text()
    assert [each.title for each in outer.ALL if each.title not in page] == []


def test_nothing_of_a_daemon_is_left(tmp_path: Path) -> None:
    if reason := why_not("program:dockerd") or why_not("program:docker"):
        pytest.skip(f"needs dockerd: {reason}")
    with outer.daemon(tmp_path) as running:
        pid = running._daemon.pid if running._daemon else 0
        assert subprocess.run(running.command("version"), capture_output=True, check=False).returncode == 0
    assert not Path(f"/proc/{pid}").exists()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
