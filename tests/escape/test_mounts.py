"""Mounts, proc, sys and control groups: what is mounted where, what shows through, and what stays on the host."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandbox
from sandbox import PIPE, Bind, Container, Scratch, Security, Tmpfs, Volume
from tests.escape.canary import Canary
from tests.escape.targets import Refused, Target
from tests.leak.killed import run_and_kill
from tests.leak.snapshot import descendants
from tests.support import ROOM, needs, patience, repeats

pytestmark = [needs("userns"), pytest.mark.unprivileged]
SH = "/bin/sh"
PROC_SUPER_MAGIC = "9fa0"  # linux/magic.h
# What Docker hides and protects, whether or not this library does.
MASKED = (
    "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi /proc/timer_list "
    "/proc/timer_stats /sys/devices/virtual/powercap /sys/firmware /sys/devices/system/cpu/cpu0/thermal_throttle"
).split()
CLOSED = (
    "/proc/sysrq-trigger /proc/irq/default_smp_affinity /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/kernel/hostname "
    "/proc/sys/kernel/shmmax /proc/sys/fs/binfmt_misc/register /proc/sys/fs/mqueue/msg_max /proc/sys/vm/drop_caches /proc/sys/vm/overcommit_memory "
    "/proc/sys/net/ipv4/ip_forward /proc/sys/user/max_user_namespaces /proc/bus/pci/00/00.0 /proc/fs/ext4 /proc/kmem /proc/mtrr "
    "/sys/power/state /sys/kernel/mm/transparent_hugepage/enabled /sys/kernel/uevent_helper /sys/devices/system/cpu/cpu1/online /sys/module/kernel/parameters/panic"
).split()


# --- what the root has planted ------------------------------------------------------------------------------------------


def plant_link(root: Path, name: str, target: str) -> None:
    """Put a link in the place of one of the runtime's own directories."""
    (root / name).rmdir()
    (root / name).symlink_to(target)


LINKS = {"absolute": "{canary}", "climbing": "../../../../../../../../../..{canary}", "inside": "/host", "itself": "{name}", "proc": "/proc/self/cwd"}


@pytest.mark.parametrize("link", LINKS)
def test_a_root_whose_proc_is_a_link_gets_a_real_procfs(target: Target, root: Path, canary: Canary, link: str) -> None:
    """CVE-2019-16884, CVE-2023-28642, CVE-2025-52881: masks and security labels written through a /proc that is none."""
    plant_link(root, "proc", LINKS[link].format(canary=canary.path, name="proc"))
    with contextlib.suppress(Refused):
        assert target.run(["stat", "-f", "-c", "%t", "/proc/"], root=root).stdout.split() == [PROC_SUPER_MAGIC.encode()]
        assert target.run(["stat", "-L", "-c", "%i", "/proc"], root=root).stdout.split() == [b"1"]
        assert target.run(["/attacks/masks", "masked", *MASKED], root=root).successes == []
        assert target.run(["/attacks/masks", "closed", *CLOSED], root=root).successes == []


@pytest.mark.parametrize("link", ["absolute", "climbing", "inside", "itself"])
@pytest.mark.parametrize("name", ["sys", "dev"])
def test_a_root_whose_sys_or_dev_is_a_link_leads_nowhere(target: Target, root: Path, canary: Canary, name: str, link: str) -> None:
    """CVE-2023-28642, CVE-2026-41579, CVE-2026-47766: device nodes and links made below a /dev that is a directory of the host."""
    plant_link(root, name, LINKS[link].format(canary=canary.path, name=name))
    with contextlib.suppress(Refused):
        assert "secret" not in target.run(["ls", f"/{name}/"], root=root).lines
        target.run([SH, "-c", f"echo x >/{name}/file; echo x >/{name}/null; mkdir /{name}/new; rm -f /{name}/secret"], root=root)
    assert not canary.is_told_by(*target.said)


