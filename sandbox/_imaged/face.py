"""What `Container` offers of the image that it is of. The work is imported when it is first asked for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from sandbox._types import Argument, Size, to_bool, to_items, to_seconds, to_size
from sandbox.errors import ImageError, UsageError

if TYPE_CHECKING:
    from sandbox._imaged.differing import Change
    from sandbox._spec import ContainerSpec
    from sandbox._started import Started
    from sandbox.container import Container
    from sandbox.image import Healthcheck, Image, Reference, Settings
    from sandbox.image.archives import Target
    from sandbox.process import Result

STOP_S: Final = 10.0  # docker stop's
HEALTH_S: Final = 30.0  # of a check, and between two of them: Docker's
MOST_BETWEEN_S: Final = 1.0  # who waits for it does not want to wait for half a minute more
HEALTHY_S: Final = 60.0
MAX_EXPORT: Final = 64 << 30
_SHELL: Final = ("/bin/sh", "-c")
CHECK_OUTPUT: Final = 4096  # bytes of a check's output that are kept, as Docker does


class ImageAccess:
    """A container and its image. Of a container without one, there are no labels and ports, and no command but what is given."""

    if TYPE_CHECKING:
        spec: ContainerSpec

        def _live(self) -> Started: ...

    @property
    def image(self) -> Image | None:
        """The image that it is of, as it was looked up; None for a directory and a view of the host."""
        return self.spec.image

    @property
    def labels(self) -> dict[str, str]:
        """The image's labels: words for people and other programs. They decide nothing here."""
        return dict(_settings(self.spec).labels)

    @property
    def exposed_ports(self) -> tuple[str, ...]:
        """The ports that the image's programs listen on, as ``"80/tcp"``; nothing is opened by that."""
        return _settings(self.spec).exposed_ports

    def command(self, args: Sequence[Argument] | None = None) -> list[Argument]:
        """What `run` runs: the image's ENTRYPOINT, with *args* or, without any, its CMD. Raises: UsageError: that is nothing."""
        return command(self.spec, args)

    def run(self, args: Sequence[Argument] | None = None, **options: Any) -> Result:  # noqa: ANN401 - exec's
        """Run what the image says to its end: its ENTRYPOINT with its CMD, or with *args* in the place of CMD; *options* as of `Container.exec`.

        ``c.popen(c.command())`` starts it and goes on. Raises: as `Container.exec`; UsageError: the image says nothing.
        """
        return cast("Container", self).exec(self.command(args), **options)

    def stop(self, timeout: float = STOP_S) -> bool:
        """End all programs as the image wants it: its STOPSIGNAL (SIGTERM) to the first process of each, and SIGKILL after *timeout* seconds.

        Waits until none is left; whether SIGKILL was not needed. The container stays. Raises: UsageError: it is paused;
        UnsupportedError: the kernel does not say who runs.
        """
        from sandbox._imaged.stopping import stop, to_number

        limit, signum, live = to_seconds(timeout, what="timeout"), to_number(_settings(self.spec).stop_signal), self._live()
        if live.is_paused:
            raise UsageError("stop: the container is paused; resume() it, or kill() what runs")
        return stop(live.session, signum, limit)

    def health(self, *, timeout: float | None = None) -> Result:
        """Run the image's HEALTHCHECK once; ``.ok`` is healthy. *timeout*: None: what the image says (30 s).

        Raises: UsageError: the image has none.
        """
        argv, limit = health_check(self.spec, timeout)
        return cast("Container", self).exec(argv, timeout=limit, output_limit=CHECK_OUTPUT, on_overflow="discard")

    def wait_healthy(self, timeout: float = HEALTHY_S, *, interval: float | None = None) -> Result:
        """Run the HEALTHCHECK again and again until it says that all is well; gives that result.

        *interval*: seconds between two checks (None: the image's, but a second at most). An image's number of retries says when a service that ran
        is given up, and has no meaning here. Raises: TimeoutError, with the last check's output; UsageError: the image has none.
        """
        deadline, pause = time.monotonic() + to_seconds(timeout, what="timeout"), between_checks(self.spec, interval)
        while True:
            limit = min(health_check(self.spec, None)[1], max(deadline - time.monotonic(), 0.01))
            result = self.health(timeout=limit)
            if result.ok:
                return result
            if time.monotonic() + pause >= deadline:
                raise unhealthy(result, timeout)
            time.sleep(pause)

    def diff(self) -> list[Change]:
        """What programs have changed in the image's files, as ``docker diff`` lists it: ``.kind`` "A", "C" or "D", and ``.path``.

        Volumes and other mounts are no part of it. Programs may run meanwhile. Raises: UsageError: the container is of no image; LimitError.
        """
        from sandbox._imaged.committing import diff

        return diff(self._live())

    def commit(
        self, name: str | Reference | None = None, *, author: str = "", message: str = "", changes: Iterable[str] = (), pause: bool = True
    ) -> Image:
        """Make an image of what the container has become, in its image's store: the image's layers, and one of what was written.

        *changes*: to what it says, in a Dockerfile's words: ``['CMD ["app"]', "ENV A=1"]``. *pause*: freeze programs meanwhile, where the
        container has a control group (any limit); without one, let nothing write. Volumes and other mounts are no part of it. An ordinary user's
        files are all root's in it. SOURCE_DATE_EPOCH, if set, is its time, and no file of the new layer is newer.

        Raises: UsageError: the container is of no image; ImageError: what was written cannot be a layer; SetupError: files moved meanwhile.
        """
        from sandbox._imaged.committing import commit

        lines = changes if isinstance(changes, str) else to_items(changes, what="changes", like="['WORKDIR /app']")
        return commit(self._live(), name, author=author, message=message, changes=lines, pause=pause)

    def export(self, target: Target, *, pause: bool = True, max_size: Size = MAX_EXPORT) -> None:
        """Write the container's root as one tar to *target* (a path, a descriptor, something to write to): its image and what was written over it.

        Volumes and other mounts are no part of it, but for what the image has there. Holes of files count, and are written.
        Raises: UsageError: the container is of no image; LimitError: more than *max_size* bytes; SetupError: files moved meanwhile.
        """
        from sandbox._imaged.committing import export

        export(self._live(), target, pause=to_bool(pause, what="pause"), max_size=to_size(max_size, what="max_size"))


