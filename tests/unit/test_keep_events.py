"""The log of events: written by many at once, bounded, read while it is written; and what the options of ``sandbox events`` say."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import UsageError
from sandbox.cli.events import document, line, to_filters, to_moment
from sandbox.keep import _events as events
from sandbox.keep._events import BOUND, CURRENT, LAST, Event, EventReader, decode
from sandbox.keep._record import Config

CONFIG = Config("a" * 64, "web", 0.0, "app", ["true"], 1, {"shop": "yes"})


@pytest.fixture
def directory(tmp_path: Path) -> Generator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def reader(tmp_path: Path) -> Generator[EventReader]:
    @contextlib.contextmanager
    def opened() -> Generator[int | None]:
        fd = os.open(tmp_path, os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)

    made = EventReader(opened)
    yield made
    made.close()


def test_what_many_write_at_once_is_there_once_and_whole(directory: int, reader: EventReader) -> None:
    def write(writer: int) -> None:
        for number in range(200):
            events.add(directory, "start", CONFIG, writer=writer, number=number)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    seen: list[Event] = []
    while any(thread.is_alive() for thread in threads):
        seen += reader.read()
    seen += reader.read()
    found = sorted((int(event.attributes["writer"]), int(event.attributes["number"])) for event in seen)
    assert found == list(itertools.product(range(4), range(200)))
    assert {(event.id, event.action, event.attributes["shop"], event.attributes["name"]) for event in seen} == {("a" * 64, "start", "yes", "web")}


def test_the_log_is_bounded_and_its_reader_misses_what_is_gone_alone(directory: int, reader: EventReader, tmp_path: Path) -> None:
    wide = Config("a" * 64, "web", 0.0, "app", ["true"], 1, {"wide": "x" * 4000})
    assert list(reader.read()) == []
    kept_up = 0
    for _ in range(20):
        for number in range(30):
            events.add(directory, "start", wide, number=number)
        kept_up += len(list(reader.read()))
    assert kept_up == 600  # 2.4 MB
    sizes = [(tmp_path / name).stat().st_size for name in (CURRENT, LAST)]
    assert sum(sizes) <= BOUND + 2 * events.MAX_EVENT
    late = EventReader(reader.opened)
    rest = [int(event.attributes["number"]) for event in late.read()]
    late.close()
    assert 100 < len(rest) < 600
    assert rest == [number % 30 for number in range(600)][-len(rest) :]


def test_who_is_stopped_while_he_turns_to_the_next_file_keeps_nobody_and_the_bound_holds(directory: int, reader: EventReader, tmp_path: Path) -> None:
    wide = Config("a" * 64, "web", 0.0, "app", ["true"], 1, {"wide": "x" * 7000})
    events.add(directory, "start", wide)
    with open(tmp_path / CURRENT, "rb") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        for _ in range(200):
            events.add(directory, "start", wide)
        assert BOUND <= (tmp_path / CURRENT).stat().st_size <= BOUND + events.MAX_EVENT
        assert not (tmp_path / LAST).exists()
    events.add(directory, "start", wide)
    events.add(directory, "stop", wide)
    assert [event.action for event in reader.read()][-1] == "stop"


def test_labels_that_are_too_long_and_lines_that_are_torn_cost_only_themselves(directory: int, reader: EventReader, tmp_path: Path) -> None:
    events.add(directory, "start", Config("a" * 64, "web", 0.0, "app", ["true"], 1, {"wide": "x" * 9000}), signal="y" * 9000)
    with open(tmp_path / CURRENT, "ab") as file:
        file.write(b'\n{"time": 1, "action": "torn')
    events.add(directory, "stop", CONFIG)
    found = list(reader.read())
    assert [event.action for event in found] == ["start", "stop"]
    assert found[0].attributes == {"image": "app", "name": "web", "signal": "y" * 256}


def test_a_link_in_the_place_of_the_log_is_not_followed(directory: int, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / CURRENT).symlink_to(target)
    events.add(directory, "start", CONFIG)
    assert target.read_text() == "mine"


@given(st.binary(max_size=200) | st.sampled_from([b"{}", b"[1]", b'{"time":-1,"action":"a","id":"%b","attributes":{}}' % (b"a" * 64), b"[" * 8000]))
def test_any_bytes_are_an_event_or_none(raw: bytes) -> None:
    found = decode(raw)
    assert found is None or isinstance(found, Event)


MOMENT = 1_769_853_600.5


def test_events_look_as_dockers() -> None:
    event = Event(int(MOMENT * 1e9), "die", "a" * 64, {"name": "web", "image": "app", "exitCode": "3"})
    assert line(event) == f"2026-01-31T10:00:00.500000000Z container die {'a' * 64} (exitCode=3, image=app, name=web)"
    assert line(Event((1 << 63) - 1, "die", "a" * 64, {})).startswith("2262-")
    said = document(event)
    assert (said["Type"], said["Action"], said["Actor"]["Attributes"]["exitCode"], said["timeNano"]) == ("container", "die", "3", event.time_ns)


@pytest.mark.parametrize("text", ["2026-01-31T10:00:00.5Z", "1769853600.5", "2026-01-31T11:00:00.5+01:00"])
def test_moments(text: str) -> None:
    assert to_moment("--since", text) == MOMENT
    assert to_moment("--since", None) is None
    ago = to_moment("--since", "1m30s")
    assert ago is not None
    assert time.time() - 100 < ago < time.time() - 89


@pytest.mark.parametrize("text", ["", "x", "1x", "-5", "1e9", "2026-13-01", "9" * 40, "1969-01-01T00:00:00Z"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--until"):
        to_moment("--until", text)


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        ([], True), (["container=web"], True), (["container=aaaa"], True), (["container=we"], False), (["container="], False),
        (["event=start", "event=health_status"], True), (["event=start"], False), (["event=health_status: healthy"], True),
        (["label=shop", "label=shop=yes"], True), (["label=shop", "label=shop=no"], False), (["image=app", "type=container"], True),
        (["type=network"], False), (["container=web", "image=other"], False),
    ],
)  # fmt: skip
def test_filters_are_dockers(filters: list[str], fits: bool) -> None:
    event = Event(0, "health_status: healthy", "a" * 64, {"name": "web", "image": "app", "shop": "yes"})
    assert to_filters(filters)(event) == fits
