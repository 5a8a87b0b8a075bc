"""What the commands about containers that outlive their command refuse, before anything is touched."""

from __future__ import annotations

import contextlib
import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sandbox
from sandbox import UsageError
from sandbox.cli import main
from sandbox.cli.containers import to_signal


@pytest.mark.parametrize(("text", "number"), [("TERM", 15), ("SIGTERM", 15), ("sigkill", 9), ("9", 9), ("64", 64), ("RTMIN", 34)])
def test_signals_are_read(text: str, number: int) -> None:
    assert to_signal(text) == number


@given(st.text(string.printable, max_size=12))
def test_what_is_no_signal_is_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert 0 < to_signal(text) < 65


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-d", "--json", "-", "true"], "--json"), (["-d", "--report", "true"], "--report"),
        (["-d", "--output-limit", "1M", "true"], "--output-limit"), (["-d", "--label", "=x", "true"], "--label"),
        (["-d", "--log-size", "1K", "true"], "least"), (["-d", "--name", "a/b", "true"], "name"), (["--label", "a", "true"], "only with --detach"),
        (["--log-size", "1M", "true"], "only with --detach"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_for_a_detached_container_is_refused(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *words]) == 125
    assert re.search(why, capsys.readouterr().err)


@pytest.mark.parametrize(
    "words",
    [["ps", "--filter", "x=y"], ["ps", "more"], ["stop"], ["rm"], ["logs"], ["logs", "a", "b"], ["container"], ["container", "nonsense"], ["exec"],
     ["exec", "web"], ["exec", "--nonsense", "web", "true"], ["cp", "a", "b"], ["cp", "a:b", "c:d"], ["commit"], ["diff"], ["rename", "a"]],
)  # fmt: skip
def test_wrong_use_of_the_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("sandbox ")


@pytest.mark.parametrize(
    "words",
    [["stop", "nobody"], ["rm", "nobody"], ["logs", "nobody"], ["inspect", "nobody"], ["diff", "nobody"], ["commit", "nobody"], ["port", "nobody"],
     ["container", "export", "nobody"], ["cp", "/etc/hostname", "nobody:/x"], ["kill", "-s", "NONE", "nobody"], ["stop", "-t", "x", "nobody"]],
)  # fmt: skip
def test_a_container_that_is_not_there_is_told(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SANDBOX_CONTAINERS", str(tmp_path / "none"))
    assert main(words) == 1
    assert re.search("no container 'nobody'|signal|time", capsys.readouterr().err)
    assert main(["rm", "-f", "nobody"]) == main(["ps", "-a"]) == main(["container", "prune", "-f"]) == 0
    assert not (tmp_path / "none").exists()


def test_a_place_of_containers_that_is_relative_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_CONTAINERS", "here")
    with pytest.raises(UsageError, match="absolute"):
        sandbox.keep.containers()
