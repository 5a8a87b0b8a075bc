"""Running a test function inside a container, with its fixtures: our side.

Theory of operation
-------------------
A test that is marked ``sandbox(inside=True)`` is collected here as any other. When its turn comes, this side sets none of its fixtures up.
It starts a container with this interpreter in it (a view of the host, and read-only binds of whatever else the interpreter and the
project need), and in that a pytest of its own (`_child`), which runs this one test, with all of its fixtures, hooks and marks. What became
of setup, call and teardown comes back as lines of JSON in a memfd, once nothing in the container is alive any more. Each
phase is then told in its place here: as an exception that stands for it, and by the report that is made of that.

What comes back is written by the program under test, or by what has taken it over: it is bounded, parsed as JSON, and every value is
checked to be a text, a number or one of a few words. It is shown (without control characters) and nothing else; nothing is
imported, called or looked up by its words. Such a program can make its own test pass, fail or be skipped; no other.

Why the whole test and not the body of its function: arguments and exceptions would have to be carried over, and the only faithful way
to do that is pickle.
"""

from __future__ import annotations

import builtins
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest
from attrs import frozen

import sandbox
from sandbox import Container, Result, Status, Tmpfs
from sandbox.fs import to_mount
from sandbox.pytest_plugin import _child, _exposed, _marks
from sandbox.pytest_plugin._output import printable

__all__ = ["InsideError", "InsideTest", "Phase", "parse"]

_FD: Final = 3
# pytest comes first, and loads `_child` as a plugin: what it is to rewrite (its plugins' packages) must not be imported before.
_BOOT: Final = (
    "import json, sys; request = json.loads(sys.stdin.buffer.read()); sys.path[:] = request['path']; "
    "import pytest; sys.exit(pytest.main(request['args']))"
)
MAX_TOLD: Final = 4 << 20  # bytes
MAX_LINES: Final = 200
MAX_SHOWN: Final = 64 << 10  # characters
_OUTPUT_LIMIT: Final = 8 << 20  # bytes, of each stream
_MAX_RELAYED: Final = 1 << 20  # characters of it that are shown
_PHASES: Final = ("setup", "call", "teardown")
_PASSED_ON: Final = ("LD_LIBRARY_PATH", "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTEST_PLUGINS", "PYTHONHASHSEED", "PYTHONPATH", "TZ", "VIRTUAL_ENV")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CACHE: Final = "/tmp/.pytest_cache"  # noqa: S108 - a path inside

# Options that choose tests, stop a run, or write files: what this side does already. The others are handed on.
_NOT_HANDED_ON: Final = frozenset(
    "file_or_dir keyword markexpr deselect collectonly maxfail plugins capture usepdb usepdb_cls trace basetemp inifilename rootdir "
    "override_ini confcutdir noconftest importmode pyargs ignore ignore_glob doctestmodules xmlpath junitprefix pastebin log_file debug report_log "
    "htmlpath json_report json_report_file lf failedfirst newfirst cacheclear cacheshow stepwise stepwise_skip stepwise_reset setuponly setupplan "
    "setupshow version help markers showfixtures show_fixtures_per_test numprocesses maxprocesses maxworkerrestart dist tx px testrunuid "
    "looponfail rsyncdir rsyncignore distload durations reruns no_cov color".split()
)


class InsideError(Exception):
    """A test inside a container failed, or did not come to its end."""


@frozen
class Phase:
    """What was told of one phase. Texts are bounded and printable."""

    outcome: str  # "passed", "failed", "skipped"
    text: str
    message: str
    path: str
    line: int
    wasxfail: str | None
    duration: float
    log: tuple[tuple[str, str], ...]
    properties: tuple[tuple[str, str], ...]


@frozen
class Told:
    """All that was told, checked."""

    phases: Mapping[str, Phase]
    problem: str
    warnings: tuple[warnings.WarningMessage, ...]


