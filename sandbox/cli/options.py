"""What the options of ``sandbox run`` and ``sandbox bench`` mean: words to the arguments of the library. Pure but for env files."""

from __future__ import annotations

import os
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from attrs import fields, frozen

from sandbox import Bind, Limits, Rlimits, Security, Tmpfs, UsageError, Volume
from sandbox.cli import health, networks, sharing
from sandbox.fs import parse_mount, parse_tmpfs, parse_volume

Mount = Bind | Tmpfs | Volume

_TIME_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # timeout(1)'s, and ms
_MAX_ENV_FILE: Final = 1 << 20
_TRUE: Final = frozenset(("", "true", "1"))
_FALSE: Final = frozenset(("false", "0"))


@frozen
class Request:
    """One checked command line: arguments of `Container` and of `popen`, and what this command does itself."""

    program: tuple[str, ...]
    container: Mapping[str, Any]
    program_options: Mapping[str, Any]
    output_limit: int | None
    tty: bool
    interactive: bool
    report: str | None  # a file; "-" is standard error
    explain: bool
    image: str | None = None
    entrypoint: str | None = None  # instead of the image's
    pull: str = "never"  # or "missing", "always"


def to_request(parsed: Namespace, environ: Mapping[str, str]) -> Request:
    """Give the options of ``sandbox run`` their meaning. Raises: UsageError, naming the option."""
    if parsed.tty and parsed.output_limit is not None:
        raise UsageError("--output-limit: not with --tty, where there is no end to what a terminal shows")
    if parsed.label or parsed.log_size is not None:
        raise UsageError("--label and --log-size: only with --detach, of a container that others find")
    if parsed.restart != "no":
        raise UsageError("--restart: only with --detach; what runs in the foreground ends with its command")
    if health.are_given(parsed):
        raise UsageError("--health-... and --no-healthcheck: only with --detach; nobody looks at what runs in the foreground")
    return Request(
        program=tuple(parsed.program),
        container=container_options(parsed, environ),
        program_options=program_options(parsed),
        output_limit=_given("--output-limit", parsed.output_limit, to_bytes),
        tty=parsed.tty,
        interactive=parsed.interactive is not False,
        report="-" if parsed.report else parsed.json,
        explain=parsed.explain,
        image=parsed.image,
        entrypoint=parsed.entrypoint,
        pull=parsed.pull or "never",
    )


def container_options(parsed: Namespace, environ: Mapping[str, str]) -> dict[str, Any]:
    """What is said of the container: arguments of `Container`."""
    memory, swap = _memory(parsed.memory, parsed.memory_swap)
    container: dict[str, Any] = {
        "image": _root(parsed.root, getattr(parsed, "image", None)),
        "memory": memory,
        "swap": swap,
        "cpus": _given("--cpus", parsed.cpus, to_number),
        "cpuset": parsed.cpuset_cpus,
        "pids": _given("--pids-limit", parsed.pids_limit, to_whole),
        "env": environment(parsed.env, parsed.env_file, environ),
        "cwd": parsed.workdir,
        "user": parsed.user,
        "rlimits": ulimits(parsed.ulimit),
        "security": security(parsed),
        "strict": not parsed.best_effort,
        **networks.arguments(parsed),
        **sharing.arguments(parsed),
        **_files(parsed),
    }
    words = (("hostname", parsed.hostname), ("shm", parsed.shm_size), ("name", getattr(parsed, "name", None)))
    container.update({name: value for name, value in words if value is not None})
    if getattr(parsed, "link", []):
        from sandbox.keep import with_links

        return with_links(container, parsed.link)
    return container


def program_options(parsed: Namespace) -> dict[str, Any]:
    """What is said of a run: arguments of `Container.exec` and `Container.popen`."""
    return {"timeout": _given("--timeout", parsed.timeout, to_time), "cpu_time": _given("--cpu-time", parsed.cpu_time, to_time)}


@frozen
class BenchRequest:
    """One checked command line of ``sandbox bench``: arguments of `sandbox.compare`, and what the command does itself."""

    programs: Mapping[str, tuple[str, ...]]
    arguments: Mapping[str, Any]
    json: str | None
    csv: str | None


def to_bench_request(parsed: Namespace, environ: Mapping[str, str]) -> BenchRequest:
    """Give the options of ``sandbox bench`` their meaning. Raises: UsageError, naming the option."""
    arguments: dict[str, Any] = {
        "repeat": _given("--repeat", parsed.repeat, to_whole),
        "warmup": _given("--warmup", parsed.warmup, to_whole),
        "seed": _given("--seed", parsed.seed, to_whole),
        "confidence": _given("--confidence", parsed.confidence, to_number),
        "setup": _given("--setup", parsed.setup, to_words),
        "prepare": _given("--prepare", parsed.prepare, to_words),
        "exit_codes": _given("--exit-codes", parsed.exit_codes, to_codes),
        "stdin": parsed.input,
        "stdout": 1 if parsed.show_output else None,
        "stderr": 2 if parsed.show_output else None,
    }
    given = {name: value for name, value in arguments.items() if value is not None}
    container = container_options(parsed, environ)
    if networks.new_networks(container):
        raise UsageError("--network: 'new' is for sandbox run; give the name of a network that is kept")
    given |= {"fresh": parsed.fresh, "check": not parsed.ignore_failure, **container, **program_options(parsed)}
    return BenchRequest(_programs(parsed), given, parsed.export_json, parsed.export_csv)