def test_planted_devices_are_neither_used_nor_written_through(target: Target, root: Path, canary: Canary) -> None:
    """CVE-2025-31133, CVE-2025-52565: /dev/null as a link makes a mask bind something else; /dev/console and /dev/pts as links likewise."""
    for name in ("null", "console", "pts", "ptmx", "shm", "tty", "fd", "stdout", "mqueue"):
        (root / "dev" / name).symlink_to(canary.path / "file")
    with contextlib.suppress(Refused):
        assert target.run(["/attacks/masks", "masked", *MASKED], root=root).successes == []
        assert target.run(["stat", "-L", "-c", "%F %t:%T", "/dev/null"], root=root).stdout.strip() == b"character special file 1:3"
        target.run([SH, "-c", "for d in null console ptmx tty shm/x pts/x stdout; do echo x > /dev/$d; done"], root=root)


@needs("root", "program:busybox")
def test_planted_files_are_not_written_through(root: Path, canary: Canary) -> None:
    """CVE-2024-45310 and kin: what we write ourselves (hostname, hosts, resolv.conf), and the places of mounts, as links to the host."""
    for name in ("hostname", "hosts", "resolv.conf", "mtab"):
        (root / "etc" / name).symlink_to(canary.path / "file")
    (root / "point").symlink_to(canary.path / "directory")
    (root / "climb").symlink_to(f"../../../../../../..{canary.path}")
    for place in ("/point/new", "/climb/new/deep", "/etc/hostname"):
        source = canary.path.parent / "source"
        source.touch()
        with contextlib.suppress(sandbox.SetupError, sandbox.UsageError):  # noqa: SIM117 - one container each
            with Container(root, mounts=[Bind(source, place), Tmpfs("/climb/more")]) as c:
                assert c.exec(["true"]).ok
    assert "point" in os.listdir(root)


# --- the race -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def exchanging(attacks: Path, shared: Path, first: str, second: str) -> Iterator[None]:
    """A container that exchanges two names of a shared directory without end."""
    with Container(mounts=[Bind(attacks, "/attacks", read_only=True), Bind(shared, "/shared")]) as c:
        attacker = c.popen(["/attacks/exchange", f"/shared/{first}", f"/shared/{second}"], stdout=PIPE)
        assert attacker.stdout is not None
        assert attacker.stdout.readline() == b"exchanging\n"
        yield
        attacker.close()


@pytest.mark.parametrize("trap", ["canary", "proc", "root"])
def test_a_place_that_is_exchanged_while_we_mount_leads_nowhere(attacks: Path, tmp_path: Path, canary: Canary, trap: str) -> None:
    """CVE-2021-30465, CVE-2024-45310: a directory becomes a link between being resolved and being mounted on. 200 times."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "point" / "below").mkdir(parents=True)
    (shared / "trap").symlink_to({"canary": str(canary.path / "directory"), "proc": "/proc", "root": "/"}[trap])
    shared.chmod(0o777)
    mounts = Path("/proc/self/mountinfo").read_text()
    outcomes, tried, deadline = {"started": 0, "refused": 0}, 0, time.monotonic() + patience(60)
    look = f"stat -f -c %t /proc; ls /s/point /s/point/below; cat /s/point/file /s/point/below/file {canary.path}/secret; ls /.. "
    with exchanging(attacks, shared, "point", "trap"):
        while tried < repeats(200) or (not outcomes["started"] and time.monotonic() < deadline):
            tried += 1
            inner = Tmpfs("/s/point") if tried % 2 else Tmpfs("/s/point/below")
            try:
                with Container(mounts=[Bind(shared, "/s"), inner]) as c:
                    out = c.exec([SH, "-c", look]).stdout
                    assert out.split(b"\n")[0] == PROC_SUPER_MAGIC.encode()
                    assert not canary.is_told_by(out)
                    outcomes["started"] += 1
            except (sandbox.SetupError, sandbox.UsageError):
                outcomes["refused"] += 1
    assert outcomes["started"] > 0
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert sorted(os.listdir(shared)) == ["point", "trap"]


@needs("root")
def test_a_volume_whose_directories_are_exchanged_gets_no_stray_files(
    attacks: Path, tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2024-45310: directories and files that are made as places for mounts, on a volume, through a link that was not there before."""
    monkeypatch.setenv("SANDBOX_VOLUMES", str(tmp_path / "volumes"))
    with Container(mounts=[Volume("shared", "/shared")]) as c:
        assert c.exec([SH, "-c", f"mkdir -p /shared/point && ln -s {canary.path}/directory /shared/trap"]).ok
    with Container(mounts=[Volume("shared", "/shared"), Bind(attacks, "/attacks", read_only=True)]) as a:
        attacker = a.popen(["/attacks/exchange", "/shared/point", "/shared/trap"], stdout=PIPE)
        assert attacker.stdout is not None
        assert attacker.stdout.readline() == b"exchanging\n"
        for number in range(repeats(100)):
            with contextlib.suppress(sandbox.SetupError, sandbox.UsageError):  # noqa: SIM117
                with Container(mounts=[Volume("shared", "/v"), Tmpfs(f"/v/point/{number}/deep")]) as c:
                    assert c.exec(["true"]).ok
        attacker.close()


