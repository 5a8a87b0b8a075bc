"""The use of an image by containers: while there is one, the image is not removed, but by force."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import define

from sandbox.errors import ImageNotFoundError

if TYPE_CHECKING:
    from sandbox.image import Image, Use


@define(eq=False)
class _Shared:
    """One use for all containers of this process that are over an image at the same time."""

    use: Use
    count: int = 0


_shared: dict[tuple[str, str], _Shared] = {}
_sharing = threading.Lock()


def use(image: Image) -> Callable[[], None]:
    """Use *image* until what is returned is called.

    Raises: ImageNotFoundError: it has been removed.
    """
    owner, shared = os.getpid(), _take(image)

    def let_go() -> None:
        if os.getpid() == owner:  # a forked child has none of the uses of its parent
            _give(image, shared)

    return let_go


def removal(image: Image) -> ImageNotFoundError | None:
    """What has failed, when something did with a container of *image*, if that was removed by force meanwhile; None: it is there."""
    return None if is_there(image) else ImageNotFoundError(f"image {image.id}: it was removed while a container of it was made")


def _key(image: Image) -> tuple[str, str]:
    return image.store, str(image.id)


def _take(image: Image) -> _Shared:
    from sandbox.image import Store

    with _sharing:
        shared = _shared.get(_key(image))
        if shared is None:
            shared = _shared[_key(image)] = _Shared(Store(image.store).use(image))
        shared.count += 1
        return shared


def _give(image: Image, shared: _Shared) -> None:
    with _sharing:
        shared.count -= 1
        if shared.count == 0:
            if _shared.get(_key(image)) is shared:
                del _shared[_key(image)]
            shared.use.close()


def is_there(image: Image) -> bool:
    """Whether it is still in its store."""
    from sandbox.image import Store

    try:
        Store(image.store).use(image).close()
    except ImageNotFoundError:
        return False
    return True


def _after_fork_in_child() -> None:
    global _sharing
    _sharing = threading.Lock()
    _shared.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
