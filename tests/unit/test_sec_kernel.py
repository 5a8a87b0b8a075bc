"""Compiled filters, limits and rulesets against the real kernel, each in a throw-away child.

The attacks run in a fresh Python (never in pytest's own process), which forks once for each: the child installs what is to be
tested, attacks, and reports through a pipe: the result, minus the errno, or the signal that ended it.
"""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.sec import Arch, Policy, Profile, compile_policy, eq, fail, namespace_limits_ops, profile_policy, rule, syscall_number
from sandbox.sec.policy import ALLOW, KILL_PROCESS
from tests.support import needs

PRELUDE = r"""
import ctypes, errno, json, os, resource, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    ctypes.set_errno(0)
    # Bytes are passed by address.
    buffers = [ctypes.create_string_buffer(arg, len(arg)) if isinstance(arg, bytes) else None for arg in args]
    numbers = [ctypes.addressof(buffer) if buffer else arg & (1 << 64) - 1 for arg, buffer in zip(args, buffers)]
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, numbers))
    return -ctypes.get_errno() if result == -1 else result
def install(program, seccomp, flags=0):
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    buffer = ctypes.create_string_buffer(program, len(program))
    filter = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    result = call(seccomp, 1, flags, filter)
    assert result >= 0, f"seccomp: {os.strerror(-result)}"
    return result
def in_child(work):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            os.write(write, json.dumps(work()).encode())
        except BaseException as error:
            os.write(write, json.dumps(f"{type(error).__name__}: {error}").encode())
        os._exit(0)
    os.close(write)
    told = os.read(read, 65536)
    os.close(read)
    _, status = os.waitpid(pid, 0)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else json.loads(told)
given = json.load(sys.stdin)
"""

NEW_USER, NEW_NS, NEW_CGROUP = 0x10000000, 0x00020000, 0x02000000
SIGSYS_END = "signal 31"
HERE = needs("arch:x86_64")


