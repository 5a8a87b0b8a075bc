"""`build`: reads a Dockerfile, builds the stages that its target needs, and names what comes out.

Theory of operation. Each needed stage is one task of a pool of threads, submitted after those that it needs, so that a task that waits for another
one waits for one that has begun. Stages share nothing but the store and the `Job`. The first failure stops the others before their next step, or
at the next output of their commands, and is what the caller gets.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import IO, Final, cast

from attrs import define, field

from sandbox.builder._context import is_archive, is_stream, read_within, told_apart, unpack_context
from sandbox.builder._copying import Sources
from sandbox.builder._hashes import Hashes
from sandbox.builder._job import Job, Options, StoppedError
from sandbox.builder._plan import Plan, earlier_stage, make_plan, platform_of
from sandbox.builder._source import MAX_DOCKERFILE
from sandbox.builder._stage import StageRun
from sandbox.builder._state import Scope, State, expand_word, platform_names
from sandbox.builder._tasks import Task, carry_out
from sandbox.builder._tree import Tree
from sandbox.builder._workshop import Workshop
from sandbox.builder.events import Event, EventKind
from sandbox.builder.ignore import Patterns
from sandbox.builder.instructions import Dockerfile, Stage, parse
from sandbox.errors import DockerfileError, ImageError, ImageNotFoundError, UsageError
from sandbox.image import Image, Lease, Platform, Reference, Store

MAX_THREADS: Final = 8
_OWN_ARGUMENTS: Final = ("SOURCE_DATE_EPOCH", "BUILDKIT_")  # they speak to whoever builds, and need no ARG
_IMAGE: Final = "docker-image://"  # a further context that is an image, as buildx writes it
StrPath = str | os.PathLike[str]


def build(
    context: StrPath | IO[bytes] | None,
    *,
    dockerfile: StrPath | bytes | None = None,
    tags: Iterable[str] = (),
    target: str | None = None,
    build_args: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    secrets: Mapping[str, bytes | str] | None = None,
    contexts: Mapping[str, StrPath] | None = None,
    network: object = None,
    memory: int | str | None = None,
    cpus: float | None = None,
    pids: int | None = None,
    timeout: float | None = None,
    no_cache: bool = False,
    pull: bool = False,
    platform: str | None = None,
    progress: Callable[[Event], None] | None = None,
    store: Store | None = None,
) -> Image:
    """Build an image from a Dockerfile; it is in *store* (None: the default one) under all of *tags*.

    context: the directory that COPY and ADD take files from; or a tar of it, compressed or not: a file, or something to read bytes from (where a
        Dockerfile has no context, as with ``docker build -``); None: there is none. Its ``.dockerignore`` (or ``NAME.dockerignore`` beside
        the Dockerfile) leaves files out.
    dockerfile: a path, relative to the context; bytes: the text itself; None: ``Dockerfile`` in the context.
    target: the stage to build; None: the last. build_args: values for ARG. labels: added to the image's.
    secrets: by id, for ``RUN --mount=type=secret``; neither the image nor the cache has them. contexts: further directories, by the name
        that ``--from`` uses; or ``docker-image://NAME``, which takes the place of an image, or a stage, of that name.
    network: None: RUN has no network; "host": the host's. ADD of URLs needs one too.
    memory, cpus, pids: limits of each RUN step; timeout: its seconds.
    no_cache: do every step anew. pull: ask the registry for newer base images; without, only for those that are not there.
    platform: such as "linux/arm64"; None: this machine's. progress: told what happens; from several threads, but one at a time.

    With SOURCE_DATE_EPOCH among *build_args* or in the environment, times are no later than that, and the same input gives the same image.
    Raises: DockerfileError: with file, line and column; UsageError: before anything is touched; ImageError, UnsupportedError, SetupError.
    """
    options = Options(
        _texts(build_args, "build_args"),
        _texts(labels, "labels"),
        {name: value.encode() if isinstance(value, str) else value for name, value in (secrets or {}).items()},
        network,
        memory,
        cpus,
        pids,
        timeout,
        no_cache=no_cache,
        pull=pull,
        platform=Platform.parse(platform) if platform is not None else Platform.of_this_machine(),
        epoch=_epoch(build_args or {}),
    )
    names = tuple(_tag(tag) for tag in tags)
    with ExitStack() as stack:
        store = Store() if store is None else store
        read, begun, sources = _given(stack, store, context, dockerfile)
        job = _job(stack, store, options, begun, sources, contexts=contexts or {}, tell=progress or _ignore)
        variables = _global_names(read, options)
        return Building(job, read, make_plan(read, target, variables), variables).run(names)


def _given(
    stack: ExitStack, store: Store, context: StrPath | IO[bytes] | None, dockerfile: StrPath | bytes | None
) -> tuple[Dockerfile, tuple[Lease, Workshop], Sources]:
    """Read the Dockerfile, and open the store and the context."""
    given = told_apart(context, dockerfile) if is_stream(context) else context
    if isinstance(given, bytes):
        given, dockerfile = None, given
    if given is not None and (is_stream(given) or is_archive(cast("StrPath", given))):
        begun = _begin(stack, store)
        directory = unpack_context(given, begun[1])
        read, ignored = read_within(directory, dockerfile)
    else:
        place = cast("StrPath | None", given)
        directory = "" if place is None else _directory("context", os.fspath(place))
        path = _path_of(place, dockerfile)
        read = _read(path, dockerfile)
        ignored = Patterns() if place is None else _ignored(directory, path)
        begun = _begin(stack, store)
    tree = Tree([directory or begun[1].directory()])
    stack.callback(tree.close)
    return read, begun, Sources(tree, ignored)


def _begin(stack: ExitStack, store: Store) -> tuple[Lease, Workshop]:
    lease = stack.enter_context(store.lease())  # which makes the store
    return lease, stack.enter_context(Workshop(os.path.join(store.path, "builds")))


def _ignore(_: Event) -> None:
    """Nobody is told."""


def _texts(mapping: Mapping[str, str] | None, what: str) -> dict[str, str]:
    found = dict(mapping or {})
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, str) or not name or "\0" in name + value:
            raise UsageError(f"{what}: {name!r}={value!r}: names and values are str, without NUL")
    return found


def _tag(text: str) -> Reference:
    reference = Reference.parse(text)
    if reference.digest is not None:
        raise UsageError(f"tags: {text!r} has a digest, which is not ours to choose")
    return reference


def _epoch(build_args: Mapping[str, str]) -> int | None:
    text = build_args.get("SOURCE_DATE_EPOCH", os.environ.get("SOURCE_DATE_EPOCH"))
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 11):
        raise UsageError(f"SOURCE_DATE_EPOCH: {text!r} is no number of seconds")
    return int(text)


def _path_of(context: StrPath | None, dockerfile: StrPath | bytes | None) -> str | None:
    """Where the Dockerfile is; None: its text was given."""
    if isinstance(dockerfile, bytes):
        return None
    if context is None and dockerfile is None:
        raise UsageError("build: neither a context nor a dockerfile")
    place = "" if context is None else os.fspath(context)
    if dockerfile is not None:
        return os.path.join(place, os.fspath(dockerfile))
    lower = os.path.join(place, "dockerfile")  # Docker reads that too, when there is no other
    path = os.path.join(place, "Dockerfile")
    return lower if not os.path.lexists(path) and os.path.isfile(lower) else path


def _read(path: str | None, dockerfile: StrPath | bytes | None) -> Dockerfile:
    if path is None:
        return parse(dockerfile if isinstance(dockerfile, bytes) else b"")
    try:
        with open(path, "rb") as file:
            return parse(file.read(MAX_DOCKERFILE + 1), path if dockerfile is None else os.fspath(cast("StrPath", dockerfile)))
    except OSError as error:
        raise UsageError(f"dockerfile: {path!r}: {error.strerror}; dockerfile= (-f) names another one") from error


def _job(
    stack: ExitStack,
    store: Store,
    options: Options,
    begun: tuple[Lease, Workshop],
    context: Sources,
    *,
    contexts: Mapping[str, StrPath],
    tell: Callable[[Event], None],
) -> Job:
    now = options.epoch if options.epoch is not None else int(time.time())
    hashes = Hashes(os.path.join(store.path, "hashes.json"))
    hashes.load()
    stack.callback(hashes.save)
    job = Job(store, *begun, options, context, {}, hashes, now, tell, stack)
    others = {name.lower(): os.fspath(path) for name, path in contexts.items()}
    job.images = {name: path.removeprefix(_IMAGE) for name, path in others.items() if path.startswith(_IMAGE)}
    directories = {name: _directory(name, path) for name, path in others.items() if name not in job.images}
    job.contexts = {name: Sources(job.tree_at(path), _ignored(path, None)) for name, path in directories.items()}
    return job


def _directory(name: str, path: str) -> str:
    """Raises: UsageError: it is none."""
    if not os.path.isdir(path):
        raise UsageError(f"{name}: {path!r} is no directory")
    return path


def _ignored(context: str, dockerfile: str | None) -> Patterns:
    """The patterns of what a context leaves out: those beside the Dockerfile count instead of the context's."""
    own = [] if dockerfile is None else [f"{dockerfile}.dockerignore"]
    for path in (*own, os.path.join(context, ".dockerignore")):
        try:
            with open(path, "rb") as file:
                return Patterns.parse(file.read(MAX_DOCKERFILE).decode("utf-8", "surrogateescape"), what=path)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return Patterns()


