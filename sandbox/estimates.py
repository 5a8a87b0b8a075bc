"""What can be said of a quantity that was measured several times, without assuming how it is distributed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Final, Self

from attrs import frozen

from sandbox.errors import UsageError

__all__ = ["Estimate"]

_EXACT: Final = 1000  # up to here the binomial distribution is added up; beyond, the normal one does


@frozen
class Estimate:
    """The median of *count* values, how they spread, and between which bounds the true median lies.

    *mad*: the median distance from the median. *q1*, *q3*: quartiles. *low*, *high*: an interval that holds the true median with at least the
    *confidence* asked for, by ranks (the sign test turned round): it takes no distribution for granted; *confidence* is what these ranks
    really give. None, all three, when there are too few values for such an interval (fewer than 6 for 95 %). *stdev* is None for one value.
    """

    count: int
    median: float
    mad: float
    min: float
    q1: float
    q3: float
    max: float
    mean: float
    stdev: float | None
    low: float | None
    high: float | None
    confidence: float | None

    @classmethod
    def of(cls, values: Iterable[float], *, confidence: float = 0.95) -> Self:
        """Reduce *values*. Raises: UsageError: there are none, one is not a number, or the confidence is not between 0 and 1."""
        found = sorted(map(float, values))
        if not found or not all(map(math.isfinite, found)):
            raise UsageError("an estimate takes one finite number at least")
        median = statistics.median(found)
        first, _, third = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
        rank, reached = median_rank(len(found), to_confidence(confidence))
        return cls(
            count=len(found),
            median=median,
            mad=statistics.median(abs(value - median) for value in found),
            min=found[0],
            q1=first,
            q3=third,
            max=found[-1],
            mean=statistics.fmean(found),
            stdev=statistics.stdev(found) if len(found) > 1 else None,
            low=found[rank - 1] if rank else None,
            high=found[-rank] if rank else None,
            confidence=reached,
        )

    @property
    def spread(self) -> float | None:
        """The distance of the quartiles, as a share of the median; None when that is 0."""
        return (self.q3 - self.q1) / abs(self.median) if self.median else None


def to_confidence(value: float) -> float:
    """Check a confidence level."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.5 <= value < 1:
        raise UsageError(f"confidence: {value!r} is not a level; give 0.5 or more, below 1, such as 0.95")
    return float(value)


def median_rank(count: int, confidence: float) -> tuple[int, float | None]:
    """Give k and the confidence with which the median lies between the k-th smallest and the k-th largest of *count* values; 0, None: never.

    Each value is above the true median as heads are in a coin's toss. The interval misses when fewer than k are on one side.
    """
    if count > _EXACT:
        normal = statistics.NormalDist(count / 2, math.sqrt(count) / 2)
        rank = math.floor(normal.inv_cdf((1 - confidence) / 2) + 0.5)
        return rank, 1 - 2 * normal.cdf(rank - 0.5)
    rank, below, ways = 0, 0, 1  # below: of 2**count throws, those with fewer than `rank` heads
    while rank < count / 2 and 2 * (below + ways) <= (1 - confidence) * 2**count:
        below += ways
        ways = ways * (count - rank) // (rank + 1)
        rank += 1
    return (rank, 1 - 2 * below / 2**count) if rank else (0, None)