def script(body: str, **given: object) -> object:
    done = subprocess.run(
        [sys.executable, "-I", "-c", PRELUDE + body], input=json.dumps(given), text=True, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def attack(policy: Policy, calls: list[tuple[int, ...]]) -> object:
    """Make each call in a child of its own under *policy*; return what came of each."""
    body = """
def one(numbers):
    def work():
        install(bytes.fromhex(given["program"]), given["seccomp"], 4)
        return call(*numbers)
    return in_child(work)
print(json.dumps([one(numbers) for numbers in given["calls"]]))
"""
    return script(body, program=compile_policy(policy, Arch.here()).hex(), seccomp=nr("seccomp"), calls=calls)


def nr(name: str) -> int:
    return syscall_number(name)


def test_refused_calls_fail_and_the_rest_works():
    calls: list[tuple[tuple[int, ...], object]] = [
        ((nr("unshare"), NEW_USER), -errno.EPERM),
        ((nr("unshare"), NEW_NS), -errno.EPERM),
        ((nr("clone"), NEW_USER | 17), -errno.EPERM),
        ((nr("clone"), 0xABCDEF << 32 | NEW_USER | 17), -errno.EPERM),
        ((nr("clone3"), 0, 0), -errno.ENOSYS),
        ((nr("mount"), 0, 0, 0, 0, 0), -errno.EPERM),
        ((nr("keyctl"), 0, 0, 0), -errno.EPERM),
        ((nr("bpf"), 0, 0, 0), -errno.EPERM),
        ((nr("userfaultfd"), 0), -errno.EPERM),
        ((nr("perf_event_open"), 0, 0, 0, 0, 0), -errno.EPERM),
        ((nr("io_uring_setup"), 1, 0), -errno.ENOSYS),
        ((nr("socket"), 38, 5, 0), -errno.EAFNOSUPPORT),
        ((nr("socket"), 7 << 32 | 38, 5, 0), -errno.EAFNOSUPPORT),
        ((nr("socket"), 40, 1, 0), -errno.EAFNOSUPPORT),
        ((nr("socket"), 16, 3, 12), -errno.EAFNOSUPPORT),
        ((nr("ioctl"), 0, 0x5412, 0), -errno.EPERM),
        ((nr("ioctl"), 0, 1 << 32 | 0x5412, 0), -errno.EPERM),
        ((nr("ioctl"), 0, 0xFFFFFFFF << 32 | 0x541C, 0), -errno.EPERM),
        ((nr("personality"), 0x0400000), -errno.EPERM),
        ((999,), -errno.ENOSYS),
        ((0xFFFFFFFF,), -errno.ENOSYS),
        # What stays possible gets as far as the kernel itself.
        ((nr("ioctl"), 999, 0x5413, 0), -errno.EBADF),
        ((nr("close"), 999), -errno.EBADF),
        ((nr("socketpair"), 1, 1, 0, 0), -errno.EFAULT),
        ((nr("personality"), 0xFFFFFFFF), 0),
    ]
    assert attack(profile_policy(Profile.DEFAULT), [numbers for numbers, _ in calls]) == [result for _, result in calls]


@HERE
def test_x32_numbers_end_the_process():
    assert attack(profile_policy(Profile.DEFAULT), [(0x40000000 | 39,), (0x40000000 | 520,), (39 | 1 << 32,)])[:2] == [SIGSYS_END] * 2  # type: ignore[index]


def test_kill_errno_zero_and_wide_conditions_reach_the_kernel():
    number = nr("getppid")
    policy = Policy(
        (rule("getppid", KILL_PROCESS, eq(0, 1 << 32)), rule("getppid", fail(0), eq(0, 5)), rule("getppid", fail(77), eq(5, 1 << 63))), default=ALLOW
    )
    calls = [(number, 1 << 32), (number, 5), (number, 5 | 1 << 32, 0, 0, 0, 0, 1 << 63)]
    assert attack(policy, calls) == [SIGSYS_END, 0, -77]


def test_a_filter_with_jumps_that_reach_far_is_taken():
    # 250 values of one condition: their answer lies further than a conditional jump reaches.
    rules = [rule("getppid", fail(value), eq(0, value * 0x100000001)) for value in range(1, 251)]
    policy = Policy(tuple(rules), default=ALLOW)
    number = nr("getppid")
    assert attack(policy, [(number, value * 0x100000001) for value in (1, 125, 250)]) == [-1, -125, -250]


def test_a_notified_call_names_itself_to_the_listener():
    body = """
def work():
    listener = install(bytes.fromhex(given["program"]), given["seccomp"], 4 | 8)
    pid = os.fork()
    if pid == 0:
        call(given["mount"], 0, 0, 0, 0, 0)
        os._exit(0)
    notification = ctypes.create_string_buffer(80)
    assert libc.ioctl(listener, ctypes.c_ulong(0xC0502100), notification) == 0  # SECCOMP_IOCTL_NOTIF_RECV
    _, told, _, number, arch = struct.unpack_from("<QIIiI", notification)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return [told == pid, number, arch]
print(json.dumps(in_child(work)))
"""
    policy = profile_policy(Profile.STRICT)
    assert policy.notifies
    got = script(body, program=compile_policy(policy, Arch.here()).hex(), seccomp=nr("seccomp"), mount=nr("mount"))
    assert got == [True, nr("mount"), Arch.here().audit]


def test_programs_run_under_both_profiles():
    body = """
import subprocess
def work():
    install(bytes.fromhex(given["program"]), given["seccomp"], 4)
    code = "import socket, threading; t = threading.Thread(target=print, args=('thread',)); t.start(); t.join(); socket.socket().close()"
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False).stdout
print(json.dumps(in_child(work)))
"""
    # Under strict there is no listener here: notified calls fail with ENOSYS, and none is made.
    for profile in Profile:
        assert script(body, program=compile_policy(profile_policy(profile), Arch.here()).hex(), seccomp=nr("seccomp")) == "thread\n"


ENTRIES = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <linux/seccomp.h>
#include <linux/filter.h>
#include <unistd.h>
// Read a filter from standard input, install it, then ask for getpid through the entry that argv[1] names.
int main(int argc, char **argv) {
    static struct sock_filter code[4096];
    struct sock_fprog program = {fread(code, 8, 4096, stdin), code};
    if (argc != 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || (program.len && syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)))
        return 100;
    long result;
    if (!strcmp(argv[1], "int80"))
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
    else if (!strcmp(argv[1], "x32"))
        result = syscall(0x40000000 + 39);
    else
        result = syscall(39);
    return result == getpid() ? 0 : 1;
}
"""


@needs("arch:x86_64", "program:gcc")
@pytest.mark.parametrize("profile", list(Profile), ids=lambda profile: profile.value)
def test_32_bit_entry_ends_the_process(profile: Profile, tmp_path: Path):
    program = tmp_path / "entries"
    subprocess.run(["gcc", "-O1", "-w", "-x", "c", "-", "-o", str(program)], input=ENTRIES, text=True, check=True)

    def enter(way: str, code: bytes) -> int:
        return subprocess.run([str(program), way], input=code, check=False).returncode

    code = compile_policy(profile_policy(profile), Arch.X86_64)
    assert enter("syscall", code) == 0
    assert enter("x32", code) == -31
    if enter("int80", b"") != 0:
        pytest.skip("this kernel has no 32-bit entry: int 0x80 does not work without a filter either")
    assert enter("int80", code) == -31


@needs("userns")
def test_namespace_limits_stop_what_the_filter_cannot_see():
    body = """