def parse(data: bytes) -> Told:
    """Check what came from inside, line by line; what is not as it should be says so in `problem`, and is otherwise ignored."""
    phases: dict[str, Phase] = {}
    problems: list[str] = []
    heard: list[warnings.WarningMessage] = []
    lines = data[:MAX_TOLD].splitlines()
    for line in lines[:MAX_LINES]:
        try:
            told = _object(line)
            if "problem" in told:
                problems.append(_text(told["problem"]))
            elif "warning" in told:
                heard.append(_to_warning(told))
            else:
                phases[_word(told["when"], _PHASES)] = _to_phase(told)
        except (ValueError, TypeError, KeyError, RecursionError):
            problems.append("what came out of the container is no report")
    if len(data) > MAX_TOLD or len(lines) > MAX_LINES:
        problems.insert(0, f"more than {MAX_TOLD} bytes or {MAX_LINES} lines came out of the container")
    return Told(phases, "\n".join(problems[:10]), tuple(heard[:50]))


def _object(line: bytes) -> Mapping[str, Any]:
    told = json.loads(line)
    if not isinstance(told, dict):
        raise TypeError(told)
    return told  # pyright: ignore[reportUnknownVariableType]


def _to_phase(told: Mapping[str, Any]) -> Phase:
    path, line = _where(told)
    duration = told["duration"]
    if isinstance(duration, bool) or not isinstance(duration, (int, float)) or not math.isfinite(duration) or duration < 0:
        raise ValueError(duration)
    return Phase(
        outcome=_word(told["outcome"], ("passed", "failed", "skipped")),
        text=_text(told["text"]),
        message=_text(told.get("message", "")),
        path=path,
        line=line,
        wasxfail=None if told["wasxfail"] is None else _text(told["wasxfail"]),
        duration=float(duration),
        log=tuple((_text(name), _text(text)) for name, text in told["log"][:10]),
        properties=tuple((_text(name), _text(value)) for name, value in told["properties"][:50]),
    )


def _where(told: Mapping[str, Any]) -> tuple[str, int]:
    path, line = told.get("where", ("", 0))
    if isinstance(line, bool) or not isinstance(line, int) or not 0 <= line < 1 << 31:
        raise ValueError(line)
    return _text(path), line


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return printable(value, keep=MAX_SHOWN)


def _word(value: object, words: tuple[str, ...]) -> str:
    if value not in words:
        raise ValueError(value)
    return str(value)


def _to_warning(told: Mapping[str, Any]) -> warnings.WarningMessage:
    # The category only if it is one of Python's own: no other is looked up by a name from inside.
    category = getattr(builtins, _text(told["warning"]["category"]), None)
    if not isinstance(category, type) or not issubclass(category, Warning):
        category = UserWarning
    path, line = _where(told)
    return warnings.WarningMessage(category(_text(told["warning"]["text"])), category, path, line)