def _programs(parsed: Namespace) -> dict[str, tuple[str, ...]]:
    commands = [tuple(parsed.program), *(to_words("--compare", text) for text in parsed.compare)]
    if len(parsed.command_name) > len(commands):
        raise UsageError(f"--command-name: {len(parsed.command_name)} names for {len(commands)} programs")
    names = [*parsed.command_name, *(shlex.join(words) for words in commands[len(parsed.command_name) :])]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--compare: two programs are called {twice[0]!r}; tell them apart by --command-name")
    return dict(zip(names, commands, strict=True))


def to_words(option: str, text: str) -> tuple[str, ...]:
    """Split a command as a shell would; nothing in it is expanded."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{option}: {text!r}: {error}") from None
    if not words:
        raise UsageError(f"{option}: empty; give a program and its arguments")
    return words


def to_codes(option: str, text: str) -> tuple[int, ...]:
    """Read exit codes: ``0,1``."""
    return tuple(to_whole(option, word.strip()) for word in text.split(","))


def _given(option: str, text: str | None, convert: Any) -> Any:  # noqa: ANN401 - whatever *convert* makes of it
    return None if text is None else convert(option, text)


def to_number(option: str, text: str) -> float:
    """Read a decimal number."""
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option}: {text!r} is not a number") from None


def to_whole(option: str, text: str) -> int:
    """Read a whole number."""
    if not (text.isascii() and text.removeprefix("-").isdigit()) or len(text) > 20:
        raise UsageError(f"{option}: {text!r} is not a whole number")
    return int(text)


def to_time(option: str, text: str) -> float:
    """Read seconds, or a number with a unit: ``500ms``, ``3s``, ``2m``, ``1h``."""
    number = text.rstrip("smhd")
    unit = _TIME_UNITS.get(text[len(number) :] or "s")
    if unit is None or not number.replace(".", "", 1).isdigit() or not number.isascii() or float(number) == 0:
        raise UsageError(f"{option}: {text!r} is not a time; write it as 3, 1.5, 500ms, 2m or 1h, above 0")
    return float(number) * unit


def to_bytes(option: str, text: str) -> int:
    """Read a size, by the library's own rules: those of a limit on swap, which may be any."""
    try:
        return Limits(memory=4096, swap=text).swap or 0
    except UsageError as error:
        raise UsageError(f"{option}: {str(error).removeprefix('swap: ')}") from None


def _memory(memory: str | None, both: str | None) -> tuple[str | int | None, int | None]:
    """``--memory-swap`` is Docker's: memory and swap together."""
    if both is None:
        return memory, None
    if memory is None:
        raise UsageError("--memory-swap: is memory and swap together; give --memory too")
    if both.startswith("-"):
        raise UsageError(f"--memory-swap: {both!r}: unlimited swap is not offered; give the sum of memory and swap")
    size = to_bytes("--memory", memory)
    swap = to_bytes("--memory-swap", both) - size
    if swap < 0:
        raise UsageError(f"--memory-swap: {both!r} is less than --memory {memory!r}; it is the sum of memory and swap")
    return size, swap


def _root(path: str | None, image: str | None) -> str | None:
    """What `Container` gets as its image: the name of one never means a directory, nor a directory an image."""
    if path is not None and image is not None:
        raise UsageError("--image and --root: give one of the two")
    if image is not None:
        if image.startswith(("/", ".")) or not image:
            raise UsageError(f"--image: {image!r} is not a name; a directory is given with --root")
        return image
    if path is None:
        return None
    if not path:
        raise UsageError("--root: empty; give a directory")
    return path if path.startswith("/") else f"./{path}"  # a directory, whatever it is called; never the name of an image


# ---- Variables ----