def _settings(spec: ContainerSpec) -> Settings:
    if spec.image is not None:
        return spec.image.settings
    from sandbox.image import Settings

    return Settings()


def command(spec: ContainerSpec, args: Sequence[Argument] | None) -> list[Argument]:
    """See `ImageAccess.command`."""
    if isinstance(args, (str, bytes)):
        raise UsageError(f"args: {args!r} is one string; give a list")
    settings = _settings(spec)
    given = (settings.cmd or ()) if args is None else to_items(args, what="args", like="['--help']")
    found: list[Argument] = [*(settings.entrypoint or ()), *given]
    if not found:
        what = "the container is of no image" if spec.image is None else "the image has neither ENTRYPOINT nor CMD"
        raise UsageError(f"run: {what}; give the program and its arguments")
    return found


def _check_of(spec: ContainerSpec) -> Healthcheck:
    check = _settings(spec).healthcheck
    if check is None or check.test[:1] == ("NONE",):
        raise UsageError("health: the image has no HEALTHCHECK; look with exec")
    return check


def health_check(spec: ContainerSpec, timeout: float | None) -> tuple[list[str], float]:
    """The program that looks, and the seconds that it has. Raises: UsageError: there is none; ImageError: it makes no sense."""
    check = _check_of(spec)
    kind, *rest = check.test
    if not rest or kind not in ("CMD", "CMD-SHELL"):
        raise ImageError(f"the image's HEALTHCHECK {check.test!r:.200} is neither CMD nor CMD-SHELL with something to run")
    argv = rest if kind == "CMD" else [*(_settings(spec).shell or _SHELL), rest[0]]
    seconds = check.timeout or HEALTH_S if timeout is None else timeout
    return argv, to_seconds(seconds, what="timeout")


def between_checks(spec: ContainerSpec, interval: float | None) -> float:
    """Seconds between two checks."""
    if interval is not None:
        return to_seconds(interval, what="interval")
    return min(_check_of(spec).interval or HEALTH_S, MOST_BETWEEN_S)


def unhealthy(result: Result, timeout: float) -> TimeoutError:
    """What is raised when the time is over."""
    said = (bytes(result.stdout or b"") + bytes(result.stderr or b"")).decode(errors="replace").strip()
    return TimeoutError(f"not healthy within {timeout:g} s; the last check ({result.status.value}, code {result.exit_code}) said: {said[-500:]!r}")
