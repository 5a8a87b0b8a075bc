"""The pytest plugin's pure parts: what is shown, what is believed of a report from inside, which files a test inside needs."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import UsageError
from sandbox.pytest_plugin import _exposed, _inside, _reach, _waiting
from sandbox.pytest_plugin._output import MAX_KEPT, Log, Watch, printable

pytestmark = pytest.mark.unprivileged

GOOD = {"when": "call", "outcome": "failed", "duration": 0.5, "wasxfail": None, "log": [], "properties": [], "text": "E  x", "message": "x", "where": ["t.py", 3]}


def line(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode() + b"\n"


class TestWhatIsShown:
    @given(st.binary(max_size=300))
    def test_nothing_that_a_terminal_heeds_is_left(self, data: bytes):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", printable(data))

    def test_text_stays_as_it_is_and_control_characters_are_spelled_out(self):
        assert printable("a\tb\r\nä\n") == "a\tb\nä\n"
        assert printable(b"\x1b[2Jgone\xff") == "\\x1b[2Jgone\ufffd"

    @given(st.integers(1, 50), st.text(max_size=200))
    def test_the_end_is_kept(self, keep: int, text: str):
        shown = printable(text, keep=keep)
        assert len(text) > keep or "left out" not in shown or "left out" in text
        assert shown.endswith(printable(text[-keep:]) if text else "")


class TestReportsFromInside:
    def test_a_report_is_read(self):
        told = _inside.parse(line() + line(when="teardown", outcome="passed"))
        assert told.problem == ""
        assert (told.phases["call"].message, told.phases["call"].path, told.phases["call"].line) == ("x", "t.py", 3)
        assert told.phases["teardown"].outcome == "passed"

    @pytest.mark.parametrize(
        "data",
        [
            b"\x80\x04\x95.\n", b"[]\n", b"3\n", b"null\n", b'"problem"\n', b"{}\n", b"[" * 100_000 + b"\n", b"1" * 5000 + b"\n",
            line(when="later"), line(when=["call"]), line(outcome="rerun"), line(duration=-1), line(duration=True), line(duration="1"),
            line(text=3), line(message=None), line(where=["x"]), line(where=["x", -1]), line(where=["x", 1 << 40]), line(where=3),
            line(log=3), line(log=[["x"]]), line(log=[["x", 3]]), line(properties={"a": 1}), line(wasxfail=1), b'{"problem": 3}\n',
            b'{"warning": "x"}\n', b'{"warning": {"category": 3, "text": "x"}}\n', line().replace(b"0.5", b"NaN"), line().replace(b"0.5", b"1e999"),
        ],
    )  # fmt: skip
    def test_what_is_no_report_is_not_believed(self, data: bytes):
        told = _inside.parse(data)
        assert told.phases == {}
        assert told.warnings == ()
        assert "no report" in told.problem

    @given(st.recursive(st.none() | st.booleans() | st.floats() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*GOOD, "problem", "warning"]), inner)))
    def test_no_value_breaks_the_reader(self, value: object):
        _inside.parse(json.dumps(value).encode())

    @given(st.sampled_from(list(GOOD)), st.none() | st.booleans() | st.floats() | st.text() | st.integers() | st.lists(st.text()))
    def test_no_field_breaks_the_reader(self, name: str, value: object):
        for phase in _inside.parse(line(**{name: value})).phases.values():
            assert phase.outcome in ("passed", "failed", "skipped")
            assert phase.duration >= 0

    def test_texts_are_bounded_and_fit_to_be_shown(self):
        phase = _inside.parse(line(text="\x1b]0;title\a" + "x" * 1_000_000, message="\x1b[31mred")).phases["call"]
        assert len(phase.text) < _inside.MAX_SHOWN + 100
        assert phase.message == "\\x1b[31mred"

    @pytest.mark.parametrize("data", [b" " * (_inside.MAX_TOLD + 1), b"\n" * _inside.MAX_TOLD])
    def test_more_than_is_read_is_said(self, data: bytes):
        assert "more than" in _inside.parse(data).problem

    def test_only_pythons_own_warnings_are_taken_by_name(self):
        told = _inside.parse(
            b'{"warning": {"category": "DeprecationWarning", "text": "a"}}\n{"warning": {"category": "SystemExit", "text": "b"}}\n'
            b'{"warning": {"category": "no such", "text": "c"}}\n'
        )
        assert [warning.category for warning in told.warnings] == [DeprecationWarning, UserWarning, UserWarning]


class TestFilesForATestInside:
    def test_what_lies_in_another_or_in_the_view_is_not_bound_twice(self, tmp_path: Path):
        project, inner = tmp_path / "project", tmp_path / "project" / ".venv"
        inner.mkdir(parents=True)
        other = tmp_path / "project-2"
        other.mkdir()
        bound = _exposed.binds(map(str, (inner, project, other, "/usr/lib", "/lib", tmp_path / "missing")), taken=())
        assert [bind.target for bind in bound] == [str(project), str(other)]
        assert all(bind.read_only and bind.source == bind.target for bind in bound)

    def test_a_place_behind_a_link_is_shown_at_both(self, tmp_path: Path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        assert [bind.target for bind in _exposed.binds([str(tmp_path / "link")], taken=())] == [str(tmp_path / "link"), str(tmp_path / "real")]

    def test_where_the_caller_mounts_nothing_is_bound(self, tmp_path: Path):
        assert _exposed.binds([str(tmp_path)], taken=[str(tmp_path.parent)]) == []

    @pytest.mark.parametrize("path", ["/", "/proc/self", "/dev"])
    def test_the_hosts_whole_tree_is_refused(self, path: str):
        with pytest.raises(UsageError, match="cannot be shown"):
            _exposed.binds([path], taken=())

    def test_all_that_is_imported_here_is_found_there(self):
        shown = [os.path.realpath(path) for path in _exposed.of_interpreter()]
        for module in (json, pytest, sys.modules["sandbox"]):
            assert any(os.path.realpath(module.__file__ or "").startswith(path) for path in shown), module


class TestLogs:
    def test_a_line_is_found_before_and_after_and_in_pieces(self):
        reading, writing = os.pipe()
        log = Log(reading, "x")
        watches = [Watch(re.compile(text)) for text in ("^one$", "tw.$", "prompt>", "never")]
        os.write(writing, b"one\n")
        for watch in watches:
            log.watch(watch)
        os.write(writing, b"tw")
        os.write(writing, b"o\nprompt>")
        os.close(writing)
        log.join(60)
        assert [watch.is_found for watch in watches] == [True, True, True, False]
        assert log.read() == b"one\ntwo\nprompt>"
        assert log.read(4) == b"two\nprompt>"
        for watch in watches:
            log.unwatch(watch)
            watch.close()

    def test_a_flood_is_counted_and_forgotten_but_each_line_was_looked_at(self):
        reading, writing = os.pipe()
        log = Log(reading, "x")
        watch = Watch(re.compile("first"))
        log.watch(watch)
        os.write(writing, b"first\n")
        for _ in range(40):
            os.write(writing, b"x" * 65535)  # no newline at all
        os.close(writing)
        log.join(60)
        assert log.total == 6 + 40 * 65535
        assert len(log.read()) <= MAX_KEPT + (64 << 10)
        assert log.read(log.total - 3) == b"xxx"
        assert watch.is_found
        assert b"first" not in log.read()
        watch.close()


class TestReaching:
    def test_who_listens_is_read_from_the_kernels_table(self):
        import socket

        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            assert _reach.is_listening(os.getpid(), port)
            with socket.create_connection(("127.0.0.1", port)) as client:
                assert not _reach.is_listening(os.getpid(), client.getsockname()[1])
        assert not _reach.is_listening(os.getpid(), port)

    @pytest.mark.parametrize("url", ["ftp://localhost/", "https://localhost/", "http://example.org/", "http://localhost:99999/", "localhost:80", 80, "http://localhost/ä", "http://localhost/\r\nX: y"])
    def test_only_urls_of_the_container_are_asked(self, url: object):
        with pytest.raises(UsageError):
            _waiting._to_address(url)

    def test_a_url_is_taken_apart(self):
        assert _waiting._to_address("http://localhost:8080/a?b=c") == ("localhost", 8080, "/a?b=c")
        assert _waiting._to_address("http://[::1]") == ("::1", 80, "/")
