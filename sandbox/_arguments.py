"""The arguments of one run, checked and joined with what the container says."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

from attrs import frozen

from sandbox._run import Spec, Text, candidates_for
from sandbox._spec import LEAST_MEMORY, NPROC, ContainerSpec, to_cwd, with_tmp
from sandbox._types import Argument, Env, Size, StrPath, to_argv, to_bool, to_count, to_env, to_items, to_seconds, to_size
from sandbox._users import Identity
from sandbox.cg import Limits
from sandbox.errors import UsageError
from sandbox.sec import Rlimits, hard_limits, rlimit_settings

_NPROC: Final = 6  # RLIMIT_NPROC
_NO_LIMITS: Final = Limits()
_MAX_ARGUMENT: Final = 131071  # MAX_ARG_STRLEN: 32 pages, with the NUL (execve(2))
_MAX_TOTAL: Final = 6 << 20


def as_key(value: Any) -> Any:  # noqa: ANN401
    """A list or dict of the caller's as a tuple, so that it can be a key; anything else as it is."""
    if isinstance(value, list):
        return tuple(value)  # type: ignore[arg-type, unused-ignore]
    return tuple(cast("dict[object, object]", value).items()) if isinstance(value, dict) else value


class ExecOptions(NamedTuple):
    """What the caller said, as said, but for `as_key` on *argv* and *env*. A tuple: this is the hot path."""

    argv: Sequence[Argument]
    env: Env | Iterable[tuple[str, str]] | None
    cwd: StrPath | None
    user: int | str | None
    timeout: float | None
    cpu_time: float | None
    memory: Size | None
    swap: Size | None
    cpus: float | None
    pids: int | None
    output_limit: Size | tuple[Size, Size]
    on_overflow: str
    rlimits: Rlimits | None
    umask: int
    accounting: bool | str | None
    pass_fds: Sequence[int] | Mapping[int, int]
    tty: bool = False
    size: tuple[int, int] = (0, 0)


@frozen
class Prepared:
    """A checked run: what init gets, the descriptors to pass (inside -> ours), and the limits of its control group."""

    spec: Spec
    fds: dict[int, int]
    limits: Limits | None
    accounted: bool | None


def build_spec(o: ExecOptions, container: ContainerSpec, identify: Callable[[str], Identity]) -> Prepared:
    """Check everything. Raises: UsageError.

    Cached, for a judge runs the same program with the same limits again and again; not with *pass_fds*, which are looked at.
    """
    who = identify(container.user if o.user is None else str(o.user))
    if o.pass_fds or not isinstance(o.argv, tuple):
        return _build_spec(o, container, who)
    try:
        return _cached_spec(o, container, who, o.timeout, o.cpu_time, o.memory, o.swap, o.cpus, o.pids, o.output_limit, o.umask, o.accounting)
    except TypeError:  # something that is no key: an env that is a dict, a path of one's own kind
        return _build_spec(o, container, who)


def _build_spec(o: ExecOptions, container: ContainerSpec, who: Identity) -> Prepared:
    argv = to_argv(o.argv)
    env, path = _environment(container.env, who.home or "/", to_env(o.env) if o.env else ())
    _check_lengths(argv, env)
    _check_memory(o.memory, argv, env)
    plain = o.memory is o.swap is o.cpus is o.pids is None
    if not isinstance(o.rlimits, (Rlimits, type(None))):
        raise UsageError(f"rlimits: {o.rlimits!r} is not an Rlimits; give Rlimits(nofile=64), say")
    limits = _detailed(o) if o.accounting == "full" else _NO_LIMITS if plain else Limits(o.memory, o.swap, o.cpus, pids=o.pids)
    cpu_s = None if o.cpu_time is None else to_seconds(o.cpu_time, what="cpu_time")
    to_bool(o.tty, what="tty")
    rows, columns = _terminal_size(o.size) if o.tty else (0, 0)
    output_limit, error_limit = _output_limits(o.output_limit)
    spec = Spec(
        argv=argv,
        candidates=candidates_for(argv[0], path),
        env=env,
        cwd=os.fsencode(container.cwd if o.cwd is None else to_cwd(o.cwd)),
        uid=who.uid,
        gid=who.gid,
        groups=who.groups,
        umask=to_count(o.umask, what="umask", least=0, most=0o777),
        wall_s=None if o.timeout is None else to_seconds(o.timeout, what="timeout"),
        cpu_s=cpu_s,
        cpus_milli=_cpus_milli(limits.cpus or container.limits.cpus),
        rlimits=_rlimits(o.rlimits or container.rlimits),
        output_limit=output_limit,
        error_limit=error_limit,
        discards=_discards(o.on_overflow),
        tty=o.tty,
        rows=rows,
        columns=columns,
        same_cpu=container.security.always_allows("sched_getaffinity", "sched_setaffinity", "getcpu"),
        is_detailed=o.accounting == "full",
    )
    accounted = _accounted(o.accounting, or_else=None if plain and cpu_s is None else True)
    return Prepared(spec, _pass_fds(o.pass_fds), None if limits == _NO_LIMITS else limits, accounted)