class InsideTest:
    """One run of one test inside a container of its own."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._options = _marks.of_node(item)
        # As when it was collected; but not all kinds of tests, nor marks of one parameter set, were seen then.
        _marks.check(self._options, getattr(item, "fixturenames", ()), is_own=False)
        self._told = Told({}, "", ())
        self._result: Result | None = None

    def run(self) -> None:
        """Run the test, all of it, and neutralise it here. Raises: SandboxError: the container cannot be made as it was asked for."""
        vars(self._item).update(fixturenames=[], runtest=self._call)
        # Its answer outlives it, and cannot grow beyond its memory.
        fd = os.memfd_create("report", os.MFD_CLOEXEC)
        try:
            with Container(**self._container_options()) as container:
                self._result = container.exec(
                    [sys.executable, "-B", "-c", _BOOT],
                    input=json.dumps(self._request()).encode(),
                    pass_fds={_FD: fd},
                    env=self._environment(),
                    timeout=self._options.get("timeout"),
                    cpu_time=self._options.get("cpu_time"),
                    output_limit=_OUTPUT_LIMIT,
                    cwd=self._directory(),
                )
            self._told = parse(os.pread(fd, MAX_TOLD + 1, 0))
        finally:
            os.close(fd)
        for heard in self._told.warnings:
            words = {"warning_message": heard, "when": "runtest", "nodeid": self._item.nodeid, "location": None}
            self._item.ihook.pytest_warning_recorded.call_historic(kwargs=words)

    # ---- What goes in ----

    def _directory(self) -> str:
        """Where the test was started, if that is shown inside; else the root of the project."""
        config = self._item.config
        here, root = os.fspath(config.invocation_params.dir), os.fspath(config.rootpath)
        return here if here == root or here.startswith(f"{root}/") else root

    def _container_options(self) -> dict[str, Any]:
        options = _marks.container_options(self._options)
        mounts = tuple(map(to_mount, options.pop("mounts", ())))
        targets = {mount.target for mount in mounts}
        config = self._item.config
        paths = [*_exposed.of_interpreter(), os.path.dirname(os.path.dirname(sandbox.__file__))]
        paths += [os.fspath(config.rootpath), os.path.dirname(self._item.path)]
        own = () if "/tmp" in targets else (Tmpfs("/tmp"),)  # noqa: S108 - a path inside
        if not {"read_only", "scratch"} & options.keys():
            options["read_only"] = True
        # The same user as here: whoever can read the project here can inside, and nobody more. (An ordinary user's container has one id.)
        options.setdefault("user", "0:0" if os.geteuid() == 0 else os.geteuid())
        return {**options, "mounts": (*mounts, *own, *_exposed.binds(paths, taken=targets))}

    def _environment(self) -> dict[str, str]:
        handed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return {"PATH": f"{os.path.dirname(sys.executable)}:{_PATH}", "HOME": "/tmp", **handed_on, **(self._options.get("env") or {})}  # noqa: S108

    def _request(self) -> dict[str, Any]:
        config = self._item.config
        option = config.option
        home = os.path.dirname(os.path.dirname(sandbox.__file__))
        args = [f"--rootdir={config.rootpath}", f"--import-mode={option.importmode}", "-p", _child.__name__]
        args += ["--capture=no", "--color=no", "--no-summary"]  # of the summary nobody would see, for which plugins import what they have
        args += ["-c", os.fspath(config.inipath)] if config.inipath else []
        args += [f"--confcutdir={option.confcutdir}"] if option.confcutdir else []
        args += ["--noconftest"] if option.noconftest else []
        # Some versions of xdist leave the terminal out, of whose reporter `_child` makes use.
        args += [word for plugin in option.plugins or () if plugin != "no:terminal" for word in ("-p", plugin)]
        settings = [*(option.override_ini or ()), "addopts="]
        settings += [f"cache_dir={_CACHE}"] if config.pluginmanager.hasplugin("cacheprovider") else []
        args += [word for setting in settings for word in ("-o", setting)]
        _, colons, rest = self._item.nodeid.partition("::")
        return {
            "fd": _FD,
            "path": [*sys.path, *([] if home in sys.path else [home])],
            "args": [*args, f"{self._item.path}{colons}{rest}"],
            "options": {name: value for name, value in vars(option).items() if _is_handed_on(name, value)},
        }

    # ---- What comes out ----

    def settle(self, when: str) -> None:
        """Let *when* end here as it ended inside. Raises: what stands for a skip or a failure."""
        __tracebackhide__ = True
        phase = self._told.phases.get(when)
        if phase is None or (when == "call" and self._was_stopped()):
            if when == self._broken_phase():
                self._relay()
                raise InsideError(self._why())
            return
        if when == "call" or (when == "setup" and phase.outcome != "passed"):
            self._relay()
        if phase.outcome == "skipped":
            pytest.skip(phase.message)
        if phase.outcome == "failed":
            raise InsideError(phase.message or "failed")

    def _call(self) -> None:
        __tracebackhide__ = True
        self.settle("call")

    def _was_stopped(self) -> bool:
        return self._result is not None and self._result.status is not Status.EXITED

    def _broken_phase(self) -> str:
        """The phase that did not come to its end, or was running when a limit was met; "" when all did."""
        phases = self._told.phases
        if "setup" not in phases:
            return "setup"
        if phases["setup"].outcome == "passed" and ("call" not in phases or self._was_stopped()):
            return "call"
        return "teardown" if "teardown" not in phases else ""

    def _relay(self) -> None:
        """What the test wrote, to where it would have gone here: it is captured, or shown, as usual."""
        if self._result is not None:
            sys.stdout.write(printable(self._result.stdout, keep=_MAX_RELAYED))
            sys.stderr.write(printable(self._result.stderr, keep=_MAX_RELAYED))

    def _why(self) -> str:
        """Why the test did not come to its end."""
        result = self._result
        if result is None:
            raise AssertionError("it has run")
        words = _VERDICTS[result.status](result, self._options)
        name = "" if result.status is Status.EXITED else f"{result.status.name}: "
        return "\n".join(filter(None, (f"{name}{words}", self._told.problem)))

    def amend(self, report: pytest.TestReport, excinfo: pytest.ExceptionInfo[BaseException] | None) -> None:
        """Make *report*, of this side's phase, say what was told of it inside."""
        phase = self._told.phases.get(str(report.when))
        is_broken = excinfo is not None and isinstance(excinfo.value, InsideError) and report.when == self._broken_phase()
        if is_broken and excinfo is not None:
            report.outcome = "failed"
            vars(report).pop("wasxfail", None)
            why = str(excinfo.value)
            report.longrepr = _longrepr(excinfo, why, why.partition("\n")[0], (os.fspath(self._item.path), 0))
            return
        if phase is None or (excinfo is not None and not isinstance(excinfo.value, (InsideError, pytest.skip.Exception))):
            return  # of this side: Ctrl-C, another plugin's failure
        _adopt(report, phase, excinfo, self._item)
        if report.when == "setup":  # the whole run was here, in its setup
            others = (self._told.phases[when].duration for when in _PHASES[1:] if when in self._told.phases)
            report.duration = max(0.0, report.duration - sum(others))


