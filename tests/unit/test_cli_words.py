"""What the command line says of the library's errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandbox
from sandbox.cli import main
from sandbox.cli.outcome import complain
from sandbox.cli.words import REMEDIES, said

HOME = Path(sandbox.__file__).parent


def texts_of_the_library() -> Iterator[str]:
    for path in HOME.rglob("*.py"):
        if path.parent != HOME / "cli":
            yield from (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_what_is_said_otherwise_is_said_by_the_library() -> None:
    everything = "\0".join(texts_of_the_library())
    assert [remedy for remedy in REMEDIES if remedy not in everything] == []


@pytest.mark.parametrize(
    ("command", "text", "told"),
    [
        ("sandbox pause", "pause: the container has no control group; give it a limit (memory=, pids= ...)",
         "the container has no control group; give it a limit (--memory, --pids-limit ...)"),
        ("sandbox cp", "copy_out: /fifo: a FIFO cannot be copied", "/fifo: a FIFO cannot be copied"),
        ("sandbox container export", "export: x: EACCES", "x: EACCES"),
        ("sandbox network", "connect: the container is in 'i' already", "connect: the container is in 'i' already"),
        ("sandbox run", "ports: nothing leads into an internal network; give one with internal=False as well, or leave ports out",
         "--publish: nothing leads into an internal network; give one that was made without --internal as well, or leave ports out"),
        ("sandbox run", "address6: 'i' has no IPv6; make it with ipv6=True", "--ip6: 'i' has no IPv6; make it with --ipv6"),
        ("sandbox run", "this host does not forward packets; sysctl -w net.ipv4.ip_forward=1, or give uplink='slirp4netns', or internal=True",
         "this host does not forward packets; sysctl -w net.ipv4.ip_forward=1, or give --internal to sandbox network create"),
        ("sandbox run", "--env: 'memory=' is what was given", "--env: 'memory=' is what was given"),
        ("sandbox run", "no words", "no words"),
    ],
)  # fmt: skip
def test_errors_speak_of_options_and_name_the_command_once(command: str, text: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(command, text) == told
    complain(command, text)
    assert capsys.readouterr().err == f"{command}: {told}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "--workdir", "here", "true"], "sandbox run: --workdir: 'here' is relative"),
        (["bench", "--workdir", "here", "true"], "sandbox bench: --workdir: 'here' is relative"),
        (["run", "--dns", "here", "true"], "sandbox run: --dns: 'here' is not an IPv4 or IPv6 address"),
        (["run", "--add-host", "db:here", "true"], "sandbox run: --add-host: 'here' is not an IPv4 or IPv6 address"),
        (["network", "create", "x", "--gateway", "10.0.0.1"], "sandbox network: --gateway: give --subnet too"),
    ],
)
def test_commands_speak_of_their_options(words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_NETWORKS", "/nowhere")
    assert main(words) != 0
    assert capsys.readouterr().err.startswith(told)
