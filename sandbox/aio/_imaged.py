"""What `aio.Container` offers of its image: `sandbox.Container`'s words, awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from sandbox._driven import Driven
from sandbox._imaged import face
from sandbox._imaged.face import HEALTHY_S, MAX_EXPORT, STOP_S
from sandbox._result import Result
from sandbox._types import Argument, Size, to_seconds
from sandbox.aio._options import ExecOptions

if TYPE_CHECKING:
    from sandbox._imaged.differing import Change
    from sandbox.image import Image, Reference
    from sandbox.image.archives import Target


class ImageAccess:
    """A container and its image."""

    driven: Driven

    if TYPE_CHECKING:

        async def exec(self, argv: Sequence[Argument], **options: Unpack[ExecOptions]) -> Result: ...

    @property
    def image(self) -> Image | None:
        """The image that it is of; see `sandbox.Container.image`."""
        return self.driven.image

    @property
    def labels(self) -> dict[str, str]:
        """The image's labels."""
        return self.driven.labels

    @property
    def exposed_ports(self) -> tuple[str, ...]:
        """The ports that the image's programs listen on."""
        return self.driven.exposed_ports

    def command(self, args: Sequence[Argument] | None = None) -> list[Argument]:
        """What `run` runs; see `sandbox.Container.command`."""
        return self.driven.command(args)

    async def run(self, args: Sequence[Argument] | None = None, **options: Unpack[ExecOptions]) -> Result:
        """Run what the image says to its end; see `sandbox.Container.run`."""
        return await self.exec(self.command(args), **options)

    async def stop(self, timeout: float = STOP_S) -> bool:
        """End all programs as the image wants it; see `sandbox.Container.stop`."""
        return await asyncio.to_thread(self.driven.stop, timeout)

    async def health(self, *, timeout: float | None = None) -> Result:
        """Run the image's HEALTHCHECK once; see `sandbox.Container.health`."""
        argv, limit = face.health_check(self.driven.spec, timeout)
        return await self.exec(argv, timeout=limit, output_limit=face.CHECK_OUTPUT, on_overflow="discard")

    async def wait_healthy(self, timeout: float = HEALTHY_S, *, interval: float | None = None) -> Result:
        """Run the HEALTHCHECK until it says that all is well; see `sandbox.Container.wait_healthy`."""
        deadline, pause = time.monotonic() + to_seconds(timeout, what="timeout"), face.between_checks(self.driven.spec, interval)
        while True:
            limit = min(face.health_check(self.driven.spec, None)[1], max(deadline - time.monotonic(), 0.01))
            result = await self.health(timeout=limit)
            if result.ok:
                return result
            if time.monotonic() + pause >= deadline:
                raise face.unhealthy(result, timeout)
            await asyncio.sleep(pause)

    async def diff(self) -> list[Change]:
        """What programs have changed in the image's files; see `sandbox.Container.diff`. In a thread of its own."""
        return await asyncio.to_thread(self.driven.diff)

    async def commit(
        self, name: str | Reference | None = None, *, author: str = "", message: str = "", changes: Iterable[str] = (), pause: bool = True
    ) -> Image:
        """Make an image of what the container has become; see `sandbox.Container.commit`. In a thread of its own, which goes on when cancelled."""
        return await asyncio.to_thread(partial(self.driven.commit, name, author=author, message=message, changes=changes, pause=pause))

    async def export(self, target: Target, *, pause: bool = True, max_size: Size = MAX_EXPORT) -> None:
        """Write the container's root as one tar; see `sandbox.Container.export`. In a thread of its own, which goes on when cancelled."""
        await asyncio.to_thread(partial(self.driven.export, target, pause=pause, max_size=max_size))
