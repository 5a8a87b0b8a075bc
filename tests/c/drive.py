"""Drive a launcher that was built with sanitizers through what containers do: ``drive.py LAUNCHER DIRECTORY-OF-REPORTS``."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from sandbox import _plan as plan
from sandbox._launch import codec, driver, wire

NEWUSER, NEWNS, NEWPID = 0x10000000, 0x00020000, 0x20000000
TIMEOUT_S = 20.0


def encoded(ops: Sequence[plan.Op], slots: codec.SlotTable) -> bytes:
    return struct.pack("<I", len(ops)) + codec.encode_ops(ops, slots)


def program(*argv: str, **options: object) -> codec.ExecRequest:
    words = tuple(word.encode() for word in argv)
    return codec.ExecRequest(words, (words[0],), groups=None, **options)  # type: ignore[arg-type]


def creation(init_ops: Sequence[plan.Op], *, flags: int = 0, request: codec.ExecRequest | None = None) -> bytes:
    """A container that sees the host's tree, with its own procfs for init."""
    uid_map, gid_map = (codec.encode_maps((plan.IdMap(0, own, 1),)) for own in (os.geteuid(), os.getegid()))
    ready = (plan.Unshare(NEWNS), plan.MakePrivate(), plan.NewFs("proc", "proc"), plan.Sethook("proc", plan.ROLE_PROC), *init_ops)
    return codec.encode_create(
        codec.CreateRequest(
            clone_flags=NEWUSER | NEWPID,
            flags=flags | wire.CREATE_DENY_SETGROUPS,
            uid=0,
            gid=0,
            uid_map=uid_map,
            gid_map=gid_map,
            joins=(),
            cleanup=(),
            groups=b"",
            host_ops=encoded((), codec.SlotTable()),
            init_ops=encoded(ready, codec.SlotTable()),
            exec=codec.encode_exec(request) if request else b"",
        )
    )


def expect(channel: driver.Channel, kind: type) -> codec.Event:
    got = channel.receive(TIMEOUT_S)
    assert got is not None, f"the channel ended; {kind.__name__} was to come"
    for fd in got[1]:
        os.close(fd)
    assert isinstance(got[0], kind), got[0]
    return got[0]


def start(launcher: driver.Launcher, body: bytes) -> driver.Channel:
    channel = launcher.create(body, ())
    expect(channel, codec.Cloned)
    expect(channel, codec.Ready)
    return channel


def end_of(channel: driver.Channel, request: codec.ExecRequest) -> codec.End:
    channel.send(wire.Msg.EXEC, codec.encode_exec(request))
    end = expect(channel, codec.End)
    assert isinstance(end, codec.End)
    return end


def status_of(end: codec.End) -> int:
    assert end.cause == wire.Cause.NONE, end
    return os.waitstatus_to_exitcode(end.status)


def drive_one_at_a_time(launcher: driver.Launcher) -> None:
    channel = start(launcher, creation(()))
    assert status_of(end_of(channel, program("/bin/true"))) == 0
    assert status_of(end_of(channel, program("/bin/sh", "-c", "sleep 100 & exit 3"))) == 3  # leaves something behind
    assert end_of(channel, program("/bin/sleep", "100", wall_ns=10_000_000)).cause == wire.Cause.WALL
    assert end_of(channel, program("/bin/sh", "-c", "while :; do :; done", cpu_ns=10_000_000)).cause == wire.Cause.CPU
    missing = end_of(channel, program("/no/such/program"))
    assert (missing.cause, missing.status) == (wire.Cause.NOT_STARTED, wire.Step.EXECVE)
    long = program("/bin/true", *(str(n) for n in range(20_000)))  # its body comes in a memfd, its table is mapped
    assert status_of(end_of(channel, long)) == 0
    channel.send(wire.Msg.EXEC, b"nonsense")
    refused = expect(channel, codec.End)
    assert isinstance(refused, codec.End)
    assert refused.status == wire.Step.REQUEST
    finish(channel)


def drive_two_at_once(launcher: driver.Launcher) -> None:
    first = start(launcher, creation(()))
    second, theirs = driver.Channel.pair()
    first.send(wire.Msg.CHANNEL, b"", [theirs])
    os.close(theirs)
    first.send(wire.Msg.EXEC, codec.encode_exec(program("/bin/sleep", "100", flags=wire.EXEC_REPORT_START)))
    expect(first, codec.Started)
    assert status_of(end_of(second, program("/bin/sh", "-c", "sleep 100 & exit 4"))) == 4
    first.send(wire.Msg.KILL, struct.pack("<BI", 1, 9))
    end = expect(first, codec.End)
    assert isinstance(end, codec.End)
    assert end.cause == wire.Cause.KILLED
    second.close()
    operations = encoded((plan.Open("a", "/etc", 0o10000000), plan.Unlink("/no/such", optional=True)), codec.SlotTable(first=0))
    first.send(wire.Msg.OPS, codec.block(operations) + struct.pack("<IH", 1, wire.OWN_SLOTS))
    done = expect(first, codec.Done)
    assert isinstance(done, codec.Done)
    assert done.errno == 0, done
    finish(first)


