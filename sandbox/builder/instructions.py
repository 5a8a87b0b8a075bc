"""The instructions of a Dockerfile as values: what each says, before variables are expanded. Pure; errors point to the word that is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from attrs import field, frozen

from sandbox.builder._source import Source, Statement, Word, is_json_form, read_source, split_words, statements
from sandbox.builder.expansion import ExpansionError, expand

_STAGE_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]*", re.ASCII)
_DURATION: Final = r"(?:(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h))+"
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_FRONTENDS: Final = r"(?:(?:[\w.:-]+/)*docker/dockerfile(?:-upstream)?|(?:docker\.io/)?(?:library/)?dockerfile)(?:[:@].*)?"  # of a mirror, too


@frozen(eq=False)
class Flag:
    """``--name=value``; *word* is where it stands."""

    name: str
    value: str
    word: Word


@frozen(eq=False)
class Command:
    """Arguments as a JSON list, or one line for a shell."""

    words: tuple[str, ...]
    is_shell: bool


@frozen(eq=False)
class Instruction:
    """What all have: the statement, for errors and history."""

    statement: Statement

    def __repr__(self) -> str:  # one for all: attrs would compile one for each, whenever this is loaded
        return f"{type(self).__name__}({self.statement!r})"


@frozen(eq=False, repr=False)
class From(Instruction):
    """Begin a stage."""

    image: Word
    name: str = ""
    platform: str = ""


@frozen(eq=False, repr=False)
class Run(Instruction):
    """Run a command in a container."""

    command: Command
    mounts: tuple[Flag, ...] = ()
    network: str = "default"


@frozen(eq=False, repr=False)
class Copy(Instruction):
    """COPY, and ADD (*is_add*): put files into the image."""

    sources: tuple[Word, ...]
    target: Word
    is_add: bool = False
    from_: str = ""
    chown: str = ""
    chmod: str = ""
    checksum: str = ""
    link: bool = False
    parents: bool = False
    unpack: bool | None = None
    exclude: tuple[str, ...] = ()


@frozen(eq=False, repr=False)
class Pairs(Instruction):
    """ENV, LABEL and ARG: names and values (None: ARG without one)."""

    pairs: tuple[tuple[Word, Word | None], ...]


@frozen(eq=False, repr=False)
class Words(Instruction):
    """EXPOSE, VOLUME, USER, WORKDIR, STOPSIGNAL, MAINTAINER: words that are expanded one by one."""

    words: tuple[Word, ...]


@frozen(eq=False, repr=False)
class Program(Instruction):
    """CMD, ENTRYPOINT and SHELL."""

    command: Command


@frozen(eq=False, repr=False)
class Health(Instruction):
    """HEALTHCHECK; *command* None: NONE. Times in seconds."""

    command: Command | None
    times: dict[str, float] = field(factory=dict[str, float])
    retries: int | None = None


@frozen(eq=False, repr=False)
class OnBuild(Instruction):
    """Hand *trigger* down to those who build upon the image."""

    trigger: str


@frozen(eq=False)
class Stage:
    """FROM and what follows it; *before*: the ARGs before the first FROM, which all stages' FROM lines see."""

    base: From
    steps: tuple[Instruction, ...]
    index: int

    @property
    def name(self) -> str:
        """Its name, or its number."""
        return self.base.name or str(self.index)


@frozen(eq=False)
class Dockerfile:
    """A whole one."""

    source: Source
    arguments: tuple[Pairs, ...]
    stages: tuple[Stage, ...]

    def find(self, name: str) -> Stage | None:
        """The last stage of this name, or the one with this number."""
        for stage in reversed(self.stages):
            if name.lower() == stage.base.name or name == str(stage.index):
                return stage
        return None


def parse(data: bytes | str, name: str = "Dockerfile") -> Dockerfile:
    """Read a Dockerfile. Raises: DockerfileError: with file, line and column."""
    source = read_source(data, name)
    _check_directives(source)
    arguments: list[Pairs] = []
    groups: list[tuple[From, list[Instruction]]] = []
    for statement in statements(source):
        instruction = parse_statement(statement)
        if isinstance(instruction, From):
            groups.append((instruction, []))
        elif groups:
            groups[-1][1].append(instruction)
        elif isinstance(instruction, Pairs) and statement.keyword == "ARG":
            arguments.append(instruction)
        else:
            raise statement.error(f"{statement.keyword} before FROM; only ARG may stand there")
    if not groups:
        raise source.error("no FROM: nothing to build", 1)
    return Dockerfile(source, tuple(arguments), tuple(Stage(base, tuple(steps), index) for index, (base, steps) in enumerate(groups)))


