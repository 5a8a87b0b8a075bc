"""Namespaces that a container has together with another one: what both see then, what neither can do to the other, and what is left."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

import sandbox
from sandbox import ClosedError, Container, Tmpfs, UnsupportedError, UsageError, ns
from tests.support import needs

pytestmark = [needs("root", "userns"), pytest.mark.usefixtures("no_leftovers")]
SH = "/bin/sh"
POSIX = """
import mmap, sys
from _posixshmem import shm_open
import os
fd = shm_open("/common", os.O_RDWR | (os.O_CREAT if sys.argv[1] == "make" else 0), 0o600)
if sys.argv[1] == "make":
    os.ftruncate(fd, 16)
    mmap.mmap(fd, 16)[:5] = b"hello"
else:
    print(mmap.mmap(fd, 16)[:5].decode())
"""
SYSTEM_V = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
number = libc.shmget(7, 64, 0o600 | (0o1000 if sys.argv[1] == "make" else 0))
at = libc.shmat(number, None, 0)
assert number >= 0 and at not in (None, 2**64 - 1), ctypes.get_errno()
if sys.argv[1] == "make":
    ctypes.memmove(at, b"hello", 6)
else:
    print(ctypes.string_at(at).decode())
"""
QUEUE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
flags = os.O_RDWR | (os.O_CREAT if sys.argv[1] == "make" else 0)
queue = libc.mq_open(b"/common", flags, 0o600, None)
assert queue >= 0, ctypes.get_errno()
if sys.argv[1] == "make":
    assert libc.mq_send(queue, b"hello", 6, 0) == 0
else:
    text = ctypes.create_string_buffer(65536)
    assert libc.mq_receive(queue, text, 65536, None) == 6
    print(text.value.decode())