def _detailed(o: ExecOptions) -> Limits:
    from sandbox.cg.details import DetailedLimits

    return DetailedLimits(o.memory, o.swap, o.cpus, pids=o.pids)


def _accounted(value: bool | str | None, *, or_else: bool | None) -> bool | None:
    if value is None:
        return or_else
    if value == "full":
        return True
    if not isinstance(value, bool):
        raise UsageError(f"accounting: {value!r} is none of True, False, None and 'full'")
    return value


@lru_cache(maxsize=512, typed=True)
def _cached_spec(o: ExecOptions, container: ContainerSpec, who: Identity, *numbers: object) -> Prepared:
    # Typed, for 1 and True are equal, and one of the two is refused; what is inside *o* would not be looked at.
    del numbers
    return _build_spec(o, container, who)


def _output_limits(value: Size | tuple[Size, Size]) -> tuple[int, int]:
    if isinstance(value, (int, str)):
        size = to_size(value, what="output_limit")
        return size, size
    items = to_items(value, what="output_limit", like="'16M', or ('16M', '64K') for stdout and stderr")
    if len(items) != 2:
        raise UsageError(f"output_limit: {value!r} is neither a size nor two; give '16M', or ('16M', '64K') for stdout and stderr")
    return to_size(items[0], what="output_limit"), to_size(items[1], what="output_limit")


def _discards(on_overflow: str) -> bool:
    if on_overflow not in ("kill", "discard"):
        raise UsageError(f"on_overflow: {on_overflow!r} is neither 'kill' nor 'discard'")
    return on_overflow == "discard"


def _terminal_size(size: tuple[int, int]) -> tuple[int, int]:
    items = to_items(size, what="size", like="(24, 80)")
    if len(items) != 2:
        raise UsageError(f"size: {size!r} is not (rows, columns); give such as (24, 80)")
    rows, columns = (to_count(n, what="size", least=0, most=65535) for n in items)
    return rows, columns


def _check_memory(memory: Size | None, argv: tuple[bytes, ...], env: tuple[bytes, ...]) -> None:
    """Refuse what no program could start with: until execve is through, it is init's memory that the kernel would give up for it."""
    least = LEAST_MEMORY + sum(map(len, argv)) + sum(map(len, env))
    if memory is not None and to_size(memory, what="memory") < least:
        raise UsageError(f"memory: {memory!r} is less than a program takes to start; give at least {least} bytes")


def _check_lengths(argv: tuple[bytes, ...], env: tuple[bytes, ...]) -> None:
    if max(map(len, argv)) > _MAX_ARGUMENT:
        raise UsageError(f"argv: an argument is longer than {_MAX_ARGUMENT} bytes, the kernel's limit; pass it by a file or by input")
    if max(map(len, env), default=0) > _MAX_ARGUMENT:
        raise UsageError(f"env: a variable is longer than {_MAX_ARGUMENT} bytes, the kernel's limit; pass it by a file or by input")
    if sum(map(len, argv)) + sum(map(len, env)) > _MAX_TOTAL:
        raise UsageError(f"argv and env: more than {_MAX_TOTAL >> 20} MiB together, the kernel's limit; pass it by a file or by input")


@lru_cache(maxsize=256)
def _environment(base: tuple[tuple[str, str], ...], home: str, more: tuple[tuple[str, str], ...]) -> tuple[tuple[bytes, ...], str]:
    """The variables as execve wants them, and PATH."""
    env = {"HOME": home, **dict(base), **dict(more)}
    return tuple(os.fsencode(f"{name}={value}") for name, value in env.items()), env.get("PATH", "")


@lru_cache(maxsize=64)
def _rlimits(rlimits: Rlimits) -> tuple[tuple[int, int, int], ...]:
    settings = rlimit_settings(rlimits, hard_limits())
    if any(number == _NPROC for number, _, _ in settings):
        return settings
    most = min(NPROC, hard_limits()[_NPROC])
    return (*settings, (_NPROC, most, most))


def _after_fork_in_child() -> None:
    """A child may lower its limits before it starts a launcher of its own, whose programs cannot have more."""
    _cached_spec.cache_clear()
    _rlimits.cache_clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


@lru_cache(maxsize=32)
def _cpus_milli(cpus: float | None) -> int:
    online = len(os.sched_getaffinity(0))
    return math.ceil(min(online, cpus if cpus is not None else online) * 1000)