def drive_other_ways(launcher: driver.Launcher) -> None:
    oneshot = start(launcher, creation((), flags=wire.CREATE_ONESHOT, request=program("/bin/true")))
    expect(oneshot, codec.End)
    expect(oneshot, codec.Gone)
    direct = launcher.create(creation((), flags=wire.CREATE_DIRECT, request=program("/bin/true")), ())
    expect(direct, codec.Cloned)
    gone = expect(direct, codec.Gone)
    assert isinstance(gone, codec.Gone)
    assert gone.status == 0
    failing = launcher.create(creation((plan.Chdir("/no/such"),)), ())
    expect(failing, codec.Cloned)
    failed = expect(failing, codec.Failed)
    assert isinstance(failed, codec.Failed)
    assert (failed.phase, failed.index) == (wire.Phase.INIT, 4)
    expect(failing, codec.Gone)
    broken = launcher.create(b"nonsense", ())
    refused = expect(broken, codec.Failed)
    assert isinstance(refused, codec.Failed)
    assert refused.phase == wire.Phase.REQUEST


def drive_ahead(launcher: driver.Launcher) -> None:
    """Containers made ahead: completed, found complete, failing late, let go of before and after they were made."""
    nothing = encoded((), codec.SlotTable())
    prepared = launcher.create(creation((), flags=wire.CREATE_PREPARED | wire.CREATE_CAN_WAIT), ())
    cloned = expect(prepared, codec.Cloned)
    assert isinstance(cloned, codec.Cloned)
    launcher.complete(codec.encode_complete(cloned.pid, nothing, encoded((plan.Chdir("/"),), codec.SlotTable())), ())
    expect(prepared, codec.Ready)
    assert status_of(end_of(prepared, program("/bin/true"))) == 0
    launcher.complete(codec.encode_complete(cloned.pid, nothing, nothing), ())  # once is enough: it is not prepared any more
    assert status_of(end_of(prepared, program("/bin/true"))) == 0
    finish(prepared)
    failing = launcher.create(creation((), flags=wire.CREATE_PREPARED), ())
    cloned = expect(failing, codec.Cloned)
    assert isinstance(cloned, codec.Cloned)
    launcher.complete(codec.encode_complete(cloned.pid, nothing, encoded((plan.Chdir("/no/such"),), codec.SlotTable())), ())
    failed = expect(failing, codec.Failed)
    assert isinstance(failed, codec.Failed)
    assert (failed.phase, failed.index) == (wire.Phase.INIT, 4)  # counted on from the early ones
    expect(failing, codec.Gone)
    malformed = launcher.create(creation((), flags=wire.CREATE_PREPARED), ())
    cloned = expect(malformed, codec.Cloned)
    assert isinstance(cloned, codec.Cloned)
    launcher.complete(codec.encode_complete(cloned.pid, nothing, nothing) + b"more", ())
    failed = expect(malformed, codec.Failed)
    assert isinstance(failed, codec.Failed)
    assert failed.phase == wire.Phase.REQUEST
    expect(malformed, codec.Gone)
    launcher.create(creation((), flags=wire.CREATE_CAN_WAIT), ()).close()
    dropped = launcher.create(creation((), flags=wire.CREATE_PREPARED | wire.CREATE_CAN_WAIT), ())
    expect(dropped, codec.Cloned)
    finish(dropped)
    finish(start(launcher, creation((), flags=wire.CREATE_CAN_WAIT)))


def finish(channel: driver.Channel) -> None:
    """A half-closed channel is a closed one to init; GONE still comes back."""
    channel.sock.shutdown(1)
    expect(channel, codec.Gone)
    channel.close()


def main(binary: str, reports: Path) -> None:
    driver._BINARY = binary  # type: ignore[misc]
    launcher = driver.Launcher.start()
    try:
        for _ in range(3):
            drive_one_at_a_time(launcher)
            drive_two_at_once(launcher)
            drive_other_ways(launcher)
            drive_ahead(launcher)
    finally:
        launcher.close()
        # ASan warns that _exit in a child of CLONE_VM is on a stack that it does not know; that is no error.
        found = [text for path in reports.glob("report*") if "ERROR: " in (text := path.read_text()) or "runtime error: " in text]
        print("\n".join(found), end="")
    assert not found
    print("drive: all as expected")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
