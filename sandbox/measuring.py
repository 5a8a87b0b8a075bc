"""`measure` and `compare`: programs run again and again, in turns, and what can be said of their times and memory.

Theory of operation
-------------------
Each program has a container, and each of its runs there a fresh control group, so that no run inherits another's figures. In each
round every program has one run, in an order that is shuffled anew: a slow second of the host hits all alike, and the ratio of two programs
is taken within each round. Nothing is measured from outside: times are init's and the kernel's, and set-up is in none of them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from attrs import define, field, frozen

from sandbox._arguments import one_shot
from sandbox._types import DEVNULL, Argument, StrPath, to_argv, to_bool, to_count, to_items
from sandbox.container import Container
from sandbox.errors import CommandError, UnsupportedError, UsageError
from sandbox.estimates import to_confidence
from sandbox.measurements import Comparison, Measurement, name_of
from sandbox.noise import Watch, sources
from sandbox.process import Result

__all__ = ["Comparison", "Measurement", "compare", "measure"]

MOST_RUNS: Final = 1_000_000
Command = Sequence[Argument]
Progress = Callable[[int, int], object]


def measure(
    argv: Command,
    image: StrPath | None = None,
    *,
    repeat: int = 30,
    warmup: int = 3,
    fresh: bool = False,
    setup: Command | None = None,
    prepare: Command | None = None,
    exit_codes: Collection[int] = (0,),
    check: bool = False,
    confidence: float = 0.95,
    stdin: StrPath | None = None,
    progress: Progress | None = None,
    **options: Any,  # noqa: ANN401 - Container's and exec's
) -> Measurement:
    """Run a program *repeat* times, after *warmup* runs that do not count, and say what it takes.

    options: those of `run`. Output goes to /dev/null unless *stdout* or *stderr* say otherwise.
    fresh: a new container for each run; otherwise they share one, with its files. setup: a program that is run once in each container, before
        all others; prepare: one that is run before each run. Neither is measured; each must succeed.
    exit_codes: those that mean success. A run that fails is counted, and is in no figure. check: raise CommandError at the first one.
    stdin: a file of the host that each run reads from its beginning (or *input*: bytes).
    progress: called after each run with how many are done, and how many there will be.

    Raises: what `run` raises; CommandError: *setup* or *prepare* failed.
    """
    found = compare(
        [argv],
        image,
        repeat=repeat,
        warmup=warmup,
        fresh=fresh,
        setup=setup,
        prepare=prepare,
        exit_codes=exit_codes,
        check=check,
        confidence=confidence,
        stdin=stdin,
        progress=progress,
        **options,
    )
    return found.measurements[0]


def compare(
    programs: Mapping[str, Command] | Sequence[Command],
    image: StrPath | None = None,
    *,
    repeat: int = 30,
    warmup: int = 3,
    fresh: bool = False,
    setup: Command | None = None,
    prepare: Command | None = None,
    exit_codes: Collection[int] = (0,),
    check: bool = False,
    confidence: float = 0.95,
    stdin: StrPath | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    **options: Any,  # noqa: ANN401 - Container's and exec's
) -> Comparison:
    """Measure several programs in turns, *repeat* rounds: every round runs each once, in an order that is shuffled anew (by *seed*).

    *programs*: a mapping of names to argument lists, or a list of these. Each has a container of its own, all alike. The rest is as in `measure`.
    """
    to_bool(check, what="check")
    plan = Plan(
        programs=named(programs),
        rounds=to_count(repeat, what="repeat", most=MOST_RUNS),
        warmup=to_count(warmup, what="warmup", least=0, most=MOST_RUNS),
        fresh=to_bool(fresh, what="fresh"),
        setup=None if setup is None else to_argv(setup),
        prepare=None if prepare is None else to_argv(prepare),
        exit_codes=frozenset(to_count(code, what="exit_codes", least=0, most=255) for code in to_items(exit_codes, what="exit_codes", like="(0, 1)")),
        check=check,
        confidence=to_confidence(confidence),
        stdin=stdin,
        seed=seed,
        image=image,
        options=options,
    )
    return Session(plan).run(progress)


def named(programs: Mapping[str, Command] | Sequence[Command]) -> dict[str, tuple[bytes, ...]]:
    """Name each program: the caller's own names, or its words; the same words twice are numbered."""
    if isinstance(programs, Mapping):
        found = {str(name): to_argv(argv) for name, argv in programs.items()}
    else:
        found = {}
        for argv in (to_argv(each) for each in to_items(programs, what="programs", like="[['true'], ['false']]")):
            name, number = name_of(argv), 2
            while name in found:
                name, number = f"{name_of(argv)} ({number})", number + 1
            found[name] = argv
    if not found:
        raise UsageError("programs: empty; give one at least")
    return found