# --- what shows through ---------------------------------------------------------------------------------------------------


def test_masked_paths_are_empty(target: Target) -> None:
    """CVE-2017-16539 (/proc/scsi), CVE-2020-8694 (power meters): files that tell of, or change, the whole machine."""
    outcome = target.run(["/attacks/masks", "masked", *MASKED])
    assert sorted(outcome.answers) == sorted(MASKED)
    assert outcome.successes == []


def test_read_only_paths_cannot_be_opened_for_writing(target: Target) -> None:
    """CVE-2017-16539, CVE-2022-0811, CVE-2025-52881: core_pattern and its kind are code that the host's kernel runs."""
    outcome = target.run(["/attacks/masks", "closed", *CLOSED])
    assert sorted(outcome.answers) == sorted(CLOSED)
    assert outcome.successes == []
    if target.is_ours:  # and not for want of rights alone
        mounted = {fields[1]: fields[3] for fields in map(str.split, target.run(["cat", "/proc/self/mounts"]).lines)}
        assert [place for place in ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys") if "ro" not in mounted[place].split(",")] == []


CGROUPS = """
for f in $(find /sys/fs/cgroup -type f 2>/dev/null); do ( : >>$f ) 2>/dev/null && echo "$f: ALLOWED"; done
for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/attack 2>/dev/null && { [ -e $d/attack/cgroup.procs ] && echo "mkdir in $d: ALLOWED"; rmdir $d/attack; }; done
for t in cgroup cgroup2; do mount -t $t none /tmp 2>/dev/null && echo "mount of $t: ALLOWED"; done
grep ' rw[ ,].* cgroup' /proc/self/mounts | while read line; do echo "$line: ALLOWED"; done
echo 'done: all tried'
"""


def test_no_control_group_can_be_written_to(target: Target) -> None:
    """CVE-2022-0492 (release_agent), CVE-2023-25809, nsjail#199: a writable cgroupfs is code on the host, or limits undone."""
    outcome = target.run([SH, "-c", CGROUPS])
    assert outcome.lines[-1] == "done: all tried"
    assert outcome.successes == []


@needs("cgroup:memory")
def test_a_program_stays_below_the_control_group_that_we_were_started_in() -> None:
    """nsjail#219: a program that is moved out of the outer group escapes the outer limits."""
    with Container(memory="64M", pids=16) as c, contextlib.closing(c.popen(["sleep", "60"])):
        # On v2 the library has moved us down, from a group that is to have groups in it, at the latest now.
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        ours = dict(line.removesuffix(f"/{ROOM}").split(":", 1) for line in lines)
        pids = [c.pid, *descendants(c.pid)]
        assert len(pids) > 1
        for pid in pids:
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                number, path = line.split(":", 1)
                assert path.startswith(ours[number]), (path, ours[number])


@pytest.mark.parametrize("name", ["x\nkernel.core_pattern=|/evil", "x y", "x\tx", "x\0", "", "x" * 300])
def test_names_cannot_carry_settings(name: str) -> None:
    """CVE-2022-0811: "a=b+c=d" in a value became a second sysctl. The only values of that kind that are taken are names."""
    for option in ("hostname", "domainname"):
        if not (option == "domainname" and name == ""):
            with pytest.raises(sandbox.UsageError):
                Container(**{option: name})


# --- the root, and back to the host ---------------------------------------------------------------------------------------


def test_chroot_leads_nowhere(target: Target, canary: Canary) -> None:
    """rubber-docker, level 3: a chroot below the working directory, and up again."""
    outcome = target.run(["/attacks/breakout", str(canary.path / "file")])
    assert outcome.answers["open a file of the host"] != "ALLOWED"


def test_dot_dot_of_the_root_is_the_root(target: Target) -> None:
    """rubber-docker, level 3: chroot(2) alone keeps the old root one `..` away."""
    out = target.run(["stat", "-c", "%d %i", "/", "/..", "/../.."]).lines
    assert len(set(out)) == 1, out


def test_secrets_of_the_host_are_not_seen(target: Target, canary: Canary) -> None:
    """What is not given does not show, whoever may read it."""
    files = f"{canary.path}/secret {canary.path}/directory/below/file /etc/shadow /root/.bashrc /proc/1/environ /proc/kcore /proc/keys"
    target.run([SH, "-c", f"cat {files} 2>/dev/null | head -c 100000; ls {canary.path}"])
    assert not canary.is_told_by(*target.said)


def test_a_view_of_the_host_shows_no_homes() -> None:
    """/home and /root are there, and are the container's own."""
    result = sandbox.run([SH, "-c", "ls /root /home 2>/dev/null"])
    assert set(result.stdout.split()) <= {b"/home:", b"/root:", b"sandbox"}


def test_changes_stay_inside(target: Target, root: Path) -> None:
    """What a program writes to its root is gone with it, and never in the directory that it was made from."""
    target.run([SH, "-c", "touch /written /bin/written; rm -f /etc/passwd; chmod 777 /bin; ln -s x /etc/written"], root=root)
    assert (root / "etc" / "passwd").exists()
    assert not list(root.rglob("written"))


def test_the_hosts_device_nodes_stay_as_they_are(target: Target) -> None:
    """Devices that are bound from the host are its own nodes, with its own times, mode and owner."""
    # Only what changes nothing but times where it succeeds: the mode is the one that they have.
    nodes = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
    before = [(node, os.stat(node).st_mtime_ns, os.stat(node).st_ctime_ns) for node in nodes]
    target.run([SH, "-c", f"for n in {' '.join(nodes)}; do touch -c $n; chmod 666 $n; done 2>&1"])
    assert [(node, os.stat(node).st_mtime_ns, os.stat(node).st_ctime_ns) for node in nodes] == before


def test_devices_work(target: Target) -> None:
    """What is protected is of use all the same."""
    out = target.run([SH, "-c", "echo x >/dev/null && head -c 4 /dev/zero | wc -c && head -c 4 /dev/urandom | wc -c && { (echo x >/dev/full) 2>/dev/null || echo full; }"])
    assert out.stdout.split() == [b"4", b"4", b"full"]


def test_a_terminal_is_one_of_the_container() -> None:
    """CVE-2025-52565: /dev/console is a terminal of the container's own devpts, or is not there."""
    with Container() as c:
        program = c.popen([SH, "-c", "tty; stat -c %t /dev/console; stat -f -c %t /dev/pts"], tty=True)
        out, _ = program.communicate(timeout=patience(20))
        program.close()
    lines = out.decode().split()
    assert lines[0].startswith("/dev/pts/")
    assert lines[-1] == "1cd1"  # DEVPTS_SUPER_MAGIC
    assert "88" in lines or "No" in out.decode()  # 0x88: UNIX98_PTY_SLAVE_MAJOR


# --- the store ------------------------------------------------------------------------------------------------------------


def stat_as_another(path: Path) -> int:
    """Who is nobody in particular asks for *path*: the exit code."""
    return subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "stat", path], capture_output=True, check=False).returncode


