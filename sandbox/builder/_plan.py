"""Which stages are needed, and which must be built before which. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import field, frozen

from sandbox.builder._source import Word
from sandbox.builder._state import expand_word
from sandbox.builder.instructions import Copy, Dockerfile, From, Run, Stage
from sandbox.errors import DockerfileError, UsageError


@frozen(eq=False, repr=False)
class Plan:
    """The stages that *target* needs, each after those that it needs itself, and the images that FROM names once variables are expanded."""

    target: Stage
    stages: tuple[Stage, ...]
    bases: dict[int, str]  # by index: an image, "scratch", or a stage's name
    needs: dict[int, frozenset[int]] = field(factory=dict[int, frozenset[int]])


def make_plan(dockerfile: Dockerfile, target: str | None, names: Mapping[str, str]) -> Plan:
    """Find what *target* (None: the last stage) takes; *names*: the variables of FROM lines.

    Raises: DockerfileError: FROM names nothing; UsageError: there is no such stage.
    """
    last = dockerfile.stages[-1] if target is None else dockerfile.find(target)
    if last is None:
        there = ", ".join(stage.name for stage in dockerfile.stages)
        raise UsageError(f"target: no stage {target!r} in {dockerfile.source.name}; there are {there}")
    bases: dict[int, str] = {}
    needs: dict[int, frozenset[int]] = {}
    todo = [last]
    while todo:
        stage = todo.pop()
        if stage.index in needs:
            continue
        bases[stage.index] = _base(stage.base, names)
        found = [earlier_stage(dockerfile, stage, name) for name in (bases[stage.index], *_sources(stage))]
        needs[stage.index] = frozenset(one.index for one in found if one is not None)
        todo.extend(dockerfile.stages[index] for index in needs[stage.index])
    return Plan(last, tuple(dockerfile.stages[index] for index in sorted(needs)), bases, needs)


def earlier_stage(dockerfile: Dockerfile, stage: Stage, name: str) -> Stage | None:
    """The stage before *stage* that *name* means; None: it is an image, or another context."""
    for other in reversed(dockerfile.stages[: stage.index]):
        if name.lower() == other.base.name or name == str(other.index):
            return other
    return None


def mount_source(flag_value: str) -> str:
    """What ``from=`` of a mount says; "" for nothing."""
    return next((part.partition("=")[2] for part in flag_value.split(",") if part.strip().lower().startswith("from=")), "")


def _sources(stage: Stage) -> Iterator[str]:
    for step in stage.steps:
        if isinstance(step, Copy) and step.from_:
            yield step.from_
        elif isinstance(step, Run):
            yield from (name for flag in step.mounts if (name := mount_source(flag.value)))


def _base(base: From, names: Mapping[str, str]) -> str:
    image = expand_word(base.statement, base.image, names)
    if not image:
        reason = "its variables are empty; only ARGs before the first FROM count"
        raise base.statement.error_at(f"FROM {base.image.text} names no image: {reason}", base.image)
    return image


def platform_of(base: From, names: Mapping[str, str]) -> str:
    """What ``--platform`` of a FROM says; "" for nothing. Raises: DockerfileError."""
    if not base.platform:
        return ""
    at = base.statement.text.index("--platform=") + len("--platform=")
    found = expand_word(base.statement, Word(base.platform, at), names)
    if not found:
        raise _empty_platform(base, at)
    return found


def _empty_platform(base: From, at: int) -> DockerfileError:
    return base.statement.error(f"--platform={base.platform} is empty once its variables are expanded", at, len(base.platform))
