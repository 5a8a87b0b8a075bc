"""Wrong calls are refused in words, before anything is touched."""

from __future__ import annotations

import asyncio
import io
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import PIPE, Bind, Container, Security, Tmpfs, UsageError, _arguments, aio
from sandbox.cg import Cgroup
from sandbox.ns import Namespace, enter


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"mounts": [Tmpfs("/tmp"), Tmpfs("/tmp")]}, "two mounts"),
        ({"env": {"A=B": "c"}}, "env"),
        ({"env": {"A": "b\0c"}}, "NUL"),
        ({"cwd": "relative"}, "relative"),
        ({"cwd": "/proc/self/fd/3"}, "descriptor"),
        ({"cwd": "/a/../../b"}, r"\.\."),
        ({"hostname": "a b"}, "host name"),
        ({"hostname": "x" * 70}, "host name"),
        ({"user": ""}, "user"),
        ({"user": True}, "user"),
        ({"net": "bridge"}, "net"),
        ({"share": ["pid"]}, "share"),
        ({"security": "lax"}, "profile"),
        ({"read_only": True, "scratch": "1M"}, "scratch"),
        ({"scratch": -1}, "^scratch: -1"),
        ({"scratch": "much"}, "^scratch: 'much'"),
        ({"scratch": 0}, "^scratch: 0"),
        ({"shm": "much"}, "^shm: 'much'"),
        ({"shm": -1}, "^shm: -1"),
        ({"env": {1: "a"}}, "^env: 1='a'"),
        ({"env": {"A": 1}}, "^env: 'A'=1"),
        ({"env": {b"A=B": b"c"}}, "^env: 'A=B'"),
        ({"env": {b"A": b"b\0c"}}, r"env\['A'\].*NUL"),
        ({"time_offsets": (1e12, 0)}, "time offset"),
        ({"image": "/no/such/directory"}, "no such directory"),
        ({"image": ""}, "image"),
    ],
)
def test_a_wrong_container_is_refused(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Container(**arguments)  # type: ignore[arg-type]


def test_an_image_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(sandbox.ImageError, match="is a file"):
        Container(tmp_path / "file")


def test_a_mount_target_must_be_absolute() -> None:
    with pytest.raises(UsageError, match="relative"):
        Tmpfs("tmp")
    with pytest.raises(UsageError):
        Bind("/etc", "/")


@pytest.mark.unprivileged
@pytest.mark.parametrize(
    ("argv", "options", "word"),
    [
        ([], {}, "empty"),
        ([""], {}, "empty"),
        ("ls -l", {}, "one string"),
        (["a\0b"], {}, "NUL"),
        (["true"], {"timeout": 0}, "timeout"),
        (["true"], {"timeout": float("nan")}, "timeout"),
        (["true"], {"timeout": 1e12}, "timeout"),
        (["true"], {"cpu_time": -1}, "cpu_time"),
        (["true"], {"output_limit": "x"}, "output_limit"),
        (["true"], {"umask": 0o7777}, "umask"),
        (["true"], {"pass_fds": [987]}, "open descriptor"),
        (["true"], {"pass_fds": {1: 2}}, "pass_fds"),
        (["true"], {"input": b"x", "stdin": 0}, "input and stdin"),
        (["true"], {"input": "text"}, "text=True"),
        (["true"], {"encoding": "no-such-encoding"}, "encoding"),
        (["true"], {"cwd": "/nowhere"}, "cwd"),
        (["x" * 200_000], {}, "longer"),
        (["no-such-program"], {}, "no such program"),
        (["/etc/passwd"], {}, "may not execute"),
        (["true"], {"stdout": object()}, "PIPE"),
        (["true"], {"colour": 1}, "unknown argument 'colour': see Container"),
        (["true"], {"capture_output": True}, "unknown argument 'capture_output': .*captured"),
        (["true"], {"shell": True}, r"unknown argument 'shell': .*\['sh', '-c'"),
        (["true"], {"volumes": {}}, "unknown argument 'volumes': .*mounts="),
        (["true"], {"timout": 1}, "unknown argument 'timout': did you mean 'timeout'"),
        (["true"], {"stdin": io.BytesIO(b"x")}, r"^stdin: .*input=file.read\(\)"),
        (["true"], {"stdin": io.StringIO("x")}, r"^stdin: .*input=file.read\(\)"),
        (["true"], {"stdin": b"data"}, "^stdin: .*input=data"),
        (["true"], {"stdin": types.SimpleNamespace(read=bytes)}, r"^stdin: .*input=file.read\(\)"),
        (["true"], {"stdout": io.BytesIO()}, "^stdout or stderr: .*PIPE"),
    ],
)
def test_a_wrong_run_is_refused(argv: list[str], options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        sandbox.run(argv, **options)


@pytest.mark.parametrize("call", ["run", "exec", "popen", "__init__", "aio.exec", "aio.popen", "aio.__init__", "pool"])
@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("capture_output", r"leave it out, or give stdout=DEVNULL"),
        ("shell", r"\['sh', '-c', 'echo \$HOME'\]"),
        ("volumes", r"give mounts="),
        ("mem_limit", r"give memory="),
        ("nosuch", r"see Container and Container.exec"),
    ],
)
def test_a_word_that_is_no_argument_is_answered_with_what_is(call: str, word: str, advice: str) -> None:
    container, argv, options = Container(), ["true"], {word: True}  # not started: nothing is done for a wrong call

    async def from_a_loop(method: str) -> None:
        await getattr(aio.Container(), method)(argv, **options)

    calls: dict[str, Callable[[], object]] = {
        "run": lambda: sandbox.run(argv, **options),
        "exec": lambda: container.exec(argv, **options),  # type: ignore[arg-type]
        "popen": lambda: container.popen(argv, **options),  # type: ignore[arg-type]
        "__init__": lambda: Container(**options),  # type: ignore[arg-type]
        "aio.exec": lambda: asyncio.run(from_a_loop("exec")),
        "aio.popen": lambda: asyncio.run(from_a_loop("popen")),
        "aio.__init__": lambda: aio.Container(**options),  # type: ignore[misc, arg-type]
        "pool": lambda: sandbox.Pool(**options),
    }
    with pytest.raises(UsageError, match=rf"^\w+: unknown argument '{word}': .*({advice})"):
        calls[call]()