@needs("root")
def test_what_is_kept_is_closed_to_other_users(open_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2021-41091: set-user-id programs in layers that every user of the host could reach."""
    monkeypatch.setenv("SANDBOX_VOLUMES", str(open_place / "volumes"))
    disk = open_place / "disk"
    disk.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        with Container(mounts=[Volume("kept", "/kept")], scratch=Scratch(disk=disk), user="0:0") as c:
            assert c.exec([SH, "-c", "for d in /kept /tmp; do echo x >$d/left; chmod 4755 $d/left; done"]).ok
            found = [Path(directory, name) for directory, _, names in os.walk(open_place) for name in names if name == "left"]
            assert len(found) == 2
            assert stat_as_another(disk) == 0  # the way there is open
            assert [path for path in found if stat_as_another(path) == 0] == []
    finally:
        os.umask(before)
    assert os.stat(open_place / "volumes").st_mode & 0o777 == 0o700


# --- propagation ------------------------------------------------------------------------------------------------------------

HOST_OF_SHARED_MOUNTS = """
import os, subprocess, sys
subprocess.run(["mount", "--make-rshared", "/"], check=True)
where = sys.argv[1]
os.makedirs(where)
subprocess.run(["mount", "--bind", where, where], check=True)  # before Linux 6.3 no tmpfs, which cannot be id-mapped there
subprocess.run(["mount", "--make-shared", where], check=True)
def mounts():
    return open("/proc/self/mountinfo").read()
import sandbox
from sandbox import Bind, Container, Security, Tmpfs
before = mounts()
os.mkdir(where + "/bound")
os.mkdir(where + "/bound/inner")
with Container(mounts=[Bind(where, "/bind"), Tmpfs("/bind/bound/inner")], security=Security(nesting=True)) as c:
    program = c.popen(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
                       "mount -t tmpfs none /bind/bound && echo mounted && sleep 60"], stdout=sandbox.PIPE)
    assert program.stdout.readline() == b"mounted\\n"
    assert mounts() == before, "while it runs"
    program.close()
    # And a mount that the host makes later stays the host's.
    subprocess.run(["mount", "-t", "tmpfs", "none", where + "/bound"], check=True)
    open(where + "/bound/later", "w").close()
    seen = c.exec(["ls", "/bind/bound"]).stdout
    subprocess.run(["umount", where + "/bound"], check=True)
    assert b"later" not in seen, seen
