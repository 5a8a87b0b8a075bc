"""Take turns: run cases interleaved, and reduce what they took to medians, percentiles and ratios.

Nothing here knows what is measured. Interleaving is what makes ratios worth anything on a machine whose speed drifts:
in each round every case has its turn, in shuffled order, and a ratio can be taken round by round as well.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

from attrs import define, field, frozen

WARM_BELOW_S = 0.03  # a case that is slower gets no warm-up run: its own work warms the caches
BURST = 3  # measured runs of a turn, hot
IDLE_S = 0.1
SETTLE_S = 0.02  # after each turn: what it left to be done later must not fall on whose turn is next
SHARE_S = 0.12  # a slower case has its turn in fewer rounds, so that it does not eat the time of all


@frozen
class Case:
    """Something that can be run again and again: *call* runs it once and returns the seconds that count."""

    name: str
    call: Callable[[], float]


def timed(action: Callable[[], object]) -> Callable[[], float]:
    """Make a case's call of an action: the wall time around it."""

    def call() -> float:
        before = time.perf_counter()
        action()
        return time.perf_counter() - before

    return call


@define
class Samples:
    """What one case took, in seconds: by round, several runs each."""

    by_round: dict[int, list[float]] = field(factory=dict)

    @property
    def all(self) -> list[float]:
        """Every run."""
        return [value for turn in self.by_round.values() for value in turn]

    @property
    def median(self) -> float:
        return statistics.median(self.all)

    @property
    def p95(self) -> float:
        return percentile(self.all, 95)

    def ratio(self, reference: Samples) -> float:
        """The ratio of the medians."""
        return self.median / reference.median

    def paired_ratio(self, reference: Samples) -> float | None:
        """The median of the ratios within each round that both took part in; None when there is none."""
        shared = self.by_round.keys() & reference.by_round.keys()
        ratios = [statistics.median(self.by_round[i]) / statistics.median(reference.by_round[i]) for i in shared]
        return statistics.median(ratios) if ratios else None


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that *percent* of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)  # the ceiling
    return ordered[max(0, int(rank) - 1)]


def interleave(cases: Sequence[Case], *, rounds: int, idle: bool, rng: random.Random) -> dict[str, Samples]:
    """Give every case its turn in each of *rounds*: back to back (hot), or one run after 100 ms of idleness."""
    samples = {case.name: Samples() for case in cases}
    every = {case.name: _stride(case) for case in cases}
    for index in range(rounds):
        turn = [case for case in cases if index % min(every[case.name], rounds) == 0]
        rng.shuffle(turn)
        for case in turn:
            samples[case.name].by_round[index] = [_idle_run(case)] if idle else _hot_runs(case, every[case.name])
            time.sleep(SETTLE_S)
    return samples


def _stride(case: Case) -> int:
    case.call()
    return max(1, round(case.call() / SHARE_S))


def _hot_runs(case: Case, stride: int) -> list[float]:
    first = case.call()
    if stride > 1 or first > WARM_BELOW_S:
        return [first]
    return [case.call() for _ in range(BURST)]


def _idle_run(case: Case) -> float:
    time.sleep(IDLE_S)
    return case.call()