import struct
def work():
    uid, gid = os.geteuid(), os.getegid()
    before = [open("/" + path).read() for path, _ in given["limits"]]
    assert call(given["unshare"], 0x10000000) == 0  # a user namespace of one's own, with all rights in it
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
    open("/proc/self/gid_map", "w").write(f"0 {gid} 1")
    for path, data in given["limits"]:
        with open("/" + path, "w") as file:
            file.write(data)
    results = [call(given["unshare"], flag) for flag in given["flags"]]
    for flag in given["flags"]:  # clone3, whose flags no filter sees
        result = call(given["clone3"], struct.pack("<8Q", flag, 0, 0, 0, 17, 0, 0, 0), 64)
        if result == 0:
            os._exit(0)
        results.append(result)
    # The limit of the new namespace is ours to see; the one of the namespace we came from is as it was.
    cgroup = call(given["unshare"], 0x02000000)
    # Without CAP_SYS_RESOURCE (24), as programs are, nobody raises it again.
    assert call(given["capset"], struct.pack("<Ii", 0x20080522, 0), bytes(24)) == 0
    raised = []
    for path, _ in given["limits"]:
        try:
            open("/" + path, "w")
            raised.append(path)
        except PermissionError:
            pass
    return [results, cgroup, raised, before]
result = in_child(work)
after = [open("/" + path).read() for path, _ in given["limits"]]
print(json.dumps(result if isinstance(result, str) else [*result, after]))
"""
    limits = [(f"proc/{op.path}", op.data.decode()) for op in namespace_limits_ops("proc")]
    flags = [NEW_USER, NEW_NS, 0x04000000, 0x08000000, 0x20000000, 0x40000000, 0x80]
    got = script(body, limits=limits, flags=flags, unshare=nr("unshare"), clone3=nr("clone3"), capset=nr("capset"))
    assert isinstance(got, list), got
    results, cgroup, raised, before, after = got
    assert results == [-errno.ENOSPC] * (2 * len(flags))
    assert cgroup == 0
    assert raised == []
    assert before == after


@needs("landlock")
def test_landlock_confines_writing_and_leaked_directories(tmp_path: Path):
    from sandbox.sec.landlock import landlock_op

    body = """
def rule(ruleset, path, access):
    fd = os.open(path, os.O_PATH)
    attribute = struct.pack("<Qi", access, fd)
    assert call(445, ruleset, 1, attribute, 0) == 0, path
    os.close(fd)
def work():
    outside = os.open(given["outside"], os.O_PATH)
    handled = struct.pack("<3Q", *given["handled"])
    ruleset = call(444, handled, 24 if given["handled"][2] else 8, 0)
    assert ruleset >= 0, os.strerror(-ruleset)
    for path, access in given["rules"]:
        rule(ruleset, path, access)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert call(446, ruleset, 0) == 0
    def tried(attempt):
        try:
            attempt()
            return 0
        except OSError as error:
            return error.errno
    root, tmp = given["rules"][0][0], given["rules"][1][0]
    return [
        tried(lambda: open(root + "/file").read()),
        tried(lambda: open(root + "/file", "w")),
        tried(lambda: os.mkdir(root + "/dir")),
        tried(lambda: open(tmp + "/new", "w").write("x")),
        tried(lambda: os.mkdir(tmp + "/dir")),
        tried(lambda: os.rename(tmp + "/new", tmp + "/dir/new")),
        tried(lambda: os.mkfifo(tmp + "/fifo")),
        tried(lambda: os.mknod(tmp + "/device", 0o020666, os.makedev(1, 3))),
        tried(lambda: open(given["one"], "w").write("x")),
        tried(lambda: os.open("secret", os.O_RDONLY, dir_fd=outside)),
        tried(lambda: os.kill(given["bystander"], 0)),
    ]
print(json.dumps(in_child(work)))
"""
    for name in ("root", "outside", "root/tmp"):
        (tmp_path / name).mkdir()
    for name in ("root/file", "outside/secret", "root/one"):
        (tmp_path / name).write_text("canary")
    abi = int(str(script("print(call(444, 0, 0, 1))")))
    op = landlock_op(abi, root="root", writable=["tmp"], writable_files=["one"])
    assert op is not None
    places = {"root": tmp_path / "root", "tmp": tmp_path / "root/tmp", "one": tmp_path / "root/one"}
    with subprocess.Popen([sys.executable, "-I", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as bystander:
        got = script(
            body,
            outside=str(tmp_path / "outside"),
            one=str(places["one"]),
            handled=[op.handled_fs, op.handled_net, op.scoped],
            rules=[(str(places[slot]), access) for slot, access in op.rules],
            bystander=bystander.pid,
        )
    no = errno.EACCES
    assert got == [0, no, no, 0, 0, 0, 0, no, 0, no, errno.EPERM if abi >= 6 else 0]
    assert (tmp_path / "outside/secret").read_text() == "canary"
