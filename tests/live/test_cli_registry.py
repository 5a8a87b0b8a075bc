"""`sandbox pull`, `push`, `login` and `logout`, as a person uses them."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faulty_registry import FaultyRegistry, status, tar_of

AS_A_USER = """
import os, sys
os.environ.pop("SANDBOX_REGISTRIES", None)
os.environ["SANDBOX_IMAGES"] = sys.argv.pop(1)  # root's store is not for tests
from sandbox.cli import main
sys.exit(main())
"""


@pytest.fixture
def server() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        registry.put_image("app", "1", [tar_of({"one": os.urandom(200_000)}), tar_of({"two": b"2"})])
        yield registry


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "DOCKER_CONFIG": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}


def argv(env: dict[str, str], *arguments: str) -> list[str]:
    return [sys.executable, "-c", AS_A_USER, f"{env['XDG_DATA_HOME']}/sandbox/images", *arguments]


def sandbox(env: dict[str, str], *arguments: str, data: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(env, *arguments), env=env, input=data, capture_output=True, text=True, check=False)


def on_a_terminal(env: dict[str, str], *arguments: str, typed: bytes = b"", after: bytes = b"") -> tuple[int, str]:
    """Run it with a terminal for all streams; *typed* when *after* is shown. The exit code, and all that was shown."""
    master, slave = pty.openpty()
    with subprocess.Popen(argv(env, *arguments), env={**env, "TERM": "xterm", "COLUMNS": "120"}, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # EIO: all have closed it
                break
            shown += data
            if typed and after in shown:
                os.write(master, typed)
                typed = b""
            if not data:
                break
    os.close(master)
    return process.returncode, shown.decode()


def test_an_image_is_pulled_and_pushed(server: FaultyRegistry, env: dict[str, str]) -> None:
    done = sandbox(env, "pull", "--platform", "linux/amd64", f"{server.host}/app:1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{server.host}/app:1\n"
    assert re.search(r"^[0-9a-f]{12}: unpacked \(0.2 MiB\)$", done.stderr, re.MULTILINE)
    assert "Digest: sha256:" in done.stderr
    again = sandbox(env, "push", "-q", f"{server.host}/app:1")
    assert (again.returncode, again.stdout, again.stderr) == (0, f"{server.host}/app:1\n", "")


def test_all_tags_of_a_repository(server: FaultyRegistry, env: dict[str, str]) -> None:
    server.put_image("app", "2", [tar_of({"three": b"3"})])
    done = sandbox(env, "pull", "-q", "-a", "--platform", "linux/amd64", f"{server.host}/app")
    assert done.stdout.split() == [f"{server.host}/app:1", f"{server.host}/app:2"]
    assert sandbox(env, "pull", "-a", f"{server.host}/app:1").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["pull"], 2, "the following arguments are required"),
        (["pull", "--frobnicate", "x"], 2, "frobnicate"),
        (["pull", "UPPER//case"], 1, "is not"),
        (["pull", "--platform", "x", "app"], 1, "OS/ARCHITECTURE"),
        (["push", "localhost:1/not/there"], 1, "no image localhost:1/not/there"),
        (["login", "-u", "user", "localhost:1"], 2, "--password-stdin"),
        (["login", "--password-stdin", "localhost:1"], 2, "--username"),
        (["login", "-p", "x", "--password-stdin", "-u", "u"], 2, "exclude each other"),
        (["logout", "a/b"], 1, "is not a registry"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(env: dict[str, str], arguments: list[str], code: int, words: str) -> None:
    done = sandbox(env, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_an_image_that_is_not_there_is_told(server: FaultyRegistry, env: dict[str, str]) -> None:
    done = sandbox(env, "pull", f"{server.host}/app:none")
    assert done.returncode == 1
    assert "app:none" in done.stderr.splitlines()[-1]


def test_a_hostile_registry_cannot_write_to_the_terminal(server: FaultyRegistry, env: dict[str, str]) -> None:
    server.plan("GET", "manifests", status(400, json.dumps({"errors": [{"code": "X", "message": "\x1b]0;owned\x07\x1b[2J\n[bold]hi"}]}).encode()))
    done = sandbox(env, "pull", f"{server.host}/app:1")
    assert "\x1b" not in done.stderr
    assert "\x07" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_password_comes_by_standard_input(server: FaultyRegistry, env: dict[str, str], tmp_path: Path) -> None:
    server.require = "basic"
    assert sandbox(env, "pull", f"{server.host}/app:1").returncode == 1
    wrong = sandbox(env, "login", "-u", "user", "--password-stdin", server.host, data="wrong\n")
    assert wrong.returncode == 1
    done = sandbox(env, "login", "-u", "user", "--password-stdin", server.host, data="secret\n")
    assert done.stdout == "Login Succeeded\n", done.stderr
    assert str(tmp_path / "config.json") in done.stderr
    assert sandbox(env, "pull", "-q", "--platform", "linux/amd64", f"{server.host}/app:1").returncode == 0
    assert sandbox(env, "logout", server.host).stdout == f"Removed the password for {server.host}\n"
    assert sandbox(env, "logout", server.host).stdout == f"Not logged in to {server.host}\n"


def test_a_password_on_the_command_line_is_warned_of(server: FaultyRegistry, env: dict[str, str]) -> None:
    server.require = "basic"
    done = sandbox(env, "login", "-u", "user", "-p", "secret", server.host)
    assert done.returncode == 0
    assert "warning" in done.stderr
    assert "secret" not in done.stderr


def test_a_password_is_asked_for_without_echo(server: FaultyRegistry, env: dict[str, str]) -> None:
    server.require = "basic"
    code, shown = on_a_terminal(env, "login", "-u", "user", server.host, typed=b"secret\n", after=b"Password of user: ")
    assert code == 0, shown
    assert "secret" not in shown


def test_bars_are_drawn_on_a_terminal(server: FaultyRegistry, env: dict[str, str]) -> None:
    code, shown = on_a_terminal(env, "pull", "--platform", "linux/amd64", f"{server.host}/app:1")
    assert code == 0, shown
    assert "unpacked" in shown
    assert "\x1b[" in shown