def parse_triggers(triggers: Iterable[str], image: str) -> list[Instruction]:
    """Read the ONBUILD triggers of *image*, which may come from a stranger. Raises: DockerfileError."""
    found: list[Instruction] = []
    for number, trigger in enumerate(triggers, 1):
        source = read_source(trigger, f"ONBUILD {number} of {image}")
        for statement in statements(source):
            if statement.keyword in ("FROM", "ONBUILD", "MAINTAINER"):
                raise statement.error(f"{statement.keyword} cannot be a trigger of ONBUILD")
            found.append(parse_statement(statement))
    return found


def parse_statement(statement: Statement) -> Instruction:
    """Read one instruction. Raises: DockerfileError."""
    reader = _READERS.get(statement.keyword)
    if reader is None:
        near = _nearest(statement.keyword)
        raise statement.error(f"unknown instruction {statement.keyword}" + (f"; did you mean {near}?" if near else ""))
    if not statement.text:
        raise statement.error(f"{statement.keyword} without arguments")
    return reader(statement)


def _check_directives(source: Source) -> None:
    syntax = source.directives.get("syntax")
    if syntax is not None and not re.fullmatch(_FRONTENDS, syntax, re.ASCII):
        line = next(number for number, text in enumerate(source.lines, 1) if "syntax" in text.lower())
        raise source.error(f"syntax={syntax}: only docker/dockerfile is known; another reader is an image, which is not run", line)
    check = source.directives.get("check")
    if check is not None and not all(re.fullmatch(r"(?:skip|error)=[A-Za-z0-9,]+", part.strip()) for part in check.split(";")):
        line = next(number for number, text in enumerate(source.lines, 1) if "check" in text.lower())
        raise source.error("check: write skip=NAME,NAME or skip=all, and error=true after a semicolon", line)


def _nearest(keyword: str) -> str:
    import difflib

    return next(iter(difflib.get_close_matches(keyword, _READERS, 1)), "")


# ---- Flags, lists, pairs ----


def take_flags(statement: Statement, known: Iterable[str]) -> tuple[list[Flag], int]:
    """Read the flags at the beginning; give them, and where the rest begins. Raises: DockerfileError."""
    flags: list[Flag] = []
    allowed = tuple(known)
    at = 0
    for word in split_words(statement.text, statement.escape):
        if not word.text.startswith("--"):
            at = word.at
            break
        at = len(statement.text)
        if word.text == "--":
            rest = statement.text[word.at + 2 :]
            return flags, word.at + 2 + len(rest) - len(rest.lstrip())
        name, equals, value = word.text[2:].partition("=")
        if name not in allowed:
            there = f"there are {', '.join('--' + flag for flag in allowed)}" if allowed else "it has none"
            raise statement.error_at(f"{statement.keyword} has no flag --{name}; {there}", word)
        if not equals and name not in _SWITCHES:
            raise statement.error_at(f"--{name} needs a value: --{name}=...", word)
        if name not in _REPEATED and any(flag.name == name for flag in flags):
            raise statement.error_at(f"--{name} is given twice", word)
        flags.append(Flag(name, value if equals else "true", word))
    return flags, at


_SWITCHES: Final = ("link", "parents", "unpack", "keep-git-dir")
_REPEATED: Final = ("mount", "exclude")


def _values(flags: list[Flag]) -> dict[str, str]:
    return {flag.name: flag.value for flag in flags}


def _switch(statement: Statement, flags: list[Flag], name: str) -> bool | None:
    flag = next((flag for flag in flags if flag.name == name), None)
    if flag is None:
        return None
    if flag.value.lower() not in ("true", "false", "1", "0"):
        raise statement.error_at(f"--{name}: {flag.value!r} is neither true nor false", flag.word)
    return flag.value.lower() in ("true", "1")


def _json_list(statement: Statement, at: int) -> tuple[str, ...] | None:
    text = statement.text[at:]
    if not is_json_form(text):
        return None
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list):
        return None
    items = cast("list[object]", found)
    words = tuple(item for item in items if isinstance(item, str))
    if len(words) != len(items):
        raise statement.error(f"{statement.keyword}: all of a JSON list are strings, in double quotes", at, len(text))
    return words