@frozen
class Plan:
    """What is to be measured, checked."""

    programs: dict[str, tuple[bytes, ...]]
    rounds: int
    warmup: int
    fresh: bool
    setup: tuple[bytes, ...] | None
    prepare: tuple[bytes, ...] | None
    exit_codes: frozenset[int]
    check: bool
    confidence: float
    stdin: StrPath | None
    seed: int
    image: StrPath | None
    options: dict[str, Any]


@define(eq=False)
class Session:
    """One measurement on its way."""

    plan: Plan
    container: dict[str, Any] = field(init=False)
    run_options: dict[str, Any] = field(init=False)
    runs: dict[str, list[Result]] = field(init=False)
    failed_warmups: int = 0
    unaccounted: str = ""  # why runs have no control group

    def __attrs_post_init__(self) -> None:
        plan = self.plan
        self.container, options = one_shot(plan.image, dict(plan.options))
        for refused in ("check", "pass_fds"):
            if refused in options:
                raise UsageError(f"{refused}: not for each of many runs")
        if plan.stdin is not None and not isinstance(plan.stdin, (str, bytes)) and not hasattr(plan.stdin, "__fspath__"):
            raise UsageError(f"stdin: {plan.stdin!r} would be read once; give the path of a file, or input=")
        self.run_options = {"stdout": DEVNULL, "stderr": DEVNULL, "accounting": True, **options}
        self.runs = {name: [] for name in plan.programs}

    def run(self, progress: Progress | None) -> Comparison:
        """All rounds."""
        plan = self.plan
        noisy = [f"{each.what}: {each.value}; {each.remedy}" for each in sources() if each.is_noisy]
        began, rng, done = time.time(), random.Random(plan.seed), 0  # noqa: S311 - an order, no secret
        total = (plan.warmup + plan.rounds) * len(plan.programs)
        with ExitStack() as stack:
            takers = {name: self._taker(argv, stack) for name, argv in plan.programs.items()}
            watch = stack.enter_context(Watch())
            for number in range(plan.warmup + plan.rounds):
                for name in rng.sample(list(takers), len(takers)):
                    self._note(name, takers[name](), is_warmup=number < plan.warmup)
                    done += 1
                    if progress is not None:
                        progress(done, total)
            noisy += watch.complaints()
        return self._conclude(began, noisy)

    def _taker(self, argv: tuple[bytes, ...], stack: ExitStack) -> Callable[[], Result]:
        """What makes one run of the program."""
        if self.plan.fresh:
            return partial(self._run_alone, argv)
        return partial(self._run_in, stack.enter_context(self._container()), argv)

    def _container(self) -> Container:
        made = Container(self.plan.image, **self.container).create()
        try:
            if self.plan.setup is not None:
                made.exec(self.plan.setup, check=True)
        except BaseException:
            made.close()
            raise
        return made

    def _run_alone(self, argv: tuple[bytes, ...]) -> Result:
        with self._container() as container:
            return self._run_in(container, argv)

    def _run_in(self, container: Container, argv: tuple[bytes, ...]) -> Result:
        if self.plan.prepare is not None:
            container.exec(self.plan.prepare, check=True)
        if self.plan.stdin is None:
            return self._exec(container, argv, {})
        with open(self.plan.stdin, "rb") as file:  # anew: the run before has read it to its end
            return self._exec(container, argv, {"stdin": file})

    def _exec(self, container: Container, argv: tuple[bytes, ...], stdin: dict[str, Any]) -> Result:
        try:
            return container.exec(argv, **self.run_options, **stdin)
        except UnsupportedError as error:
            if not error.feature.startswith("cgroup") or "accounting" in self.plan.options or self.unaccounted:
                raise
            self.unaccounted = str(error)
            self.run_options["accounting"] = None
            return container.exec(argv, **self.run_options, **stdin)

    def _succeeded(self, result: Result) -> bool:
        return result.exit_code in self.plan.exit_codes  # None: it did not exit by itself

    def _note(self, name: str, result: Result, *, is_warmup: bool) -> None:
        if not self._succeeded(result):
            if self.plan.check:
                result.check()
                raise CommandError(f"{name} exited with code {result.exit_code}, which is not among {sorted(self.plan.exit_codes)}", result)
            self.failed_warmups += is_warmup
        if not is_warmup:
            self.runs[name].append(result)

    def _conclude(self, began: float, noisy: list[str]) -> Comparison:
        plan, words = self.plan, list(noisy)
        if self.unaccounted:
            words.append(f"no control group: CPU time is that of waited-for processes only, and memory is not known; {self.unaccounted}")
        if self.failed_warmups:
            words.append(f"{self.failed_warmups} warm-up runs failed")
        found = [
            Measurement(
                name=name,
                runs=tuple(self.runs[name]),
                succeeded=tuple(map(self._succeeded, self.runs[name])),
                warmup=plan.warmup,
                fresh=plan.fresh,
                confidence=plan.confidence,
                began=began,
                host_warnings=tuple(words),
            )
            for name in plan.programs
        ]
        return Comparison(tuple(found))