try:
    with Container(mounts=[Bind(where, "/bind")]):
        raise KeyError
except KeyError:
    pass
try:
    Container(mounts=[Bind(where, "/bind"), Bind(where, "/nowhere/\\u00e4")], cwd="/x").create().close()
except sandbox.SandboxError:
    pass
sandbox.shut_down()
assert mounts() == before, "afterwards"
print("clean")
"""


@needs("root", "program:unshare")
def test_mounts_do_not_reach_a_host_whose_mounts_are_shared(tmp_path: Path) -> None:
    """runc, Docker: a shared mount makes what the container mounts appear on the host, and keeps it there."""
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", HOST_OF_SHARED_MOUNTS, str(tmp_path / "shared")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.stdout == "clean\n", done.stderr


def test_kill_9_of_the_host_leaves_no_mount(tmp_path: Path) -> None:
    """The embedding process dies with containers that have mounts of its directories."""
    (tmp_path / "bound").mkdir()
    code = f"""
import sandbox, time
from sandbox import Bind, Container, Tmpfs
c = Container(mounts=[Bind({str(tmp_path / "bound")!r}, "/bind"), Tmpfs("/more")]).create()
c.popen(["sleep", "60"])
print("ready", flush=True)
time.sleep(60)
"""
    assert run_and_kill(code, patience_s=5.0) == []


def test_a_program_that_may_nest_reaches_no_mount_of_the_host(canary: Canary) -> None:
    """A container in the container: its mounts can cover ours, not uncover what is below them (mount_namespaces(7), locked mounts)."""
    script = "umount -l /proc; umount -l /etc/passwd; umount -l /usr; mount -o remount,bind,rw /usr && touch /usr/attack && echo WRITTEN; cat /proc/kcore | head -c 1"
    with Container(security=Security(nesting=True)) as c:
        attack = f"echo inside; {script}; cat {canary.path}/secret"
        out = c.exec(["unshare", "--user", "--map-root-user", "--mount", SH, "-c", attack], timeout=patience(20))
    assert out.stdout == b"inside\n", out