def _command(statement: Statement, at: int) -> Command:
    text = statement.text[at:]
    if not text:
        raise statement.error(f"{statement.keyword} without a command")
    words = _json_list(statement, at)
    return Command((text,), is_shell=True) if words is None else Command(words, is_shell=False)


def _list(statement: Statement, at: int) -> list[Word]:
    """Words, or a JSON list of them; those of a list are quoted, so that expansion leaves their blanks alone."""
    words = _json_list(statement, at)
    if words is None:
        return split_words(statement.text, statement.escape, at)
    return [Word(_quoted(word, statement.escape), at) for word in words]


def _quoted(text: str, escape: str) -> str:
    return re.sub(rf"[\s'\"{re.escape(escape)}]", lambda match: escape + match[0], text)


def unquote(statement: Statement, word: str, at: int = 0) -> str:
    """Take quotes and escapes away; a variable is refused where none is expanded. Raises: DockerfileError."""
    if "$" in word:
        raise statement.error("variables are not expanded here; give FROM a name for it that an ARG before the first FROM decides", at, len(word))
    return _expanded(statement, word, at)


def _expanded(statement: Statement, word: str, at: int) -> str:
    try:
        return expand(word, {}, escape=statement.escape)
    except ExpansionError as error:
        raise statement.error(str(error), at + error.at) from None


# ---- One reader for each instruction ----


def _read_from(statement: Statement) -> From:
    flags, at = take_flags(statement, ("platform",))
    words = split_words(statement.text, statement.escape, at) if at < len(statement.text) else []
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].text.upper() != "AS"):
        raise statement.error("FROM takes an image, or: IMAGE AS NAME", at, max(1, len(statement.text) - at))
    name = words[2].text.lower() if len(words) == 3 else ""
    if name and (not _STAGE_NAME.fullmatch(name) or name in ("scratch", "context")):
        raise statement.error_at(f"{words[2].text!r} is no name of a stage; letters, digits, '_', '.', '-', a letter first", words[2])
    return From(statement, words[0], name, _values(flags).get("platform", ""))


def _read_run(statement: Statement) -> Run:
    flags, at = take_flags(statement, ("mount", "network", "security"))
    values = _values(flags)
    network = values.get("network", "default")
    if network not in ("default", "none", "host"):
        raise statement.error(f"--network={network}: there are default, none and host", 0)
    if (security := values.get("security", "sandbox")) != "sandbox":
        raise statement.error(f"--security={security}: a step always runs in a sandbox", 0)
    mounts = tuple(flag for flag in flags if flag.name == "mount")
    return Run(statement, _command(statement, at), mounts, network)


_COPY_FLAGS: Final = ("from", "chown", "chmod", "link", "parents", "exclude")
_ADD_FLAGS: Final = ("chown", "chmod", "link", "exclude", "checksum", "keep-git-dir", "unpack")


def _read_copy(statement: Statement) -> Copy:
    is_add = statement.keyword == "ADD"
    flags, at = take_flags(statement, _ADD_FLAGS if is_add else _COPY_FLAGS)
    values = _values(flags)
    words = _list(statement, at) if at < len(statement.text) else []
    if len(words) < 2:
        raise statement.error(f"{statement.keyword} takes one source or more, and a destination", at, max(1, len(statement.text) - at))
    source = next((flag for flag in flags if flag.name == "from"), None)
    return Copy(
        statement,
        tuple(words[:-1]),
        words[-1],
        is_add=is_add,
        from_="" if source is None else unquote(statement, source.value, source.word.at + len("--from=")),
        chown=values.get("chown", ""),
        chmod=values.get("chmod", ""),
        checksum=values.get("checksum", ""),
        link=bool(_switch(statement, flags, "link")),
        parents=bool(_switch(statement, flags, "parents")),
        unpack=_switch(statement, flags, "unpack"),
        exclude=tuple(flag.value for flag in flags if flag.name == "exclude"),
    )


