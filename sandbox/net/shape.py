"""`Shape`: how fast, how late and how reliably packets pass; and what that comes to for the kernel's queues. Pure."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any, Final

from attrs import field, frozen

from sandbox._types import to_size
from sandbox.errors import UsageError

LEAST_RATE, MOST_RATE = 1_000, 10**12  # bits per second
MOST_DELAY_S: Final = 60.0
MOST_BURST: Final = 1 << 30
TICK_S: Final = 0.004  # between two looks of a kernel with CONFIG_HZ=250 and coarse timers: what is due in one has to be allowed at once
QUEUE_S: Final = 0.1  # how long a packet waits behind others before the queue is full; tc's manual page has 50 to 400 ms
LEAST_QUEUE: Final = 10  # packets
MOST_QUEUE: Final = 32 << 20  # bytes: a queue is memory of the host that a container fills
JOINED: Final = 1 << 16  # bytes of the largest packet: veth hands on what TCP or UDP joined; tbf cuts those that are larger than its burst
MOST_JOINED_BURST: Final = JOINED // 2
LINE_PACKETS: Final = 1_000  # netem's own default; of up to JOINED bytes each
MOST_LINE_PACKETS: Final = 8_192  # where packets are cut to the MTU
ETHERNET_HEAD: Final = 14
MOST: Final = 0xFFFFFFFF

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_RATE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)(?:bit(?:/s)?)?", re.IGNORECASE | re.ASCII)
_BYTES: Final = re.compile(r".*(bps|b/s|[kmgt](?:i|i?b)|byte.*|\db)", re.IGNORECASE | re.ASCII)


def to_rate(value: object, *, what: str = "rate") -> int:
    """Read bits per second: a number, or ``"10M"``, ``"1.5Gbit"``, ``"512kbit/s"`` (powers of 1000). Raises: UsageError."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise UsageError(f"{what}: {value!r} is not a rate; give bits per second as a whole number, or a string such as '10M'")
    rate = value if isinstance(value, int) else _parse_rate(value, what)
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise UsageError(f"{what}: {value!r} is out of range; give 1k to 1T bits per second")
    return rate


def _parse_rate(text: str, what: str) -> int:
    match = _RATE.fullmatch(text.strip())
    if match is not None:
        return int(Decimal(match[1]) * _UNITS[match[2].lower()])
    if _BYTES.fullmatch(text.strip()[:100]):
        raise UsageError(f"{what}: {text[:50]!r} may mean bytes, or powers of 1024; write bits per second, as '10M' or '10Mbit'")
    raise UsageError(f"{what}: {text[:50]!r} is not a rate; write bits per second, as '10M', '1.5Gbit' or '512kbit/s'")


def _to_optional_rate(value: Any) -> int | None:  # noqa: ANN401
    return None if value is None else to_rate(value)


def _to_burst(value: Any) -> int | None:  # noqa: ANN401
    if value is None:
        return None
    burst = to_size(value, what="burst", least=1)
    if burst > MOST_BURST:
        raise UsageError(f"burst: {value!r} is out of range; give up to 1G")
    return burst


def _number(value: Any, what: str, unit: str) -> float:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UsageError(f"{what}: {value!r} is not {unit}")
    return float(value)


def _to_delay(value: Any) -> float:  # noqa: ANN401
    delay = _number(value, "delay, jitter", "a time; give seconds as a number")
    if not 0 <= delay <= MOST_DELAY_S:
        raise UsageError(f"delay, jitter: {value!r} is out of range; give 0 to {MOST_DELAY_S:g} seconds")
    return delay


def _to_fraction(value: Any) -> float:  # noqa: ANN401
    fraction = _number(value, "loss, duplicate", "a fraction; 0.01 is one packet in a hundred")
    if not 0 <= fraction <= 1:
        raise UsageError(f"loss, duplicate: {value!r} is out of range; give a fraction from 0 to 1: 0.01 is one packet in a hundred")
    return fraction