def _pass_fds(value: Sequence[int] | Mapping[int, int]) -> dict[int, int]:
    if not value:
        return {}
    pairs = dict(value) if isinstance(value, Mapping) else {fd: fd for fd in to_items(value, what="pass_fds", like="[5]")}
    for inside, ours in pairs.items():
        to_count(inside, what="pass_fds", least=3, most=1023)
        to_count(ours, what="pass_fds", least=0)
        try:
            os.fstat(ours)
        except OSError:
            raise UsageError(f"pass_fds: {ours} is not an open descriptor") from None
    if len(pairs) > 200:
        raise UsageError("pass_fds: more than 200 descriptors")
    return pairs


def text_of(text: bool, encoding: str | None, errors: str) -> Text:
    """How output becomes text. Raises UsageError for an encoding that does not exist."""
    if encoding is None and text is False:
        return _BYTES
    if not isinstance(text, bool) or not isinstance(encoding, (str, type(None))) or not isinstance(errors, str):
        raise UsageError(f"text={text!r}, encoding={encoding!r}, errors={errors!r}: give True or False, and names such as 'utf-8' and 'replace'")
    return _text_of(encoding or "utf-8", errors)


_BYTES: Final = Text()


@lru_cache(maxsize=8)
def _text_of(encoding: str, errors: str) -> Text:
    import codecs

    try:
        "".encode(encoding)  # not only known, but an encoding of text: base64 is none
        codecs.lookup_error(errors)
    except (LookupError, ValueError) as error:
        raise UsageError(f"encoding: {error}") from None
    return Text(encoding, errors)


@lru_cache(maxsize=1)
def _names() -> tuple[frozenset[str], frozenset[str]]:
    from sandbox.container import keyword_defaults

    return frozenset(keyword_defaults("__init__")), frozenset(keyword_defaults("exec"))


# What others have, and what it is here: subprocess's words, then docker-py's.
_INSTEAD: Final = {
    "capture_output": "stdout and stderr are captured unless told otherwise: leave it out, or give stdout=DEVNULL",
    "shell": "give the shell as the program: ['sh', '-c', 'echo $HOME']",
    "universal_newlines": "give text=True",
    "args": "the program's arguments come first: run(['ls', '-l'])",
    "executable": "name the program by its path as the first item of argv",
    "preexec_fn": "nothing of the caller's runs in the program's process; see rlimits=, umask=, cwd=, user=",
    "close_fds": "nothing is inherited but 0, 1, 2 and pass_fds=",
    "start_new_session": "each program leads a session of its own",
    "process_group": "each program leads a session of its own",
    "group": "give user='1000:1000'",
    "extra_groups": "give a user= who has them in /etc/group",
    "bufsize": "give stdout=PIPE to Container.popen",
    "tty": "Container.popen has it: a terminal is for who talks with a program",
    "command": "the program's arguments come first: run(['ls', '-l'])",
    "environment": "give env=",
    "working_dir": "give cwd=",
    "workdir": "give cwd=",
    "volumes": "give mounts=[Bind('./src', '/src'), Volume('cache', '/cache')]",
    "binds": "give mounts=[Bind('./src', '/src')]",
    "tmpfs": "give mounts=[Tmpfs('/tmp', size='64M')]",
    "mem_limit": "give memory=",
    "memswap_limit": "give swap=",
    "nano_cpus": "give cpus=1.5",
    "cpu_quota": "give cpus=1.5",
    "pids_limit": "give pids=",
    "shm_size": "give shm=",
    "network": "give net=",
    "network_mode": "give net=",
    "network_disabled": "net=None is the default: loopback only",
    "ulimits": "give rlimits=Rlimits(nofile=64)",
    "cap_add": "give security=Security(cap_add=[...])",
    "cap_drop": "give security=Security(cap_drop=[...])",
    "privileged": "there is no such switch; open what is needed one by one with security=Security(...)",
    "remove": "nothing is left behind in any case",
    "detach": "use Container.popen, or sandbox.keep for what is to outlive this process",
}


def unknown_argument(name: str, known: Iterable[str]) -> str:
    """Words for an argument that there is not: what is here in its place, or what it is close to."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), 1)
    advice = _INSTEAD.get(name) or (f"did you mean {close[0]!r}?" if close else "see Container and Container.exec for those that there are")
    return f"unknown argument {name!r}: {advice}"


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of `run` that are Container's, and those of exec; what both have is Container's."""
    mine, theirs = _names()
    if unknown := options.keys() - mine - theirs:
        raise UsageError(f"run: {unknown_argument(min(unknown), mine | theirs)}")
    return {k: v for k, v in options.items() if k in mine}, {k: v for k, v in options.items() if k not in mine}


def one_shot(image: StrPath | None, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `split_options`; a view of the host gets no writable layer, but a small /tmp, unless *options* say otherwise."""
    mine, theirs = split_options(options)
    if image is None and not {"read_only", "scratch"} & mine.keys():
        mine["read_only"] = True
        mine["mounts"] = with_tmp(mine.get("mounts", ()))
    return mine, theirs