def environment(pairs: Iterable[str], files: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Docker's rules: files first, then ``--env``; a name without ``=`` passes the caller's own variable on, if there is one."""
    found: dict[str, str] = {}
    for file in files:
        found.update(_variables(_env_lines(file), f"--env-file: {file}", environ))
    found.update(_variables(pairs, "--env", environ))
    return found


def _variables(items: Iterable[str], where: str, environ: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not name or any(blank in name for blank in " \t"):
            raise UsageError(f"{where}: {item!r} is not NAME or NAME=VALUE")
        if equals:
            found[name] = value
        elif name in environ:
            found[name] = environ[name]
    return found


def _env_lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(_MAX_ENV_FILE + 1)
    except OSError as error:
        raise UsageError(f"--env-file: {path}: {error.strerror}") from None
    if len(text) > _MAX_ENV_FILE:
        raise UsageError(f"--env-file: {path}: larger than {_MAX_ENV_FILE} characters")
    return [line for raw in text.split("\n") if (line := raw.rstrip("\r").lstrip()) and not line.startswith("#")]


# ---- Files ----


def _files(parsed: Namespace) -> dict[str, Any]:
    """The mounts and the writable layer: without a root of its own the view of the host is read-only, with a writable /tmp."""
    mounts: list[Mount] = [*map(volume, parsed.volume), *map(mount, parsed.mount), *map(tmpfs, parsed.tmpfs)]
    if parsed.read_only:
        if parsed.scratch is not None:
            raise UsageError("--scratch: is the size of what --read-only leaves out; give one of the two")
        return {"mounts": mounts, "read_only": True}
    if parsed.scratch is not None:
        return {"mounts": mounts, "scratch": to_bytes("--scratch", parsed.scratch)}
    if parsed.root is not None or getattr(parsed, "image", None) is not None:
        return {"mounts": mounts}
    own = () if any(each.target == "/tmp" for each in mounts) else (Tmpfs("/tmp"),)  # noqa: S108 - a path inside
    return {"mounts": [*mounts, *own], "read_only": True}


def _said(option: str, text: str, parse: Callable[[str], Mount]) -> Mount:
    try:
        made = parse(text)
    except UsageError as error:
        raise UsageError(f"{option} {text!r}: {error}") from None
    if isinstance(made, Bind) and not os.path.exists(made.source):
        raise UsageError(f"{option} {text!r}: {made.source}: no such file or directory; create it first")
    return made


def volume(text: str) -> Mount:
    """``--volume``: see `sandbox.fs.parse_volume`."""
    return _said("--volume", text, parse_volume)


def mount(text: str) -> Mount:
    """``--mount``: see `sandbox.fs.parse_mount`."""
    return _said("--mount", text, parse_mount)


def tmpfs(text: str) -> Mount:
    """``--tmpfs``: see `sandbox.fs.parse_tmpfs`."""
    return _said("--tmpfs", text, parse_tmpfs)


def _switch(option: str, name: str, value: str) -> bool:
    if value in _FALSE:
        return False
    if value not in _TRUE:
        raise UsageError(f"{option}: {name}={value!r} is neither true nor false")
    return True


# ---- Walls ----


_ULIMITS: Final = {attribute.name.removesuffix("_"): attribute.name for attribute in fields(Rlimits)}


def ulimits(items: Iterable[str]) -> Rlimits | None:
    """``NAME=SOFT[:HARD]``, with -1 or ``unlimited`` for none."""
    values: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        soft, colon, hard = text.partition(":")
        if not equals or not soft or (colon and not hard):
            raise UsageError(f"--ulimit: {item!r} is not NAME=SOFT or NAME=SOFT:HARD")
        if name not in _ULIMITS:
            raise UsageError(f"--ulimit: {name!r} is not a limit; there are {', '.join(_ULIMITS)}")
        values[_ULIMITS[name]] = (_ulimit(soft), _ulimit(hard or soft))
    try:
        return Rlimits(**values) if values else None
    except UsageError as error:
        raise UsageError(f"--ulimit: {error}") from None


def _ulimit(text: str) -> int | str:
    return "unlimited" if text == "-1" else int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text


def security(parsed: Namespace) -> Security:
    """The profile, the capabilities and each ``--security-opt``."""
    words: dict[str, Any] = {"cap_add": parsed.cap_add, "cap_drop": parsed.cap_drop}
    for option in parsed.security_opt:
        words.update(_security_option(option))
    try:
        return Security(parsed.profile or "default", **words)
    except UsageError as error:
        raise UsageError(f"security: {error}") from None


_SECURITY: Final[Mapping[str, dict[str, Any]]] = {
    "seccomp=unconfined": {"seccomp": False},
    "systempaths=unconfined": {"masks": False},
    "landlock=off": {"landlock": False},
    "landlock=required": {"landlock": True},
    "nesting": {"nesting": True},
}


def _security_option(text: str) -> dict[str, Any]:
    name, _, value = text.replace(":", "=", 1).partition("=")
    if name == "no-new-privileges":
        return {"no_new_privs": _switch("--security-opt", name, value)}
    word = f"{name}={value}" if value else name
    if word not in _SECURITY:
        raise UsageError(f"--security-opt: {text!r} is not offered; there are no-new-privileges[=false], {', '.join(_SECURITY)}")
    return _SECURITY[word]