@frozen
class Shape:
    """What happens to a container's packets on its way into a network, and, apart from those, to the ones on their way to it.

    rate: **bits** per second, as rates of networks are said, of whole Ethernet frames: a number, or ``"10M"``, ``"1.5Gbit"`` (powers of
        1000; never bytes). None: as fast as it goes.
    burst: bytes (``"64k"`` is 65,536) that pass at full speed after a rest; None: what the rate brings in 4 ms, two packets at least.
    delay: seconds that every packet takes longer, in each direction: a ping's answer comes two delays later.
    jitter: seconds by which the delay varies, evenly from delay - jitter to delay + jitter. Packets overtake one another then.
    loss: fraction of packets that are lost: 0.01 is one in a hundred. duplicate: of those that come twice.

    More than a tenth of a second of *rate* does not wait: what comes then is lost. ``Shape()`` changes nothing.

    Raises: UsageError for values that make no sense. Needs: where it is applied, the kernel's sch_tbf for *rate*, sch_netem for the others.
    """

    rate: int | None = field(default=None, converter=_to_optional_rate)
    burst: int | None = field(default=None, converter=_to_burst, kw_only=True)
    delay: float = field(default=0.0, converter=_to_delay, kw_only=True)
    jitter: float = field(default=0.0, converter=_to_delay, kw_only=True)
    loss: float = field(default=0.0, converter=_to_fraction, kw_only=True)
    duplicate: float = field(default=0.0, converter=_to_fraction, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.burst is not None and self.rate is None:
            raise UsageError("burst: it is how much may pass faster than rate=; give that too")
        if self.jitter > self.delay:
            raise UsageError(f"jitter: {self.jitter:g} s is more than the delay of {self.delay:g} s: packets would arrive before they were sent")

    @property
    def has_line(self) -> bool:
        """Whether something other than the rate is asked for."""
        return bool(self.delay or self.loss or self.duplicate)

    @property
    def is_nothing(self) -> bool:
        """Whether packets pass as they come."""
        return self.rate is None and not self.has_line

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kernel's queueing disciplines that it takes."""
        return ("tbf",) * (self.rate is not None) + ("netem",) * self.has_line


def to_shape(value: object) -> Shape | None:
    """A shape, or None. Raises: UsageError: it is neither."""
    if value is not None and not isinstance(value, Shape):
        raise UsageError(f"shape: {value!r} is not a Shape; give such as Shape('10M', delay=0.05)")
    return value


@frozen
class Bucket:
    """A token bucket (sch_tbf): *rate* in bytes per second; *burst*, and *limit* of what waits, in bytes."""

    rate: int
    burst: int
    limit: int


@frozen
class Line:
    """A line with delay and faults (sch_netem). *loss*, *duplicate*: of 2**32 - 1. *limit*: packets on their way."""

    delay_ns: int
    jitter_ns: int
    loss: int
    duplicate: int
    limit: int


@frozen
class Queues:
    """What a shape comes to on interfaces of one MTU."""

    bucket: Bucket | None
    line: Line | None


def queues_of(shape: Shape, *, mtu: int) -> Queues:
    """Choose what the caller has not said. Raises: UsageError: not one packet fits into the burst."""
    frame = mtu + ETHERNET_HEAD
    bucket = None if shape.rate is None else _bucket(shape, shape.rate, frame)
    return Queues(bucket, _line(shape, bucket, frame) if shape.has_line else None)


def _bucket(shape: Shape, bits: int, frame: int) -> Bucket:
    rate = bits // 8
    burst = shape.burst
    if burst is None:
        # Delay, loss and doubles are to hit single packets, and a line of so many of them is to take no more memory than such packets do.
        most = max(MOST_JOINED_BURST, 2 * frame) if shape.has_line else MOST_BURST
        burst = min(max(math.ceil(rate * TICK_S), 2 * frame), most)
    elif burst < frame:
        raise UsageError(f"burst: {burst} bytes are less than one packet of this network, which has up to {frame}; give that or more")
    return Bucket(rate, burst, min(max(math.ceil(rate * QUEUE_S), LEAST_QUEUE * frame), MOST_QUEUE) + min(burst, MOST_QUEUE))


def _line(shape: Shape, bucket: Bucket | None, frame: int) -> Line:
    limit = LINE_PACKETS
    if bucket is not None:  # the queue is the line's end
        carried = math.ceil(bucket.rate * (shape.delay + shape.jitter)) + bucket.limit
        most = MOST_LINE_PACKETS if bucket.burst < JOINED else LINE_PACKETS
        limit = min(max(math.ceil(carried / frame), LEAST_QUEUE), most)
    return Line(round(shape.delay * 1e9), round(shape.jitter * 1e9), _share(shape.loss), _share(shape.duplicate), limit)


def _share(fraction: float) -> int:
    """As the kernel compares it with a random number of 32 bits; what is more than nothing stays so."""
    return max(round(fraction * MOST), 1) if fraction else 0
