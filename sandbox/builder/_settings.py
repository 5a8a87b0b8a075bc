"""The instructions that only change what an image says: ENV, LABEL, ARG, EXPOSE, VOLUME, USER, CMD and their like. Nothing is touched."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from typing import Final

from sandbox.builder._source import Statement
from sandbox.builder._state import Scope, State, expand_list, expand_word
from sandbox.builder.instructions import Health, Instruction, OnBuild, Pairs, Program, Words
from sandbox.image import Healthcheck

_PORT: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII | re.IGNORECASE)
_REAL_TIME: Final = re.compile(r"RTM(?:IN|AX)[+-]\d{1,2}", re.ASCII)


def apply(instruction: Instruction, state: State, scope: Scope) -> bool:
    """Carry *instruction* out on *state*, history included; False: it is none of these. Raises: DockerfileError."""
    match instruction:
        case Pairs():
            _PAIRS[instruction.statement.keyword](instruction, state, scope)
        case Words() if instruction.statement.keyword != "WORKDIR":
            _WORDS[instruction.statement.keyword](instruction, state)
        case Program():
            _program(instruction, state)
        case Health():
            _health(instruction, state)
        case OnBuild():
            state.set(on_build=(*state.settings.on_build, instruction.trigger))
        case _:
            return False
    state.record(history_of(instruction.statement))
    return True


def history_of(statement: Statement) -> str:
    """A line of history: the instruction as it was written."""
    return statement.original()


def set_variable(env: tuple[str, ...], name: str, value: str) -> tuple[str, ...]:
    """Set a variable where it stands, or at the end."""
    found = [index for index, text in enumerate(env) if text.partition("=")[0] == name]
    text = f"{name}={value}"
    return (*env[: found[0]], text, *env[found[0] + 1 :]) if found else (*env, text)


def _env(instruction: Pairs, state: State, _: Scope) -> None:
    statement, names = instruction.statement, state.names  # all values see what was before: a=1 b=$a takes the old a
    env = state.settings.env
    for name, value in instruction.pairs:
        key = expand_word(statement, name, names)
        if not key or "=" in key:
            raise statement.error_at(f"ENV: {key!r} is no name of a variable", name)
        env = set_variable(env, key, "" if value is None else expand_word(statement, value, names))
    state.set(env=env)


def _label(instruction: Pairs, state: State, _: Scope) -> None:
    statement, names = instruction.statement, state.names
    labels = dict(state.settings.labels)
    for name, value in instruction.pairs:
        labels[expand_word(statement, name, names)] = "" if value is None else expand_word(statement, value, names)
    state.set(labels=tuple(labels.items()))


def _arg(instruction: Pairs, state: State, scope: Scope) -> None:
    for name, value in instruction.pairs:
        default = None if value is None else expand_word(instruction.statement, value, state.names)
        state.arguments[name.text] = scope.value(name.text, default)


def _expose(instruction: Words, state: State) -> None:
    ports = list(state.settings.exposed_ports)
    for word in instruction.words:
        for text in expand_list(instruction.statement, word, state.names):
            match = _PORT.fullmatch(text)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
            if match is None or not 0 < first <= last <= 65535:
                raise instruction.statement.error_at(f"EXPOSE: {text!r} is no port, such as 80, 80/udp or 8000-8010", word)
            ports += [f"{port}/{(match[3] or 'tcp').lower()}" for port in range(first, last + 1)]
    state.set(exposed_ports=tuple(dict.fromkeys(ports)))


def _volume(instruction: Words, state: State) -> None:
    found = [expand_word(instruction.statement, word, state.names) for word in instruction.words]
    if not all(found):
        raise instruction.statement.error("VOLUME: an empty path", 0)
    state.set(volumes=tuple(dict.fromkeys((*state.settings.volumes, *found))))


def _user(instruction: Words, state: State) -> None:
    (word,) = instruction.words
    user = expand_word(instruction.statement, word, state.names)
    if not user or user.startswith(":") or any(letter.isspace() for letter in user):
        raise instruction.statement.error_at(f"USER: {user!r} is not USER or USER:GROUP", word)
    state.set(user=user)


def _stop_signal(instruction: Words, state: State) -> None:
    (word,) = instruction.words
    text = expand_word(instruction.statement, word, state.names)
    name = text.upper().removeprefix("SIG")
    known = {found.name.removeprefix("SIG") for found in signal.Signals}
    if not (name in known or _REAL_TIME.fullmatch(name) or (name.isdecimal() and 1 <= int(name) <= 64)):
        raise instruction.statement.error_at(f"STOPSIGNAL: {text!r} is no signal", word)
    state.set(stop_signal=text)


def _maintainer(instruction: Words, state: State) -> None:
    state.author = instruction.words[0].text


_PAIRS: Final[dict[str, Callable[[Pairs, State, Scope], None]]] = {"ENV": _env, "LABEL": _label, "ARG": _arg}
_WORDS: Final[dict[str, Callable[[Words, State], None]]] = {
    "EXPOSE": _expose,
    "VOLUME": _volume,
    "USER": _user,
    "STOPSIGNAL": _stop_signal,
    "MAINTAINER": _maintainer,
}


def _program(instruction: Program, state: State) -> None:
    command, keyword = instruction.command, instruction.statement.keyword
    words = (*state.shell, *command.words) if command.is_shell else command.words
    if keyword == "SHELL":
        state.set(shell=words)
    elif keyword == "CMD":
        state.has_cmd = True
        state.set(cmd=words)
    else:
        # A new entry point makes the base image's command meaningless (Docker does the same).
        state.set(entrypoint=words, cmd=state.settings.cmd if state.has_cmd else None)


def _health(instruction: Health, state: State) -> None:
    if instruction.command is None:
        state.set(healthcheck=Healthcheck(("NONE",)))
        return
    command, times = instruction.command, instruction.times
    test = ("CMD-SHELL" if command.is_shell else "CMD", *command.words)
    interval, timeout, start_period, start_interval = map(times.get, ("interval", "timeout", "start-period", "start-interval"))
    state.set(healthcheck=Healthcheck(test, interval, timeout, start_period, instruction.retries, start_interval))


def quoted(words: tuple[str, ...]) -> str:
    """A list as JSON, for history and output."""
    return json.dumps(list(words), ensure_ascii=False)
