"""What passes between containers: counted where they cannot falsify it, and captured."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from sandbox import Capture, ClosedError, Container, NetStats, Network, UsageError
from tests.leak.killed import run_and_kill
from tests.live.traffic import FLOOD, HEADS, SINK, meet, running, send
from tests.support import needs, patience

pytestmark = [needs("root", "userns"), pytest.mark.usefixtures("no_leftovers")]

def read_pcap(path: Path) -> list[tuple[float, bytes, int]]:
    """Times, bytes and whole lengths of the packets of a pcap; refuses what tcpdump would."""
    data = path.read_bytes()
    magic, major, minor, zone, _, snaplen, link = struct.unpack_from("=IHHiIII", data)
    assert (magic, major, minor, zone, link) == (0xA1B23C4D, 2, 4, 0, 1)
    at, found = 24, list[tuple[float, bytes, int]]()
    while at < len(data):
        seconds, ns, here, length = struct.unpack_from("=IIII", data, at)
        assert here <= snaplen
        assert here <= length
        assert at + 16 + here <= len(data)
        assert ns < 10**9
        found.append((seconds + ns / 1e9, data[at + 16 : at + 16 + here], length))
        at += 16 + here
    return found


def payloads(path: Path) -> list[bytes]:
    return [packet[HEADS:] for _, packet, _ in read_pcap(path) if packet[12:14] == b"\x08\x00" and packet[23] == 17]


def file_of(directory: Path) -> Path:
    return directory / "out.pcap"


# ---- Counters ----


def test_what_a_container_sends_and_receives_is_counted_at_its_port() -> None:
    with Network("counted", internal=True) as net, Container(net=net) as one, Container(net=net) as two, running(two, SINK):
        meet(one, two)
        before = one.net_stats()["counted"], two.net_stats()["counted"]
        send(one, two, 50)
        after = one.net_stats()["counted"], two.net_stats()["counted"]
        # The kernel may ask for an address once more in between: frames of 42 bytes.
        assert 50 <= after[0].sent_packets - before[0].sent_packets == after[1].received_packets - before[1].received_packets <= 53
        sent = after[0].sent_bytes - before[0].sent_bytes
        assert 50 * (100 + HEADS) <= sent == after[1].received_bytes - before[1].received_bytes <= 50 * (100 + HEADS) + 3 * 42
        assert after[1].sent_bytes - before[1].sent_bytes <= 3 * 42
        assert (after[0].received_dropped, after[0].sent_errors, after[1].sent_dropped) == (0, 0, 0)
        assert net.stats() == after[0] + after[1]


def test_counters_begin_with_each_network_and_end_with_it() -> None:
    with Network("a", internal=True) as a, Network("b", internal=True) as b, Container(net=[a, b]) as one, Container(net=a) as two, running(two, SINK):
        while one.net_stats()["a"].sent_packets < 10:
            send(one, two, 10)
        stats = one.net_stats()
        assert list(stats) == ["a", "b"]
        assert stats["a"].sent_packets >= 10 > stats["b"].sent_packets
        one.disconnect(a)
        assert list(one.net_stats()) == ["b"]
        one.connect(a)
        assert one.net_stats()["a"].sent_packets < 10
    with pytest.raises(ClosedError):
        one.net_stats()
    with pytest.raises(ClosedError):
        a.stats()


def test_containers_without_networks_have_no_counters() -> None:
    with Container() as c, Container(net=c) as beside:
        assert c.net_stats() == {}
        for container in (beside,):
            with pytest.raises(UsageError, match="another container"):
                container.net_stats()
    with Network(internal=True) as net:
        assert net.stats() == NetStats()


@needs("cgroup:memory", "cgroup:pids")
def test_a_monitor_has_what_passes_all_networks_of_a_container() -> None:
    with (
        Network("a", internal=True) as a,
        Network("b", internal=True) as b,
        Container(net=[a, b], memory="256M") as one,
        Container(net=a) as two,
        Container(memory="256M") as alone,
        running(two, SINK),
    ):
        with one.monitor(60) as monitor, alone.monitor(60) as other:
            meet(one, two)
            send(one, two, 50)
        first, last = monitor.rows[0], monitor.rows[-1]
        assert first.net_sent_bytes is not None
        assert last.net_sent_bytes is not None
        assert last.net_sent_bytes - first.net_sent_bytes >= 50 * (100 + HEADS)
        stats = one.net_stats()
        assert last.net_received_bytes == stats["a"].received_bytes + stats["b"].received_bytes
        assert last.net_dropped == 0
        assert {row.net_sent_bytes for row in other.rows} == {None}
        with one.monitor(60) as monitor:
            a.close()
            b.close()
        assert monitor.rows[-1].net_sent_bytes is None


# ---- Captures ----


def test_a_capture_has_all_packets_in_order_and_nothing_of_others(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    with Network(internal=True) as net, Container(net=net) as one, Container(net=net) as two, Container(net=net) as other, running(two, SINK):
        meet(one, two)
        meet(other, two)
        began = time.time()
        with one.capture(path) as capture:
            send(other, two, 20)
            send(one, two, 50)
        assert [payload[:6] for payload in payloads(path)] == [b"%06d" % number for number in range(50)]
        send(one, two, 5)
        packets = read_pcap(path)
        assert (len(packets), path.stat().st_size, path.stat().st_mode & 0o777) == (capture.packets, capture.bytes, 0o600)
        assert (capture.dropped, capture.is_full) == (0, False)
        times = [time_ for time_, _, _ in packets]
        assert times == sorted(times)
        assert began - 0.01 < times[0] <= times[-1] < time.time() + 0.01
        if shutil.which("tcpdump"):
            said = subprocess.run(["tcpdump", "-nnr", path, "udp"], capture_output=True, text=True, check=True).stdout.splitlines()
            assert len(said) == 50
            assert f"{one.address}." in said[0]
            assert f"{two.address}.9000: UDP, length 100" in said[0]


def test_packets_are_cut_to_the_length_that_was_asked_for(tmp_path: Path) -> None:
    with Network(internal=True) as net, Container(net=net) as one, Container(net=net) as two, running(two, SINK):
        meet(one, two)
        with one.capture(file_of(tmp_path), net, snaplen=60):
            send(one, two, 3, 1000)
        packets = [(len(packet), length) for _, packet, length in read_pcap(file_of(tmp_path)) if packet[23] == 17]
        assert packets == [(60, 1000 + HEADS)] * 3


@pytest.mark.parametrize(("bounds", "number", "size"), [({"max_packets": 7}, 7, 24 + 7 * (16 + 42 + 100)), ({"max_bytes": 2000}, 12, 24 + 12 * 158)])
def test_a_capture_ends_at_its_bounds(tmp_path: Path, bounds: dict[str, int], number: int, size: int) -> None:
    with Network(internal=True) as net, Container(net=net) as one, Container(net=net) as two, running(two, SINK):
        meet(one, two)
        with one.capture(file_of(tmp_path), **bounds) as capture:  # type: ignore[arg-type]
            send(one, two, 100)
        assert (capture.packets, capture.bytes, capture.is_full) == (number, size, True)
        assert file_of(tmp_path).stat().st_size == size
        assert [payload[:6] for payload in payloads(file_of(tmp_path))] == [b"%06d" % n for n in range(number)]


def test_memory_stays_where_it_is_while_a_container_floods(tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with Network(internal=True) as net, Container(net=net) as one, Container(net=net) as two:
        with one.capture(file_of(tmp_path), max_packets=10):  # what is imported is imported
            pass
        before = resident()
        with one.capture(file_of(tmp_path), snaplen=100, max_bytes="24M") as capture, running(one, FLOOD, str(two.address), "20"):
            end = time.monotonic() + patience(120)
            while not capture.is_full and time.monotonic() < end:
                assert resident() - before < 64 << 20  # the ring has 16
        assert capture.is_full
        assert (24 << 20) - 200 < file_of(tmp_path).stat().st_size == capture.bytes <= 24 << 20
        assert len(read_pcap(file_of(tmp_path))) == capture.packets


def test_what_comes_faster_than_it_is_written_is_counted(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with Network(internal=True) as net, Container(net=net) as one, Container(net=net) as two:
        capture = one.capture(pipe).start()
        with running(one, FLOOD, str(two.address), "1400"):
            while one.net_stats()[net.name].sent_bytes < 64 << 20:  # nobody reads: pipe and ring are full by then
                pass
        os.set_blocking(read, True)
        reader = threading.Thread(target=lambda: [*iter(lambda: len(os.read(read, 1 << 16)), 0)])
        reader.start()
        capture.stop()
        reader.join()
        os.close(read)
        assert capture.dropped > 1000
        assert capture.packets * 1400 < 64 << 20


def test_a_capture_ends_with_its_container_and_with_its_network(tmp_path: Path) -> None:
    with Network(internal=True) as net, Container(net=net) as two, running(two, SINK):
        with Container(net=net) as one:
            meet(one, two)
            capture = one.capture(file_of(tmp_path)).start()
            send(one, two, 5)
        capture.stop()
        assert len(payloads(file_of(tmp_path))) == 5
        with Container(net=net) as one:
            meet(one, two)
            with one.capture(file_of(tmp_path)) as capture:
                send(one, two, 6)
                one.disconnect(net)
        assert len(payloads(file_of(tmp_path))) == 6
    with Network(internal=True) as net, Container(net=net) as one, one.capture(file_of(tmp_path)) as capture:
        net.close()
    assert not capture.is_full


def test_a_capture_that_cannot_be_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    with Network(internal=True) as a, Network(internal=True) as b, Container(net=[a, b]) as c, Container() as alone, Container(net=c) as beside:
        for container, network, words in ((c, None, "say which"), (alone, None, "no network"), (alone, a, "no network that"), (beside, a, "another container")):
            with pytest.raises(UsageError, match=words):
                container.capture(path, network)
        for wrong in ({"snaplen": 0}, {"snaplen": 1 << 20}, {"max_bytes": 10}, {"max_packets": 0}, {"max_packets": "many"}):
            with pytest.raises(UsageError):
                c.capture(path, a, **wrong)  # type: ignore[arg-type]
        c.disconnect(b)
        capture = c.capture(path)
        c.disconnect(a)
        with pytest.raises(ClosedError), capture:
            pass
        assert not path.exists()
        c.connect(a)
        with pytest.raises(FileNotFoundError), c.capture(tmp_path / "nowhere" / "file"):
            pass
        with c.capture(path) as capture, pytest.raises(UsageError, match="before"):
            capture.start()
        capture.stop()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_told_at_the_end() -> None:
    with Network(internal=True) as net, Container(net=net) as one, pytest.raises(OSError, match="No space"), one.capture("/dev/full"):
        pass
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)  # written to, not replaced


def test_nothing_of_a_capture_outlives_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import sandbox, signal\n"
        "from sandbox import Container, Network\n"
        "net = Network(internal=True).create()\n"
        "c = Container(net=net).create()\n"
        f"capture = c.capture({str(file_of(tmp_path))!r}).start()\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    assert run_and_kill(code, patience_s=2.0) == []
    assert read_pcap(file_of(tmp_path)) == []


def test_a_forked_child_keeps_no_socket_and_no_ring(tmp_path: Path) -> None:
    with Network(internal=True) as net, Container(net=net) as c, c.capture(file_of(tmp_path)) as capture:
        child = os.fork()
        if not child:
            mine = Path("/proc/self/maps").read_text()
            kept = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]
            numbers = {line.split()[-1] for line in Path("/proc/self/net/packet").read_text().splitlines()[1:]}
            capture.stop()
            os._exit("socket:[" in mine or any(f"socket:[{number}]" in kept for number in numbers))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert isinstance(capture, Capture)
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


def test_a_capture_takes_the_place_of_what_is_there_and_writes_through_no_link(tmp_path: Path) -> None:
    secret, path = tmp_path / "secret", tmp_path / "out.pcap"
    secret.write_text("kept")
    with Network(internal=True) as net, Container(net=net) as c:
        for plant in (lambda: path.symlink_to(secret), lambda: path.symlink_to("/dev/null"), lambda: path.touch(0o666)):
            path.unlink(missing_ok=True)
            plant()
            with c.capture(path) as capture:
                assert path.is_file()
                assert not path.is_symlink()
            assert (path.stat().st_mode & 0o777, path.stat().st_size) == (0o600, capture.bytes)
        assert secret.read_text() == "kept"
        with pytest.raises(OSError, match="directory"), c.capture(tmp_path):
            pass
        path.unlink()
        os.mkfifo(path)
        os.chown(path, 1000, 1000)
        with pytest.raises(UsageError, match="name a file"), c.capture(path):
            pass
    assert sorted(os.listdir(tmp_path)) == ["out.pcap", "secret", *(["tmp"] if (tmp_path / "tmp").exists() else [])]