def test_every_word_of_others_that_is_explained_is_none_of_ours_and_names_ones_that_are() -> None:
    mine, theirs = _arguments._names()
    ours = mine | theirs
    assert not ours & set(_arguments._INSTEAD)
    for advice in _arguments._INSTEAD.values():
        assert set(re.findall(r"\b([a-z_]+)=(?!None)", advice)) <= ours | {"size", "nofile", "cap_add", "cap_drop"}, advice


def test_variables_may_be_bytes_and_paths_as_in_subprocess() -> None:
    script = r'printf "%s|%s|%s" "$A" "$B" "$C"'
    with Container(env={b"A": b"\xff1"}) as c:
        for given in ({b"B": b"\xfe", b"C": Path("/x")}, {"B": "\udcfe", "C": "/x"}):
            assert c.exec(["sh", "-c", script], env=given).stdout == b"\xff1|\xfe|/x"  # type: ignore[arg-type]


def test_a_missing_program_is_also_the_error_that_subprocess_raises() -> None:
    with pytest.raises(FileNotFoundError):
        sandbox.run(["no-such-program"])
    with pytest.raises(sandbox.ProgramNotFoundError, match="looked at /usr/local/sbin/no-such-program"):
        sandbox.run(["no-such-program"])


def test_a_script_without_its_interpreter_is_told_from_a_missing_one() -> None:
    with sandbox.Container() as c:
        c.write_bytes("/tmp/script", b"#!/no/such/interpreter\n", mode=0o755)
        with pytest.raises(sandbox.ProgramNotFoundError, match=r"none as its '#!' line"):
            c.exec(["/tmp/script"])


def test_an_ordinary_user_s_container_on_another_s_network_names_the_remedy() -> None:
    from attrs import evolve

    from sandbox._host import host
    from sandbox._sharing import join

    ordinary, other = evolve(host(), privileged=False), Container()
    for kind, said in (("net", r"put both on a Network"), ("ipc", r"run both programs in one container")):
        with pytest.raises(sandbox.UnsupportedError, match=said):
            join([(kind, other)], ordinary, other.spec)


def test_check_returncode_raises_as_subprocess_does() -> None:
    r = sandbox.run(["false"])
    assert r.args == ("false",)
    with pytest.raises(sandbox.CommandError):
        r.check_returncode()
    sandbox.run(["true"]).check_returncode()


