"""What the store tells of an image, and of a step of a build."""

from __future__ import annotations

from attrs import field, frozen

from sandbox._types import Shown
from sandbox.image import _folds
from sandbox.image.digest import Digest
from sandbox.image.documents import Config, Descriptor, Settings, decode
from sandbox.image.reference import Reference

__all__ = ["Image", "Step"]


@frozen
class Image:
    """An image of a store, as it was when it was looked up. A value: it keeps nothing from being removed; `Store.use` does."""

    store: str = field(repr=False)  # the path of the store
    id: Digest  # of its configuration
    manifest: Digest
    names: tuple[str, ...]  # in full: "docker.io/library/debian:12"; sorted
    config: Config = field(repr=False)
    size: int  # bytes on disk of its unpacked layers, shared ones included
    built_here: bool
    links: tuple[str, ...] = field(repr=False)  # for each layer, the name of a link to it in `short`

    folds: tuple[tuple[int, int], ...] = field(default=(), repr=False)  # of its layers, which are mounted as one: the first, and how many

    @property
    def settings(self) -> Settings:
        """What it says of the containers that are made of it."""
        return self.config.settings

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of its unpacked layers, the lowest first."""
        return tuple(f"{self.store}/layers/{diff_id.hex}/tree" for diff_id in self.config.diff_ids)

    @property
    def stack(self) -> tuple[Digest, ...]:
        """What a container mounts, the lowest first: its layers, some of which are there in one directory besides (see `folds`)."""
        return _folds.stack(self.config.diff_ids, self.folds)

    @property
    def short(self) -> str:
        """The directory of `links`: there, the names of more than a hundred layers are short enough for one page of mount options."""
        return f"{self.store}/short"

    def inspect(self) -> dict[str, object]:
        """All of it in Docker's words, as ``docker image inspect`` tells it; fit for JSON."""
        document = decode(self.config.encode(), what="configuration")
        return {
            "Id": str(self.id),
            "RepoTags": [Reference.parse(name).familiar for name in self.names if "@" not in name],
            "RepoDigests": [Reference.parse(name).familiar for name in self.names if "@" in name],
            "Comment": self.config.history[-1].comment if self.config.history else "",
            "Created": self.config.created,
            "Author": self.config.author,
            "Config": document["config"],
            "Architecture": self.config.platform.architecture,
            "Variant": self.config.platform.variant,
            "Os": self.config.platform.os,
            "Size": self.size,
            "GraphDriver": {"Name": "overlay", "Data": {"LowerDir": ":".join(reversed(self.layers))}},
            "RootFS": {"Type": "layers", "Layers": [str(diff_id) for diff_id in self.config.diff_ids]},
            "Descriptor": {"digest": str(self.manifest)},
            "BuiltHere": self.built_here,
        }


@frozen(repr=False)
class Step(Shown):
    """What a step of a local build gave, as the build cache keeps it."""

    config: Digest | None = None  # the configuration after the step
    layer: Descriptor | None = None  # the blob of its layer; None: it made none
    diff_id: Digest | None = None  # the unpacked layer