def _read_pairs(statement: Statement) -> Pairs:
    _, at = take_flags(statement, ())
    words = split_words(statement.text, statement.escape, at)
    if not words:
        raise statement.error(f"{statement.keyword} without arguments")
    if statement.keyword != "ARG" and "=" not in words[0].text:
        return Pairs(statement, (_old_form(statement, words),))
    pairs: list[tuple[Word, Word | None]] = []
    for word in words:
        name, equals, value = word.text.partition("=")
        if not name or (not equals and statement.keyword != "ARG"):
            raise statement.error_at(f"{statement.keyword}: {word.text!r} is not NAME=VALUE", word)
        if statement.keyword == "ARG" and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
            raise statement.error_at(f"ARG: {name!r} is no name of a variable", word)
        pairs.append((Word(name, word.at), Word(value, word.at + len(name) + 1) if equals else None))
    return Pairs(statement, tuple(pairs))


def _old_form(statement: Statement, words: list[Word]) -> tuple[Word, Word]:
    """``ENV NAME the rest of the line``."""
    if len(words) < 2:
        raise statement.error_at(f"{statement.keyword}: {words[0].text!r} is not NAME=VALUE", words[0])
    return words[0], Word(statement.text[words[1].at :], words[1].at)


def _read_words(statement: Statement) -> Words:
    _, at = take_flags(statement, ())
    if statement.keyword in ("EXPOSE", "VOLUME"):
        return Words(statement, tuple(_list(statement, at) if statement.keyword == "VOLUME" else split_words(statement.text, statement.escape, at)))
    return Words(statement, (Word(statement.text[at:], at),))


def _read_program(statement: Statement) -> Program:
    _, at = take_flags(statement, ())
    command = _command(statement, at)
    if statement.keyword == "SHELL" and (command.is_shell or not command.words):
        raise statement.error('SHELL takes a JSON list, such as ["/bin/sh", "-c"]', at, max(1, len(statement.text) - at))
    return Program(statement, command)


def _read_health(statement: Statement) -> Health:
    flags, at = take_flags(statement, ("interval", "timeout", "start-period", "start-interval", "retries"))
    kind, rest = (*statement.text[at:].split(maxsplit=1), "", "")[:2]
    if kind.upper() == "NONE" and not rest and not flags:
        return Health(statement, None)
    if kind.upper() != "CMD" or not rest.strip():
        raise statement.error("HEALTHCHECK takes NONE, or flags and CMD with a command", at, max(1, len(kind)))
    times = {flag.name: _duration(statement, flag) for flag in flags if flag.name != "retries"}
    retries = next((flag for flag in flags if flag.name == "retries"), None)
    if retries is not None and not (retries.value.isdecimal() and len(retries.value) < 9):
        raise statement.error_at("--retries takes a whole number", retries.word)
    return Health(statement, _command(statement, len(statement.text) - len(rest)), times, int(retries.value) if retries else None)


def _duration(statement: Statement, flag: Flag) -> float:
    if not re.fullmatch(_DURATION, flag.value, re.ASCII) and flag.value != "0":
        raise statement.error_at(f"--{flag.name}: {flag.value!r} is not a time, such as 30s or 1m30s", flag.word)
    pieces = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", flag.value)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in pieces)
    if seconds and seconds < 1e-3:
        raise statement.error_at(f"--{flag.name}: less than 1ms", flag.word)
    return seconds


def _read_on_build(statement: Statement) -> OnBuild:
    trigger = statement.original().partition(" ")[2]
    inner = parse_triggers([trigger], "this Dockerfile") if re.match(r"(?i)(?:FROM|ONBUILD|MAINTAINER)\b", trigger) is None else []
    if not inner:
        raise statement.error("ONBUILD takes an instruction other than FROM, ONBUILD and MAINTAINER", 0, len(statement.text.split()[0]))
    return OnBuild(statement, trigger)


_READERS: Final[dict[str, Callable[[Statement], Instruction]]] = {
    "FROM": _read_from,
    "RUN": _read_run,
    "COPY": _read_copy,
    "ADD": _read_copy,
    "ENV": _read_pairs,
    "LABEL": _read_pairs,
    "ARG": _read_pairs,
    "EXPOSE": _read_words,
    "VOLUME": _read_words,
    "USER": _read_words,
    "WORKDIR": _read_words,
    "STOPSIGNAL": _read_words,
    "MAINTAINER": _read_words,
    "CMD": _read_program,
    "ENTRYPOINT": _read_program,
    "SHELL": _read_program,
    "HEALTHCHECK": _read_health,
    "ONBUILD": _read_on_build,
}