def _global_names(dockerfile: Dockerfile, options: Options) -> dict[str, str]:
    """What the ARGs before the first FROM stand for, and the platforms' variables."""
    names = platform_names(options.platform, Platform.of_this_machine())
    for instruction in dockerfile.arguments:
        for name, value in instruction.pairs:
            if name.text in options.build_args:
                names[name.text] = options.build_args[name.text]
            elif value is not None:
                names[name.text] = expand_word(instruction.statement, value, names)
    return names


@define(eq=False, repr=False)
class Building:
    """The stages of one build, and what they have come to."""

    job: Job
    dockerfile: Dockerfile
    plan: Plan
    names: dict[str, str]
    _states: dict[int, Task[State]] = field(factory=dict[int, Task[State]], init=False)
    _adding: threading.Lock = field(factory=threading.Lock, init=False)

    def run(self, names: tuple[Reference, ...]) -> Image:
        """Build all that is needed, and add the image."""
        self._states = {stage.index: Task(partial(self._stage, stage)) for stage in self.plan.stages}
        carry_out(tuple(self._states.values()), threads=min(MAX_THREADS, len(self._states)), stop=self.job.stop)
        state = self._outcome()
        labels = dict(state.settings.labels) | dict(self.job.options.labels)
        state.set(labels=tuple(labels.items()))
        self._warn_of_unused()
        state.created = state.created or self.job.time
        return self.job.add_image(state.config(), tuple(layer.blob for layer in state.layers), names)

    def _outcome(self) -> State:
        errors = [task.error for task in self._states.values() if task.error is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, StoppedError)):
            raise error
        return self._states[self.plan.target.index].result()

    def _stage(self, stage: Stage) -> State:
        try:
            for index in sorted(self.plan.needs[stage.index]):
                self._states[index].result()
            if stage.base.name in self.job.images:  # given in its place
                return self.job.hold(self._image(stage.base.name, self.job.options.platform))
            state, base = self._base(stage)
            scope = Scope(self.job.options.build_args, self._arguments(), self._platforms(state))
            return StageRun(self.job, stage, state, scope, lambda name: self._sources(stage, name), base).run()
        except BaseException:
            self.job.stop()
            raise

    def _arguments(self) -> dict[str, str]:
        declared = {name.text for instruction in self.dockerfile.arguments for name, _ in instruction.pairs}
        return {name: value for name, value in self.names.items() if name in declared}

    def _platforms(self, state: State) -> dict[str, str]:
        return platform_names(state.platform, Platform.of_this_machine()) | {"TARGETSTAGE": self.plan.target.base.name or "default"}

    # ---- Where things come from ----

    def _base(self, stage: Stage) -> tuple[State, str]:
        name = self.plan.bases[stage.index]
        text = platform_of(stage.base, self.names)
        platform = Platform.parse(text) if text else self.job.options.platform
        if (earlier := earlier_stage(self.dockerfile, stage, name)) is not None:
            return self._states[earlier.index].result().child(), name
        if name == "scratch":
            return State.empty(platform), name
        if name.lower() in self.job.contexts:
            hint = f"write FROM scratch, and COPY --from={name} / /"
            raise stage.base.statement.error_at(f"FROM: {name} is a directory that the build was given, which is no base; {hint}", stage.base.image)
        try:
            return self.job.hold(self._image(name, platform)), name
        except (ImageError, UsageError) as error:
            if isinstance(error, DockerfileError):
                raise
            raise stage.base.statement.error_at(f"FROM: {error}", stage.base.image) from error

    def _sources(self, stage: Stage, name: str) -> Sources:
        """The tree that ``--from=name`` means; "" for the context."""
        if not name:
            return self.job.context
        if name.lower() in self.job.contexts:
            return self.job.contexts[name.lower()]
        if (earlier := earlier_stage(self.dockerfile, stage, name)) is not None:
            return Sources(self.job.tree_of(self._built(earlier)), is_preserving=True)
        if name == "scratch" or name.lower() == stage.base.name:
            raise ImageError(f"nothing can be taken from {'scratch' if name == 'scratch' else 'the stage itself'}")
        if name.lower() not in self.job.images and (name.isdecimal() or self.dockerfile.find(name) is not None):
            raise ImageError(f"no stage {name!r} stands before this one")
        return Sources(self.job.tree_of(self.job.hold(self._image(name, self.job.options.platform))), is_preserving=True)

    def _built(self, stage: Stage) -> State:
        """What *stage* has come to. One that only a trigger of ONBUILD names, which nobody knew before its base was there, is built here and now."""
        added: list[Task[State]] = []
        with self._adding:
            if stage.index not in self._states:
                plan = make_plan(self.dockerfile, str(stage.index), self.names)
                self.plan.bases.update(plan.bases)
                self.plan.needs.update(plan.needs)
                tasks = {other.index: Task(partial(self._stage, other)) for other in plan.stages if other.index not in self._states}
                self._states.update(tasks)
                added.extend(tasks.values())
        for task in added:
            task.carry_out()
        return self._states[stage.index].result()

    def _image(self, name: str, platform: Platform) -> Image:
        """An image of the store, or from its registry: asked when there is none of that platform, or always with *pull*."""
        name = self.job.images.get(name.lower(), name)
        if not self.job.options.pull:
            try:
                found = self.job.store.get(name)
            except ImageNotFoundError:
                found = None
            if found is not None and platform.fits(found.config.platform):
                return found
        self.job.report(Event(EventKind.BEGIN, text=f"pull {Reference.parse(name)}"))
        from sandbox.image import pull  # with HTTP and what it takes: a seventh of a rebuild

        image = pull(name, store=self.job.store, platform=platform, progress=lambda _: self.job.check())
        self.job.report(Event(EventKind.DONE, text=f"pull {Reference.parse(name)}"))
        return image

    def _warn_of_unused(self) -> None:
        known = {name.text for instruction in self.dockerfile.arguments for name, _ in instruction.pairs}
        known |= {name for task in self._states.values() for name in task.result().arguments}
        for name in self.job.options.build_args:
            if name not in known and not name.startswith(_OWN_ARGUMENTS) and not name.upper().endswith("_PROXY"):
                self.job.report(Event(EventKind.WARNING, text=f"build argument {name} is not used: no ARG names it"))