"""


def inside(c: Container, kind: str) -> str:
    return c.exec(["readlink", f"/proc/self/ns/{kind}"], text=True, check=True).stdout.strip()


@pytest.mark.parametrize("kind", ["ipc", "uts", "time", "cgroup"])
def test_a_kind_of_another_container_is_shared_and_the_others_are_its_own(kind: str) -> None:
    with Container(hostname="alpha", time_offsets=(0, 1e6)) as one, Container(share={kind: one}) as other:
        assert inside(one, kind) == inside(other, kind) != os.readlink(f"/proc/self/ns/{kind}")
        assert one.namespaces()[kind] == other.namespaces()[kind]
        for own in {"ipc", "uts", "net", "mnt", "pid", "user", "cgroup"} - {kind}:
            assert one.namespaces()[own] != other.namespaces()[own]


def test_clocks_and_names_are_those_of_the_other() -> None:
    with Container(hostname="alpha", time_offsets=(0, 1e6)) as one, Container(share={"uts": one, "time": one}) as other:
        said = other.exec([SH, "-c", "uname -n; cat /etc/hostname; cat /proc/uptime; grep 127.0.1.1 /etc/hosts"], text=True, check=True)
        name, file, uptime, _, _, known = said.stdout.split()
        assert (name, file, known) == ("alpha", "alpha", "alpha")
        assert float(uptime) > 1e6
        with Container(share={"uts": other}) as third:
            assert third.exec([SH, "-c", "uname -n; cat /etc/hostname"], text=True).stdout == "alpha\nalpha\n"


@needs("program:python3")
@pytest.mark.parametrize("program", [POSIX, SYSTEM_V, QUEUE], ids=["posix", "system-v", "queue"])
@pytest.mark.parametrize("options", [{}, {"security": "strict"}, {"read_only": True}, {"user": 0}], ids=str)
def test_what_one_leaves_in_memory_for_its_user_alone_the_other_finds(program: str, options: dict[str, Any]) -> None:
    with Container(read_only=True, user=options.get("user")) as one, Container(share={"ipc": one}, **options) as other, Container() as stranger:
        one.exec(["/usr/bin/python3", "-c", program, "make"], check=True)
        assert other.exec(["/usr/bin/python3", "-c", program, "find"], text=True, check=True).stdout == "hello\n"
        assert not stranger.exec(["/usr/bin/python3", "-c", program, "find"]).ok


def test_files_of_dev_shm_are_of_the_same_users_in_both_and_stay_while_one_of_them_does() -> None:
    with Container(shm="8M") as one:
        one.exec([SH, "-c", "echo first > /dev/shm/f; chmod 600 /dev/shm/f"], check=True)
        with Container(share={"ipc": one}) as other, Container(share={"ipc": other}) as third:
            one.close()
            assert other.exec([SH, "-c", "cat /dev/shm/f; echo second >> /dev/shm/f; stat -c %u /dev/shm/f"], text=True).stdout == "first\n1000\n"
            assert third.exec([SH, "-c", "cat /dev/shm/f; head -c 9M /dev/zero > /dev/shm/big"], text=True).stdout == "first\nsecond\n"
            assert third.exec([SH, "-c", "stat -c %s /dev/shm/big"], text=True).stdout == f"{(8 << 20) - 4096}\n"
            assert b"shm" in third.exec(["grep", "/dev/shm.*nosuid,nodev,noexec", "/proc/self/mounts"]).stdout


def test_a_range_of_ids_that_two_have_is_given_back_by_the_second() -> None:
    ranges = ns.id_ranges()
    with Container() as one:
        base = int(one.exec(["cat", "/proc/self/uid_map"], text=True).stdout.split()[1])
        with Container(share={"ipc": one}) as other:
            one.close()
            assert int(other.exec(["cat", "/proc/self/uid_map"], text=True).stdout.split()[1]) == base
            assert (base - 524288) // 65536 in ranges._used
        assert (base - 524288) // 65536 not in ranges._used


def test_neither_sees_the_processes_of_the_other_nor_has_rights_over_what_is_shared() -> None:
    with Container(user=0) as one, Container(user=0, share={"ipc": one, "uts": one, "time": one}) as other, one.popen(["sleep", "1000"]) as process:
        words = "kill -9 -1; ls -d /proc/[0-9]*; hostname evil; echo 1 > /proc/sys/kernel/msgmax; hostname"
        seen = other.exec([SH, "-c", words], text=True)
        assert seen.stdout.splitlines()[-1] == "sandbox"
        assert len([line for line in seen.stdout.splitlines() if line.startswith("/proc/")]) <= 3
        assert process.poll() is None
        process.kill()


def test_the_walls_of_the_one_that_is_shared_are_what_they_were() -> None:
    words = "for kind in mnt user pid ipc; do cat /proc/sys/user/max_${kind}_namespaces; done"
    with Container(security=sandbox.Security(masks=False)) as one, Container(share={"ipc": one}), Container(share={"ipc": one}):
        assert one.exec([SH, "-c", words], text=True, check=True).stdout.split() == ["0"] * 4


def test_mounts_of_ones_own_stand_in_the_place_of_those_of_the_other() -> None:
    with Container() as one, Container(share={"ipc": one}, mounts=[Tmpfs("/dev/shm", size="1M")]) as other:
        one.exec(["touch", "/dev/shm/f"], check=True)
        assert other.exec(["ls", "/dev/shm"]).stdout == b""
        assert inside(one, "ipc") == inside(other, "ipc")


def test_a_network_and_other_kinds_are_joined_together() -> None:
    with Container(hostname="alpha") as one, Container(net=one, share={"ipc": one, "uts": one, "cgroup": "host"}) as other:
        for kind in ("net", "ipc", "uts"):
            assert inside(one, kind) == inside(other, kind)
        assert inside(other, "cgroup") == os.readlink("/proc/self/ns/cgroup")


def test_a_namespace_and_a_resident_are_taken_too() -> None:
    with ns.Namespace.create("uts") as names, ns.Namespace.create("ipc") as queues, Container(share={"uts": names, "ipc": queues}) as c:
        assert inside(c, "uts") == f"uts:[{names.id}]"
        assert inside(c, "ipc") == f"ipc:[{queues.id}]"
        assert c.exec(["touch", "/dev/shm/f"]).ok
        with ns.Resident.of(c.pid) as resident, Container(share={"ipc": resident}) as other:
            assert other.exec(["ls", "/dev/shm"]).stdout == b"f\n"
    with ns.Resident.of(os.getpid()) as ourselves, Container(share={"ipc": ourselves}) as c:
        assert inside(c, "ipc") == os.readlink("/proc/self/ns/ipc")
        assert int(c.exec(["cat", "/proc/self/uid_map"], text=True).stdout.split()[1]) >= 524288  # never those of who is no container


def test_run_takes_it_and_asyncio_too() -> None:
    with Container() as one:
        one.exec([SH, "-c", "echo hi > /dev/shm/f"], check=True)
        assert sandbox.run(["cat", "/dev/shm/f"], share={"ipc": one}).stdout == b"hi\n"

    async def main() -> bytes:
        async with sandbox.aio.Container() as first, sandbox.aio.Container(share={"ipc": first}) as second:
            await first.exec([SH, "-c", "echo hi > /dev/shm/f"])
            assert (await first.namespaces())["ipc"] == (await second.namespaces())["ipc"]
            with await second.namespace("ipc") as shared:
                assert shared.kind == "ipc"
            return (await second.exec(["cat", "/dev/shm/f"])).stdout

    assert asyncio.run(main()) == b"hi\n"


def test_one_that_does_not_run_or_has_ended_is_refused_and_nothing_is_left() -> None:
    with pytest.raises(ClosedError, match="not started"), Container(share={"ipc": Container()}):
        pass
    with Container() as one:
        waiting = Container(share={"ipc": one, "uts": one})
    with pytest.raises(ClosedError), waiting:
        pass
    with ns.Namespace.create("uts") as names:
        pass
    with pytest.raises(ClosedError), Container(share={"uts": names}):
        pass
    with Container() as one, ns.Resident.of(one.pid) as resident:
        one.close()
        with pytest.raises(ClosedError, match="has ended"), Container(share={"ipc": resident}):
            pass


def test_what_makes_no_sense_is_refused_before_anything_is_touched() -> None:
    other = Container()
    with ns.Namespace.own("uts") as wrong:
        cases: list[tuple[Any, dict[str, Any], str]] = [
            ({"pid": other}, {}, "never shared so.*exec"),
            ({"pid": "host"}, {}, "never shared so"),
            ({"mount": other}, {}, "Volume"),
            ({"user": other}, {}, "of its own, always"),
            ({"net": other}, {}, "say net="),
            ({"ips": other}, {}, "none of cgroup, ipc, time, uts"),
            ({"ipc": "alpha"}, {}, "none of 'host'"),
            ({"ipc": wrong}, {}, "kind 'uts'"),
            ({"ipc": other}, {"shm": "1M"}, "shm: "),
            ({"uts": other}, {"hostname": "beta"}, "hostname, domainname"),
            (["uts"], {"domainname": "beta"}, "hostname, domainname"),
            ({"time": other}, {"time_offsets": (0, 1)}, "time_offsets"),
            (["pid"], {}, "cannot be shared with the host"),
        ]
        for share, options, said in cases:
            with pytest.raises(UsageError, match=said):
                Container(share=share, **options)
    for share in ({"ipc": other}, {"time": other}, {"ipc": "host"}):
        with pytest.raises(UsageError, match="pool"):
            sandbox.Pool(share=share)


def test_without_privileges_it_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from attrs import evolve

    from sandbox import _host

    with Container() as one:
        ordinary = evolve(_host.host(), privileged=False)
        monkeypatch.setattr("sandbox._start._host.host", lambda: ordinary)
        for share in ({"ipc": one}, {"uts": one}):
            with pytest.raises(UnsupportedError, match="run as root; or run both programs in one container"), Container(share=share, strict=False):
                pass