def _adopt(report: pytest.TestReport, phase: Phase, excinfo: pytest.ExceptionInfo[BaseException] | None, item: pytest.Item) -> None:
    report.outcome = phase.outcome  # type: ignore[assignment]  # one of the three words
    vars(report).pop("wasxfail", None)
    if phase.wasxfail is not None:
        report.wasxfail = phase.wasxfail
    report.longrepr = None
    if phase.outcome == "skipped" and phase.wasxfail is None:
        report.longrepr = (phase.path, phase.line, phase.message)
    elif excinfo is not None:
        report.longrepr = _longrepr(excinfo, phase.text, phase.message, (phase.path or os.fspath(item.path), phase.line))
    if report.when != "setup":
        report.duration = phase.duration
    report.sections.extend(phase.log)
    report.user_properties.extend(each for each in phase.properties if each not in report.user_properties)


def _longrepr(excinfo: pytest.ExceptionInfo[BaseException], text: str, message: str, where: tuple[str, int]) -> Any:  # noqa: ANN401 - private to pytest
    """*text* as pytest's own representation of a failure, so that summaries find *message*, and other plugins what they look for."""
    shown = excinfo.getrepr(style="value")
    shown.reprtraceback.reprentries[-1].lines = text.splitlines()
    if (crash := shown.reprcrash) is not None:
        (crash.path, crash.lineno), crash.message = where, message
    return shown


def _is_handed_on(name: str, value: object) -> bool:
    """Whether this is an option for the test, and the same after a journey as JSON."""
    if name in _NOT_HANDED_ON or name.startswith("cov_"):
        return False
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def _limit(options: Mapping[str, Any], name: str) -> str:
    return f"{name}={options[name]!r}" if options.get(name) is not None else f"its container's {name}"


def _memory_words(result: Result, options: Mapping[str, Any]) -> str:
    peak = "" if result.memory_peak is None else f" (peak: {result.memory_peak / (1 << 20):.1f} MiB)"
    return f"the test took more memory than {_limit(options, 'memory')} lets it have{peak}"


_Verdict = Callable[[Result, Mapping[str, Any]], str]
_VERDICTS: Final[dict[Status, _Verdict]] = {
    Status.EXITED: lambda result, _: f"the test's process ended before its report, with exit code {result.exit_code}",
    Status.TIMEOUT: lambda _, options: f"the test took more time than {_limit(options, 'timeout')} lets it have",
    Status.CPU_LIMIT: lambda _, options: f"the test took more CPU time than {_limit(options, 'cpu_time')} lets it have",
    Status.MEMORY_LIMIT: _memory_words,
    Status.OUTPUT_LIMIT: lambda _, __: f"the test wrote more than {_OUTPUT_LIMIT >> 20} MiB",
    Status.SYSCALL_DENIED: lambda result, _: f"the test called the forbidden system call {result.syscall}",
    Status.SIGNALED: lambda result, _: f"the test was ended by signal {result.signal}",
    Status.KILLED: lambda _, __: "the test was killed",
}
