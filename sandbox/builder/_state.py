"""What a stage has come to, and what its variables stand for: plain values, changed by one step after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import define, evolve, field, frozen

from sandbox.builder._source import Statement, Word
from sandbox.builder.expansion import ExpansionError, expand, expand_words
from sandbox.image import Config, Descriptor, Digest, History, Platform, Settings

# What these say reaches a RUN without ARG, and is no part of the cache's keys (Docker's documentation, "Predefined ARGs").
PROXIES: Final = tuple(
    name for upper in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY") for name in (upper, upper.lower())
)
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHELL: Final = ("/bin/sh", "-c")


@frozen(repr=False)
class LayerRef:
    """One layer of an image: what it is when unpacked, and the blob that it is kept as."""

    diff_id: Digest
    blob: Descriptor


@define(eq=False, repr=False)
class State:
    """An image in the making."""

    platform: Platform
    settings: Settings
    layers: tuple[LayerRef, ...] = ()
    history: tuple[History, ...] = ()
    arguments: dict[str, str | None] = field(factory=dict[str, str | None])
    created: str = ""
    author: str = ""
    has_cmd: bool = False  # CMD stood in this stage: ENTRYPOINT does not take it away

    @classmethod
    def empty(cls, platform: Platform) -> State:
        """``FROM scratch``."""
        return cls(platform, Settings(env=(f"PATH={DEFAULT_PATH}",), working_dir="/"))

    @classmethod
    def of(cls, config: Config, blobs: tuple[Descriptor, ...]) -> State:
        """An image, as a base."""
        layers = tuple(LayerRef(diff_id, blob) for diff_id, blob in zip(config.diff_ids, blobs, strict=True))
        return cls(config.platform, config.settings, layers, config.history, created=config.created, author=config.author)

    def child(self) -> State:
        """A stage that is based on this one: it has its variables too."""
        return evolve(self, arguments=dict(self.arguments), has_cmd=False)

    def set(self, **changes: Any) -> None:  # noqa: ANN401 - the types of the settings
        """Change settings."""
        self.settings = evolve(self.settings, **changes)

    def record(self, text: str, *, created: str = "", layer: LayerRef | None = None) -> None:
        """Add a line of history, and the layer that it made."""
        if layer is not None:
            self.layers = (*self.layers, layer)
            self.created = created
        self.history = (*self.history, History(created_by=text, created=self.created, empty_layer=layer is None))

    def config(self) -> Config:
        """The configuration of the image that this is."""
        diff_ids = tuple(layer.diff_id for layer in self.layers)
        return Config(self.platform, diff_ids, self.settings, self.history, self.created, self.author)

    @property
    def environment(self) -> dict[str, str]:
        """ENV, by name."""
        return {name: value for name, _, value in (text.partition("=") for text in self.settings.env)}

    @property
    def names(self) -> dict[str, str]:
        """What variables stand for: ARG, and ENV over it."""
        return {name: value for name, value in self.arguments.items() if value is not None} | self.environment

    @property
    def shell(self) -> tuple[str, ...]:
        """What the shell form is run by."""
        return self.settings.shell or DEFAULT_SHELL

    @property
    def working_dir(self) -> str:
        """Where RUN begins, and relative paths do."""
        return self.settings.working_dir or "/"


@frozen(eq=False, repr=False)
class Scope:
    """Where ARG takes values from: what the caller said, the ARGs before the first FROM, the platform's."""

    build_args: Mapping[str, str]
    globals: Mapping[str, str]
    platforms: Mapping[str, str]

    def value(self, name: str, default: str | None) -> str | None:
        """What ``ARG name=default`` gives."""
        if name in self.build_args:
            return self.build_args[name]
        if default is not None:
            return default
        return self.globals.get(name, self.platforms.get(name))


def platform_names(target: Platform, build: Platform) -> dict[str, str]:
    """BuildKit's variables of the two platforms."""
    found: dict[str, str] = {}
    for prefix, platform in (("TARGET", target), ("BUILD", build)):
        found |= {f"{prefix}PLATFORM": str(platform), f"{prefix}OS": platform.os, f"{prefix}ARCH": platform.architecture}
        found[f"{prefix}VARIANT"] = platform.variant
    return found


def expand_word(statement: Statement, word: Word, names: Mapping[str, str]) -> str:
    """Expand one word. Raises: DockerfileError: at the place within it."""
    try:
        return expand(word.text, names, escape=statement.escape)
    except ExpansionError as error:
        raise statement.error(str(error), word.at + error.at) from None


def expand_list(statement: Statement, word: Word, names: Mapping[str, str]) -> list[str]:
    """Expand one word to any number of them. Raises: DockerfileError."""
    try:
        return expand_words(word.text, names, escape=statement.escape)
    except ExpansionError as error:
        raise statement.error(str(error), word.at + error.at) from None
