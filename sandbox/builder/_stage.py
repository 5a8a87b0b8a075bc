"""One stage, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from attrs import define

from sandbox.builder._copying import Sources
from sandbox.builder._files import Done, copy_files, make_working_dir
from sandbox.builder._job import Job, StoppedError
from sandbox.builder._running import Running
from sandbox.builder._settings import apply, history_of
from sandbox.builder._state import Scope, State
from sandbox.builder.events import Event, EventKind
from sandbox.builder.instructions import Copy, Instruction, Run, Stage, Words, parse_triggers


@define(eq=False, repr=False)
class StageRun:
    """Carries out the steps of *stage* on *state*. *sources*: the trees that ``--from`` names."""

    job: Job
    stage: Stage
    state: State
    scope: Scope
    sources: Callable[[str], Sources]
    base: str
    _number: int = 1
    _total: int = 1

    def run(self) -> State:
        """Do all of them. Raises: DockerfileError."""
        triggers = parse_triggers(self.state.settings.on_build, self.base)
        self.state.set(on_build=())
        steps: Sequence[Instruction] = (*triggers, *self.stage.steps)
        self._total = len(steps) + 1
        self._tell(EventKind.BEGIN, history_of(self.stage.base.statement))
        for step in steps:
            if self.job.stopping.is_set():
                raise StoppedError
            self._number += 1
            self._step(step)
        return self.state

    def _step(self, step: Instruction) -> None:
        text = history_of(step.statement)
        self._tell(EventKind.BEGIN, text)
        begin = time.monotonic()
        if apply(step, self.state, self.scope):
            self._tell(EventKind.DONE, text)
            return
        layer, created, was_cached = self._layer(step)
        self.state.record(text, created=created, layer=layer)
        self._tell(EventKind.CACHED if was_cached else EventKind.DONE, text, seconds=time.monotonic() - begin)

    def _layer(self, step: Instruction) -> Done:
        match step:
            case Copy():
                return copy_files(self.job, self.state, step, self.sources)
            case Run():
                return Running(self.job, self.state, step, self.sources, self._output).done()
            case Words():
                return make_working_dir(self.job, self.state, step)
            case _:
                raise step.statement.error(f"{step.statement.keyword} cannot stand here")

    def _output(self, data: bytes) -> None:
        self._tell(EventKind.OUTPUT, "", data=data)

    def _tell(self, kind: EventKind, text: str, *, data: bytes = b"", seconds: float = 0.0) -> None:
        self.job.report(Event(kind, self.stage.name, self._number, self._total, text, data, seconds))
