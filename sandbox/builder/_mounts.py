"""``RUN --mount=...`` as values: what each asks for, checked; nothing is opened here."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Final

from attrs import evolve, frozen

from sandbox.builder._source import Statement, Word
from sandbox.builder._state import expand_word
from sandbox.builder.instructions import Flag
from sandbox.errors import DockerfileError, UnsupportedError

_KEYS: Final = {"src": "source", "dst": "target", "destination": "target", "readwrite": "rw", "readonly": "ro"}
_OF_TYPE: Final = {
    "bind": {"source", "target", "from", "rw", "ro"},
    "cache": {"id", "target", "sharing", "mode", "uid", "gid", "rw", "ro", "from", "source"},
    "tmpfs": {"target", "size", "rw"},
    "secret": {"id", "source", "target", "required", "mode", "uid", "gid", "env", "ro"},
}
_SWITCHES: Final = ("rw", "ro", "required")
SECRETS: Final = "/run/secrets"


@frozen(repr=False)
class MountSpec:
    """One ``--mount``; *word* is where it stands."""

    kind: str
    word: Word
    target: str = ""
    source: str = ""
    from_: str = ""
    id: str = ""
    env: str = ""
    sharing: str = "shared"
    read_only: bool = False
    required: bool = False
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    size: str = ""

    @property
    def key(self) -> list[object]:
        """What of it is part of the cache's key: a secret's value and a cache's content are not."""
        return [self.kind, self.target, self.source, self.from_, self.id, self.env, self.read_only, self.mode, self.uid, self.gid, self.size]


def read_mount(statement: Statement, flag: Flag, names: Mapping[str, str], working_dir: str) -> MountSpec:
    """Read one. Raises: DockerfileError: what it says makes no sense; UnsupportedError: ssh."""
    word = Word(flag.value, flag.word.at + len("--mount="))
    fields = _fields(statement, word, names)
    kind = fields.pop("type", "bind").lower()
    if kind == "ssh":
        raise UnsupportedError(
            "RUN --mount=type=ssh: no agent is handed to a build",
            feature="build-ssh",
            remedy="fetch what needs keys before the build, or pass a deploy key with --mount=type=secret",
        )
    allowed = _OF_TYPE.get(kind)
    if allowed is None:
        raise statement.error_at(f"--mount: type={kind}; there are {', '.join(_OF_TYPE)}", word)
    if unknown := sorted(fields.keys() - allowed):
        raise statement.error_at(f"--mount: {unknown[0]!r} is no option of type={kind}; there are {', '.join(sorted(allowed))}", word)
    return _checked(statement, _of(statement, word, kind, fields), working_dir)


def _fields(statement: Statement, word: Word, names: Mapping[str, str]) -> dict[str, str]:
    import csv  # with what it loads, a hundredth of what a rebuild takes

    fields: dict[str, str] = {}
    try:
        parts = next(iter(csv.reader([word.text], strict=True)), list[str]())
    except csv.Error as error:
        raise statement.error_at(f"--mount: {error}", word) from None
    for part in parts:
        name, equals, raw = part.partition("=")
        name = _KEYS.get(name.strip().lower(), name.strip().lower())
        if name in fields:
            raise statement.error_at(f"--mount: {name} is given twice", word)
        if not equals and name not in _SWITCHES:
            raise statement.error_at(f"--mount: {name!r} needs a value", word)
        if name in ("from", "type") and "$" in raw:
            raise statement.error_at(f"--mount: variables are not expanded in {name}=", word)
        fields[name] = expand_word(statement, Word(raw, word.at), names) if equals else "true"
    return fields


def _of(statement: Statement, word: Word, kind: str, fields: Mapping[str, str]) -> MountSpec:
    def fail(message: str) -> DockerfileError:
        return statement.error_at(f"--mount: {message}", word)

    read_only = _switch(fields, "ro", fail, default=not _switch(fields, "rw", fail, default=kind != "bind"))
    mode = fields.get("mode")
    if mode is not None and not (re.fullmatch(r"[0-7]{1,5}", mode) and int(mode, 8) <= 0o7777):
        raise fail(f"mode={mode} is not octal, such as 0400")
    if (sharing := fields.get("sharing", "shared").lower()) not in ("shared", "private", "locked"):
        raise fail(f"sharing={sharing}; there are shared, private and locked")
    ids = [fields.get(name, "0") for name in ("uid", "gid")]
    if not all(re.fullmatch(r"[0-9]{1,5}", text) and int(text) <= 65535 for text in ids):
        raise fail("uid and gid are numbers from 0 to 65535")
    if kind == "cache" and "source" in fields and not fields.get("from"):
        raise fail("source= of a cache is a directory of what from= names")
    if kind == "secret" and "source" in fields and "id" in fields:
        raise fail("source= and id= of a secret are the same; give one of them")
    if kind == "secret" and fields.get("ro", "true").lower() in ("false", "0"):
        raise fail("a secret is never written to")
    if kind == "cache" and fields.get("from") and (own := sorted(fields.keys() & {"mode", "uid", "gid"})):
        raise fail(f"{own[0]}= of a cache that begins with what from= names: it has the owner and mode of that")
    return MountSpec(
        kind,
        word,
        target=fields.get("target", ""),
        source=fields.get("source", ""),
        from_=fields.get("from", ""),
        id=fields.get("id", ""),
        env=fields.get("env", ""),
        sharing=sharing,
        read_only=read_only,
        required=_switch(fields, "required", fail),
        mode=None if mode is None else int(mode, 8),
        uid=int(ids[0]),
        gid=int(ids[1]),
        size=fields.get("size", ""),
    )


def _switch(fields: Mapping[str, str], name: str, fail: Callable[[str], DockerfileError], *, default: bool = False) -> bool:
    text = fields.get(name)
    if text is None:
        return default
    if text.lower() not in ("true", "false", "1", "0"):
        raise fail(f"{name}={text} is neither true nor false")
    return text.lower() in ("true", "1")


def _checked(statement: Statement, spec: MountSpec, working_dir: str) -> MountSpec:
    """Fill in what follows from the rest."""
    if spec.kind == "secret":
        identity = spec.id or spec.source or posixpath.basename(spec.target)
        if not identity:
            raise statement.error_at("--mount: type=secret needs id= or target=", spec.word)
        target = spec.target or ("" if spec.env else f"{SECRETS}/{posixpath.basename(identity)}")
        spec = evolve(spec, id=identity, source="", target=target)
    elif not spec.target:
        raise statement.error_at(f"--mount: type={spec.kind} needs target=", spec.word)
    if not spec.target:
        return spec
    target = posixpath.normpath(posixpath.join("/", working_dir, spec.target))
    if target == "/":
        raise statement.error_at("--mount: the target is the root itself", spec.word)
    return evolve(spec, target=target, id=spec.id or target)