def test_check_raises_with_the_result() -> None:
    with pytest.raises(sandbox.CommandError, match="exited with code 1") as caught:
        sandbox.run(["false"], check=True)
    assert caught.value.result.exit_code == 1


def test_nothing_happens_before_start() -> None:
    container = Container(mounts=[Bind("/no/such/source", "/x")])
    with pytest.raises(UsageError, match="/no/such/source"):
        container.start()


@pytest.mark.parametrize("value", ["", "no", 0, 1, None])
@pytest.mark.parametrize("name", ["strict", "subids", "read_only"])
def test_what_only_counts_as_true_or_false_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        Container(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "good", "bad"), [("timeout", 1, True), ("output_limit", 0, 0.0), ("umask", 1, True), ("accounting", False, 0)])
def test_a_value_of_the_wrong_kind_is_refused_after_an_equal_one_was_taken(name: str, good: object, bad: object) -> None:
    with Container() as c:
        c.exec(["true"], **{name: good})  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=name):
            c.exec(["true"], **{name: bad})  # type: ignore[arg-type]


ODD = [True, -1, 0, 1.5, float("nan"), b"64M", "x", "\ud800", "a\0b", object(), [object()], [None], {"a": object()}]


@pytest.mark.parametrize("name", ["cpuset", "io_max", "hugetlb", "devices", "share", "mounts", "env", "rlimits", "cwd", "image", "user", "hostname", "security", "scratch", "shm", "memory", "pids", "cpus", "time_offsets", "net", "strict", "subids", "read_only"])
def test_an_argument_of_any_odd_kind_is_refused_in_words_or_taken(name: str) -> None:
    for value in ODD:
        try:
            Container(**{name: value})  # type: ignore[arg-type]
        except (sandbox.SandboxError, ValueError) as error:
            assert isinstance(error, sandbox.SandboxError), (name, value)
            assert len(str(error)) > 10


@pytest.mark.parametrize("name", ["argv", "input", "stdin", "stdout", "stderr", "env", "cwd", "user", "timeout", "cpu_time", "memory", "pids", "output_limit", "rlimits", "umask", "pass_fds", "encoding", "errors", "text", "check", "accounting"])
def test_an_argument_of_exec_of_any_odd_kind_is_refused_in_words_or_taken(name: str) -> None:
    with Container() as c:
        for value in [*ODD, 9999, "base64"]:
            if name in ("stdout", "stderr", "stdin") and value in (0, -1, True):
                continue  # descriptors of our own
            options = {"argv": ["true"], name: value}
            try:
                c.exec(options.pop("argv"), **{**options, "timeout": 5.0 if name != "timeout" else value})  # type: ignore[arg-type]
            except sandbox.SandboxError as error:
                assert len(str(error)) > 10
        assert c.exec(["true"]).ok


@pytest.mark.parametrize(
    "make",
    [
        lambda: Security(cap_add=None),  # type: ignore[arg-type]
        lambda: Security(allow_syscalls=5),  # type: ignore[arg-type]
        lambda: Security(capabilities=5),  # type: ignore[arg-type]
        lambda: Namespace.of("x", "net"),  # type: ignore[arg-type]
        lambda: Namespace.of(1 << 40, "net"),
        lambda: enter("x"),  # type: ignore[arg-type]
        lambda: Cgroup(5),  # type: ignore[arg-type]
        lambda: Cgroup("q", {}),  # type: ignore[arg-type]
    ],
)
def test_parts_refuse_what_is_of_an_odd_kind(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        make()


def test_a_process_refuses_what_is_of_an_odd_kind_and_runs_on() -> None:
    with Container() as c, c.popen(["cat"], stdin=PIPE, stdout=PIPE) as p:
        for refused in (
            lambda: p.wait("x"),  # type: ignore[arg-type]
            lambda: p.communicate(5),  # type: ignore[arg-type]
            lambda: p.send_signal("x"),  # type: ignore[arg-type]
            lambda: c.popen(["true"], tty=True, size=(1,)),  # type: ignore[arg-type]
            lambda: c.popen(["true"], tty=True, size=None),  # type: ignore[arg-type]
            lambda: c.kill("SIGTERM"),  # type: ignore[arg-type]
        ):
            with pytest.raises(UsageError):
                refused()
        assert p.communicate(b"on") == (b"on", None)
