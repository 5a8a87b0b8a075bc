"""Shapes: what is read and refused, what they come to for the kernel's queues, and the messages that say so."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import UsageError
from sandbox.net import netlink, qdisc
from sandbox.net.counters import NetStats, stats_of
from sandbox.net.shape import (
    JOINED,
    LEAST_RATE,
    MOST,
    MOST_BURST,
    MOST_LINE_PACKETS,
    MOST_QUEUE,
    MOST_RATE,
    QUEUE_S,
    Bucket,
    Line,
    Queues,
    Shape,
    queues_of,
    to_rate,
)

RATES = st.integers(LEAST_RATE, MOST_RATE)
MTUS = st.integers(576, 65535)
FRACTIONS = st.floats(0, 1)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    rate = draw(st.none() | RATES)
    delay = draw(st.floats(0, 60))
    return Shape(
        rate,
        burst=draw(st.none() | st.integers(1, MOST_BURST)) if rate else None,
        delay=delay,
        jitter=draw(st.floats(0, delay)),
        loss=draw(FRACTIONS),
        duplicate=draw(FRACTIONS),
    )


@pytest.mark.parametrize(
    ("said", "bits"),
    [
        (1000, 1000), ("1000", 1000), ("8k", 8000), ("10M", 10**7), ("10m", 10**7), ("1.5G", 15 * 10**8), ("1T", 10**12), ("2.5 Mbit", 2_500_000),
        ("512kbit/s", 512_000), ("100MBIT", 10**8), (" 10M ", 10**7), ("1.1M", 1_100_000), ("0.1M", 100_000),
    ],
)  # fmt: skip
def test_rates_are_bits_per_second_and_powers_of_a_thousand(said: int | str, bits: int) -> None:
    assert to_rate(said) == Shape(said).rate == bits  # type: ignore[arg-type]  # a converter's


@pytest.mark.parametrize("said", ["10Mbps", "10MB/s", "10MiB", "10Mi", "10MB", "10 bytes", "10KBps", "10b"])
def test_what_may_mean_bytes_is_refused_in_words(said: str) -> None:
    with pytest.raises(UsageError, match="may mean bytes"):
        to_rate(said)


@pytest.mark.parametrize(
    "said", [0, -1, 999, 10**12 + 1, True, 1e6, None, b"1M", "", "M", "1e6", "-1M", "٣M", "1,5M", "fast", "10M10M", "1" * 30, "1T1", "1.M", "999bit", "inf"]
)
def test_other_rates_are_refused(said: object) -> None:
    with pytest.raises(UsageError, match="rate"):
        to_rate(said)


@given(st.text(max_size=20))
def test_no_text_is_anything_but_a_rate_or_refused(said: str) -> None:
    with contextlib.suppress(UsageError):
        assert LEAST_RATE <= to_rate(said) <= MOST_RATE


@pytest.mark.parametrize(
    ("what", "given_"),
    [
        ("burst", {"burst": 3000}), ("burst", {"rate": "1M", "burst": 0}), ("burst", {"rate": "1M", "burst": "2G"}), ("burst", {"rate": "1M", "burst": 1.5}),
        ("jitter", {"jitter": 0.1}), ("jitter", {"delay": 0.1, "jitter": 0.2}), ("delay", {"delay": -1}), ("delay", {"delay": 61}), ("delay", {"delay": "1s"}),
        ("delay", {"delay": float("nan")}), ("delay", {"delay": True}), ("loss", {"loss": 1.1}), ("loss", {"loss": -0.1}), ("loss", {"loss": "1%"}),
        ("duplicate", {"duplicate": 2}), ("duplicate", {"duplicate": float("inf")}),
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(what: str, given_: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=what):
        Shape(**given_)


def test_a_burst_smaller_than_a_packet_is_refused() -> None:
    with pytest.raises(UsageError, match="1514"):
        queues_of(Shape("1M", burst=1513), mtu=1500)
    assert queues_of(Shape("1M", burst=1514), mtu=1500).bucket is not None


def test_nothing_comes_to_nothing() -> None:
    assert Shape().is_nothing
    assert queues_of(Shape(), mtu=1500) == Queues(None, None)
    assert Shape("1M").kinds == ("tbf",)
    assert Shape("1M", loss=0.1).kinds == ("tbf", "netem")
    assert not Shape(duplicate=0.5).is_nothing


@given(shapes(), MTUS)
def test_queues_hold_what_they_must_and_are_bounded(shape: Shape, mtu: int) -> None:
    frame = mtu + 14
    try:
        queues = queues_of(shape, mtu=mtu)
    except UsageError:
        assert shape.burst is not None
        assert shape.burst < frame
        return
    bucket, line = queues.bucket, queues.line
    assert (bucket is None, line is None) == (shape.rate is None, not shape.has_line)
    if bucket is not None:
        assert shape.rate is not None
        assert bucket.rate * 8 <= shape.rate < bucket.rate * 8 + 8
        assert frame <= bucket.burst <= MOST_BURST
        assert shape.burst in (None, bucket.burst)
        assert min(bucket.rate * QUEUE_S, MOST_QUEUE) <= bucket.limit <= 2 * MOST_QUEUE
        assert bucket.limit >= 10 * frame
    if line is not None:
        assert line.delay_ns == pytest.approx(shape.delay * 1e9, abs=1)
        assert 0 <= line.jitter_ns <= line.delay_ns
        assert (line.loss > 0) == (shape.loss > 0)
        assert line.loss == pytest.approx(shape.loss * MOST, abs=1)
        assert line.duplicate <= MOST
        # However the packets come, the memory of the host that they take has an end: the most is a line of joined ones, or one of cut ones.
        largest = JOINED if bucket is None or bucket.burst >= JOINED else max(frame, bucket.burst)
        assert 1 <= line.limit <= MOST_LINE_PACKETS
        assert line.limit * largest <= 1000 * JOINED or largest < JOINED


@given(RATES, st.floats(0, 0.2))
def test_a_line_of_the_usual_mtu_carries_what_the_rate_and_the_delay_make(rate: int, delay: float) -> None:
    line = queues_of(Shape(rate, delay=delay, loss=0.001), mtu=1500).line
    assert line is not None
    assert line.limit * 1514 >= min(rate / 8 * delay, MOST_LINE_PACKETS * 1514)


@given(shapes(), st.integers(1, 1 << 30), st.integers(0, 1 << 40))
def test_messages_are_whole_and_say_what_they_should(shape: Shape, index: int, generation: int) -> None:
    queues = queues_of(Shape(shape.rate, delay=shape.delay, loss=shape.loss, duplicate=shape.duplicate), mtu=1500)
    messages = qdisc.installation(queues, index, generation)
    assert len(messages) == len(shape.kinds)
    for (data, what), kind in zip(messages, shape.kinds, strict=True):
        length, number, flags, *_ = struct.unpack_from("=IHHII", data)
        assert (length, number, flags) == (len(data), 36, 0x0505)
        assert struct.unpack_from("=i", data, 20)[0] == index
        found = dict(netlink.attributes(data[36:]))
        assert found[1] == kind.encode() + b"\0"
        assert what
        if kind == "netem":
            assert queues.line is not None
            latency, limit, loss, gap, duplicate, _ = struct.unpack("=6I", found[2])
            assert (limit, loss, gap, duplicate) == (queues.line.limit, queues.line.loss, 0, queues.line.duplicate)
            assert latency * 64 == pytest.approx(queues.line.delay_ns, abs=64)
        else:
            assert queues.bucket is not None
            inner = dict(netlink.attributes(found[2]))
            assert struct.unpack("=Q", inner[4])[0] == queues.bucket.rate
            assert struct.unpack("=I", inner[6])[0] == queues.bucket.burst
            assert struct.unpack_from("=I", inner[1], 24)[0] == queues.bucket.limit
            assert struct.unpack_from("=I", inner[1], 8)[0] == min(queues.bucket.rate, MOST)


@given(st.integers(0, 1 << 40))
def test_handles_differ_from_the_last_ones_and_from_ingress(generation: int) -> None:
    before, after = qdisc.handles(generation), qdisc.handles(generation + 1)
    assert not set(before) & set(after)
    for handle in (*before, *after):
        assert 0 < handle >> 16 < 0xFFFF
        assert not handle & 0xFFFF


def test_the_innermost_queue_counts_what_is_lost() -> None:
    bucket, line = Bucket(1, 2, 3), Line(1, 0, 0, 0, 10)
    outer, inner = qdisc.handles(7)
    assert [qdisc.innermost(Queues(*pair), 7) for pair in ((None, None), (bucket, None), (None, line), (bucket, line))] == [None, outer, outer, inner]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    assert all(isinstance(value, bytes) for _, value in netlink.attributes(data, strict=False))
    assert qdisc.drops_of(data) >= 0


def test_drops_are_found_where_the_kernel_says_them() -> None:
    queue = netlink.attribute(3, struct.pack("=5I", 1, 2, 77, 4, 5))
    assert qdisc.drops_of(bytes(20) + netlink.attribute(1, b"tbf\0") + netlink.attribute(7, queue)) == 77
    assert qdisc.drops_of(bytes(20) + netlink.attribute(1, b"tbf\0")) == 0


def test_what_a_port_sends_its_container_receives() -> None:
    figures = struct.pack("=8Q", 1, 2, 30, 40, 5, 6, 7, 8)  # packets, bytes, errors, dropped: each received by the port, then sent
    stats = stats_of(bytes(12) + netlink.attribute(1, figures + bytes(128)))
    assert (stats.sent_packets, stats.received_packets, stats.sent_bytes, stats.received_bytes) == (1, 2, 30, 40)
    assert (stats.sent_errors, stats.received_errors, stats.sent_dropped, stats.received_dropped) == (5, 6, 7, 8)
    assert stats + NetStats(sent_bytes=5) == NetStats(40, 35, 2, 1, 6, 5, 8, 7)
    with pytest.raises(ValueError, match="without figures"):
        stats_of(bytes(12))
