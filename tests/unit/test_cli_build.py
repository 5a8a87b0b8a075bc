"""``sandbox build``: its words, what it prints, and its exit codes."""

from __future__ import annotations

import io
import os

import pytest

from sandbox.builder import Event, EventKind
from sandbox.cli.build import main
from sandbox.cli.build_progress import Lines, Plain, live
from sandbox.image import Store

pytestmark = pytest.mark.unprivileged


@pytest.fixture
def context(tmp_path, monkeypatch):
    """A context, and a store that is nobody else's."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "f").write_text("content")
    (tmp_path / "c" / "Dockerfile").write_text("FROM scratch\nARG v\nCOPY f /\nENV v=$v\n")
    store = Store(tmp_path / "store")
    monkeypatch.setattr("sandbox.builder._build.Store", lambda: store)
    return tmp_path / "c"


def store_of(context) -> Store:
    return Store(context.parent / "store")


def test_an_image_is_built_named_and_told(context, capfd, tmp_path):
    iid = tmp_path / "iid"
    assert main([str(context), "-t", "app:1", "-t", "other", "--build-arg", "v=x", "--label", "a=b", "--iidfile", str(iid), "--progress", "plain"]) == 0
    out, err = capfd.readouterr()
    image = store_of(context).get("app:1")
    assert out == f"{image.id}\n"
    assert iid.read_text() == str(image.id)
    assert store_of(context).get("other").id == image.id
    assert "v=x" in image.settings.env
    assert dict(image.settings.labels) == {"a": "b"}
    assert "[0 3/4] COPY f /\n" in err


def test_quiet_prints_the_id_alone(context, capfd):
    assert main([str(context), "-q"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith("sha256:")
    assert len(out) == 72


def test_a_dockerfile_comes_from_standard_input(context, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"FROM scratch\nCOPY <<E /x\nE\n")))
    assert main(["-", "-q", "-t", "in"]) == 0
    assert len(store_of(context).get("in").layers) == 1


def test_a_variable_of_the_environment_is_handed_on_by_name(context, capfd, monkeypatch):
    monkeypatch.setenv("v", "mine")
    assert main([str(context), "-q", "--build-arg", "v", "--build-arg", "not_there_at_all"]) == 0
    assert "v=mine" in store_of(context).get(capfd.readouterr().out.strip()).settings.env


def test_an_error_shows_the_line(context, capfd):
    (context / "Dockerfile").write_text("FROM scratch\nCOPY gone\x1b[31m /\n")
    assert main([str(context), "--progress", "plain"]) == 1
    err = capfd.readouterr().err
    assert "Dockerfile:2:6: COPY: " in err
    assert "      | " + " " * 5 + "^" in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        ([], 2, "CONTEXT"),
        (["--no-such"], 2, "required|unrecognized"),
        (["--label", "x"], 2, "NAME=VALUE"),
        (["--secret", "src=x"], 2, "id=ID"),
        (["--secret", "id=a,src=b,env=c"], 2, "id=ID"),
        (["--secret", "id=not_there_at_all"], 1, "no variable"),
        (["--secret", "id=x,src=/nowhere/x"], 1, "No such file"),
        (["--network", "lan"], 2, "none"),
        (["--pids-limit", "x"], 2, "whole number"),
        (["-f", "/nowhere/x"], 1, "No such file"),
        (["--target", "x"], 1, "no stage"),
        (["-t", "A B"], 1, "image"),
    ],
)
def test_wrong_words_are_refused(context, capfd, arguments, code, what):
    assert main([*arguments, *([str(context)] if arguments else [])]) == code
    err = capfd.readouterr().err
    assert err.startswith("sandbox build: ")
    assert any(word in err for word in what.split("|"))


def test_output_is_cut_into_lines_and_cannot_steer_the_terminal():
    lines = Lines()
    assert lines.add(Event(EventKind.OUTPUT, "a", data=b"one\ntw")) == ["one"]
    assert lines.add(Event(EventKind.OUTPUT, "b", data=b"other\n")) == ["other"]
    assert lines.add(Event(EventKind.OUTPUT, "a", data=b"o\r\n10%\r20%")) == ["two"]
    assert lines.add(Event(EventKind.DONE, "a")) == ["20%"]
    assert lines.add(Event(EventKind.OUTPUT, "a", data=b"\x1b[2J\xff\n")) == [" [2J\ufffd"]


def events():
    yield Event(EventKind.BEGIN, "s", 1, 2, "FROM x")
    yield Event(EventKind.DONE, "s", 1, 2, "FROM x")
    yield Event(EventKind.BEGIN, "s", 2, 2, "RUN a \\\n b")
    yield Event(EventKind.OUTPUT, "s", 2, 2, data=b"[bold]hello\nrest")
    yield Event(EventKind.DONE, "s", 2, 2, "RUN a", seconds=1.5)
    yield Event(EventKind.WARNING, text="careful")


def test_plain_progress_is_a_line_each():
    stream = io.StringIO()
    plain = Plain(stream)
    for event in events():
        plain.tell(event)
    assert stream.getvalue().splitlines() == [
        "[s 1/2] FROM x",
        "[s 2/2] RUN a \\ b",
        "[s 2/2] [bold]hello",
        "[s 2/2] rest",
        "[s 2/2] done in 1.5s",
        "warning: careful",
    ]


def test_live_progress_shows_output_as_it_is(capfd):
    with live() as tell:
        for event in events():
            tell(event)
    err = capfd.readouterr().err
    assert "[s 2/2] [bold]hello" in err
    assert "careful" in err
    assert os.isatty(2) or "\x1b[?25l" not in err
