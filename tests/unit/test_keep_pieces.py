"""Containers that outlive their command, without a kernel: the messages of keepers, what is written down, the log, the store."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sandbox
from sandbox import (
    BrokenError,
    ContainerNotFoundError,
    NameInUseError,
    PortInUseError,
    ProgramNotFoundError,
    ProtocolError,
    SandboxError,
    SetupError,
    UnsupportedError,
    UsageError,
)
from sandbox.cli.containers import stamped
from sandbox.keep import _log, _record, _store, _wire
from sandbox.keep._log import LogReader, LogWriter, Record
from sandbox.keep._record import Config, State

ID = "ab" * 32
CONFIG = Config(ID, "web", 12.5, "debian:12", ["sleep", "1"], 77, {"app": "shop"}, True, False, 1 << 20, {"env": {"A": "b"}})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


# ---- Messages ----


def value_of(kind: Any) -> st.SearchStrategy[Any]:
    if kind is int:
        return st.integers(-(1 << 31) + 1, (1 << 31) - 1)
    return {
        "texts": st.lists(st.text(), max_size=4), "mapping": st.dictionaries(st.text(), st.text(), max_size=4),
        str: st.text(), bool: st.booleans(), float: st.floats(allow_nan=False, allow_infinity=False) | st.integers(-100, 100),
    }[kind]


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    verb = draw(st.sampled_from(sorted(_wire.VERBS)))
    return _wire.request(verb, **{name: draw(value_of(kind)) for name, kind in _wire.VERBS[verb].items()})


def fds_of(message: dict[str, Any]) -> int:
    if message["do"] == "exec":
        return 0 if message["tty"] or message["detach"] else 3
    return 1 if message["do"] == "export" else 0


@given(requests())
def test_a_request_comes_back_as_it_was(message: dict[str, Any]) -> None:
    found = _wire.to_request(_wire.decode(_wire.encode(message)), fds=fds_of(message))
    assert {"do": found.verb, **found.fields} == message


@given(requests(), st.integers(0, 3))
def test_a_request_with_other_descriptors_is_refused(message: dict[str, Any], fds: int) -> None:
    if fds == fds_of(message):
        return
    with pytest.raises(ProtocolError, match="descriptors"):
        _wire.to_request(message, fds=fds)


@given(requests(), JSON, st.data())
def test_a_request_with_another_value_is_refused_or_has_the_right_types(message: dict[str, Any], value: object, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(message)))
    changed = {**message, name: value}
    try:
        found = _wire.to_request(changed, fds=0)
    except ProtocolError:
        return
    assert {"do": found.verb, **found.fields} == changed
    kinds = {int: int, str: str, bool: bool, float: (int, float), "texts": list, "mapping": dict}
    assert all(isinstance(found.fields[field], kinds[kind]) for field, kind in _wire.VERBS[found.verb].items())


@given(requests(), st.text(min_size=1, max_size=5), JSON)
def test_a_request_with_a_field_too_many_or_too_few_is_refused(message: dict[str, Any], name: str, value: object) -> None:
    if name in message:
        del message[name]
    else:
        message[name] = value
    with pytest.raises(ProtocolError):
        _wire.to_request(message, fds=fds_of(message) if message.get("do") else 0)


@given(st.binary(max_size=200))
def test_bytes_are_an_object_or_refused(raw: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(_wire.decode(raw), dict)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a":NaN}', b'{"a":-Infinity}', b"1" * 5000, b"\xff", b"[]", b'"x"', b" " * (1 << 18)])
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        _wire.decode(raw)


def test_a_message_that_is_too_large_is_refused_where_it_is_made() -> None:
    with pytest.raises(UsageError, match="most"):
        _wire.encode({"a": "x" * _wire.MAX_MESSAGE})


@given(st.lists(st.text(max_size=3000), max_size=60))
def test_a_long_answer_comes_in_messages_that_fit(items: list[str]) -> None:
    parts = [_wire.decode(_wire.encode(part)) for part in _wire.parts(items)]
    assert [item for part in parts for item in part["more"]] == items


ERRORS: list[SandboxError] = [
    UsageError("no"),
    ContainerNotFoundError("not there"),
    NameInUseError("taken", name="web", owner=ID),
    ProgramNotFoundError("no program", errno=13, filename="/x"),
    UnsupportedError("cannot", feature="cgroup:memory", remedy="mount it"),
    SetupError("mount", 1, step="init", hint="be root"),
    PortInUseError("taken", port="80/tcp", owner="nginx", pid=3),
    BrokenError("dead"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_back_of_its_kind(error: SandboxError) -> None:
    found = _wire.to_error(_wire.decode(_wire.encode({"error": _wire.error_of(error)}))["error"])
    assert (type(found), str(found)) == (type(error), str(error))
    for name in ("errno", "feature", "remedy", "step", "operation", "owner", "name", "filename", "port", "pid"):
        assert getattr(found, name, None) == getattr(error, name, None), name


@pytest.mark.parametrize("letter", ["a", "\x01", '"', "é", "\U0001f600", "\udcff"])
def test_an_error_of_a_long_text_fits_into_a_message(letter: str) -> None:
    error = ProgramNotFoundError(letter * 100_000, filename=letter * 100_000)
    for name in ("feature", "hint", "limit", "name", "operation", "owner", "pid", "port", "program", "remedy", "status", "step"):
        setattr(error, name, letter * 100_000)
    found = _wire.to_error(_wire.decode(_wire.encode({"error": _wire.error_of(error)}))["error"])
    assert isinstance(found, ProgramNotFoundError)
    assert str(found) == letter * len(str(found))
    assert 600 < len(str(found)) <= 8000


def test_what_is_none_of_our_errors_is_told_as_one() -> None:
    for file, words in (("/x", "/x: EACCES"), (b"/x", "/x: EACCES"), (7, "keeper: PermissionError: EACCES"), (None, "keeper: PermissionError: EACCES")):
        found = _wire.to_error(_wire.error_of(PermissionError(13, "denied", file)))
        assert isinstance(found, SetupError)
        assert str(found).startswith(words)
    assert "ulimit -n" in str(_wire.to_error(_wire.error_of(OSError(24, "too many"))))
    assert isinstance(_wire.to_error(_wire.error_of(KeyError("x"))), BrokenError)
    assert isinstance(_wire.to_error(_wire.error_of(sandbox.CommandError("failed", None))), SandboxError)  # type: ignore[arg-type]


@given(JSON | st.fixed_dictionaries({"type": st.sampled_from(sandbox.errors.__all__), "message": JSON, "fields": JSON}))
def test_an_error_that_makes_no_sense_is_an_error_all_the_same(document: object) -> None:
    assert isinstance(_wire.to_error(document), SandboxError)


# ---- What is written down ----

COUNT = st.none() | st.integers(0, 1 << 40)
RESULTS = st.fixed_dictionaries(
    {
        "argv": st.lists(st.text(), min_size=1, max_size=3), "status": st.sampled_from([status.value for status in sandbox.Status]),
        "oom_killed": st.booleans(), **dict.fromkeys(("cpu_time", "user_time", "system_time", "wall_time"), st.floats(0, 1e6)),
        **dict.fromkeys(("exit_code", "signal", "memory_peak", "pids_peak", "syscall"), COUNT), "max_rss": st.integers(0, 1 << 40),
    }
)


@given(st.sampled_from(_record.STATUSES), st.integers(0, 1 << 22), st.floats(0, 1e10), st.none() | RESULTS, st.text())
def test_a_state_comes_back_as_it_was(status: str, pid: int, started: float, result: dict[str, Any] | None, error: str) -> None:
    state = State(status=status, init=pid, started=started, result=result, error=error)
    assert _record.decode_state(_record.encode(state)) == state


@given(RESULTS)
def test_a_result_comes_back_as_it_was(document: dict[str, Any]) -> None:
    assert _record.result_of(_record.to_result(document)) == document


def test_a_config_comes_back_as_it_was() -> None:
    assert _record.decode_config(_record.encode(CONFIG)) == CONFIG


@given(st.sampled_from([field.name for field in attrs.fields(Config)] + ["version", "other"]), JSON)
def test_a_config_with_another_value_is_refused_or_has_the_right_type(name: str, value: object) -> None:
    document = json.loads(_record.encode(CONFIG))
    document[name] = value
    try:
        found = _record.decode_config(json.dumps(document).encode())
    except ValueError:
        return
    assert name in ("name", "options", "version") or type(getattr(found, name)) in (type(getattr(CONFIG, name)), int)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"[" * 100_000, b'{"version": 2}', b"\x80"])
def test_a_damaged_document_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        _record.decode_config(raw)
    with pytest.raises(ValueError):
        _record.decode_state(raw)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "a b", "a\n", "ä", "a" * 64, "../x", 7, None])
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(UsageError):
        _record.to_name(name)


# ---- The log ----

PIECES = st.lists(st.tuples(st.sampled_from((1, 2)), st.binary(min_size=1, max_size=300)), max_size=30)


@pytest.fixture
def directory(tmp_path: Path) -> Any:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_log_is_read_as_it_was_written(directory: int) -> None:
    writer, reader = LogWriter(directory, 1 << 20), LogReader(directory)
    for number in range(5):
        writer.write(1 + number % 2, b"line %d\n" % number)
        assert [(record.stream, record.data) for record in reader.read()] == [(1 + number % 2, b"line %d\n" % number)]
    assert list(reader.read()) == []
    writer.close()
    reader.close()


def test_a_log_has_its_bound_whatever_is_written(directory: int, tmp_path: Path) -> None:
    writer, bound = LogWriter(directory, _log.LEAST), _log.LEAST
    for number in range(200):
        writer.write(1, b"%06d" % number * (_log.CHUNK // 6))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= bound
    reader = LogReader(directory)
    found = [int(record.data[:6]) for record in reader.read()]
    assert found == list(range(found[0], 200))
    assert len(found) >= 2
    writer.close()
    reader.close()


def test_a_reader_that_is_too_slow_knows_it(directory: int) -> None:
    writer, reader = LogWriter(directory, _log.LEAST), LogReader(directory)
    writer.write(1, b"first")
    assert [record.data for record in reader.read()] == [b"first"]
    for _ in range(20):
        writer.write(1, b"x" * _log.CHUNK)
    assert len(list(reader.read())) < 20
    assert reader.gaps > 0
    writer.close()
    reader.close()


def test_a_reader_who_wants_what_was_there_is_not_kept_by_who_goes_on_writing(directory: int) -> None:
    writer, reader = LogWriter(directory, _log.LEAST), LogReader(directory)
    assert list(reader.read(to_now=True)) == []
    for _ in range(20):
        writer.write(1, b"before" + bytes(8000))
    count = 0
    for _ in reader.read(to_now=True):
        writer.write(1, b"after" + bytes(8000))
        count += 1
        assert count <= 20
    assert count > 4
    writer.write(1, b"the last")
    assert [record.data for record in reader.read()][-1] == b"the last"
    writer.close()
    reader.close()


def test_a_reader_follows_over_the_turn_of_files(directory: int) -> None:
    writer, reader = LogWriter(directory, _log.LEAST), LogReader(directory)
    found = []
    for number in range(50):
        writer.write(2, b"%06d" % number * 2000)
        found += [int(record.data[:6]) for record in reader.read()]
    assert (found, reader.gaps) == (list(range(50)), 0)
    writer.close()
    reader.close()


@pytest.mark.parametrize("raw", [b"", b"x" * 100, _log.MAGIC + b"\0" * 8, _log.MAGIC + b"\1" + b"\0" * 7 + b"\xff" * 20])
def test_a_damaged_log_is_refused(directory: int, tmp_path: Path, raw: bytes) -> None:
    (tmp_path / _log.CURRENT).write_bytes(raw)
    reader = LogReader(directory)
    with pytest.raises(ValueError):
        list(reader.read())
    reader.close()


def test_a_log_is_never_written_through_a_link(directory: int, tmp_path: Path) -> None:
    victim = tmp_path.parent / "victim"
    victim.write_bytes(b"untouched")
    (tmp_path / "log.new").symlink_to(victim)
    writer = LogWriter(directory, 1 << 20)
    writer.write(1, b"data")
    assert (victim.read_bytes(), writer.lost) == (b"untouched", 4)


@given(PIECES)
def test_lines_are_the_records_cut_anew(pieces: list[tuple[int, bytes]]) -> None:
    records = [Record(number, stream, data) for number, (stream, data) in enumerate(pieces)]
    lines = list(_log.lines(records))
    for stream in (1, 2):
        whole = b"".join(record.data for record in records if record.stream == stream)
        mine = [line.data for line in lines if line.stream == stream]
        assert b"".join(mine) == whole
        assert all(b"\n" not in line[:-1] for line in mine)
        assert all(line.endswith(b"\n") for line in mine[:-1])
    for count in (0, 1, 3):
        assert list(_log.tail(records, count)) == (lines[-count:] if count else [])


@given(PIECES)
def test_each_line_has_its_time_once(pieces: list[tuple[int, bytes]]) -> None:
    within: dict[int, bool] = {}
    out = {1: b"", 2: b""}
    for stream, data in pieces:
        out[stream] += stamped(Record(1_700_000_000_123_456_789, stream, data), within)
    stamp = b"2023-11-14T22:13:20.123456789Z "
    for stream in (1, 2):
        whole = b"".join(data for each, data in pieces if each == stream)
        lines = whole.split(b"\n")
        wanted = b"\n".join(stamp + line for line in lines[:-1]) + (b"\n" if len(lines) > 1 else b"") + (stamp + lines[-1] if lines[-1] else b"")
        assert out[stream] == wanted


# ---- The store ----


def left(store: _store.ContainerStore) -> list[str]:
    return sorted(set(os.listdir(store.path)) - {"events.0"})


def store_of(tmp_path: Path) -> _store.ContainerStore:
    return _store.ContainerStore(str(tmp_path / "store" / "containers"))


def config_of(number: int, name: str, *, remove: bool = False) -> Config:
    return attrs.evolve(CONFIG, id=f"{number:02x}" * 32, name=name, remove=remove)


def test_a_container_is_found_by_id_name_and_first_digits(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    place, lock = store.make(config_of(0xA1, "web"), _store.Place.hold)
    other, other_lock = store.make(config_of(0xA2, "a2"), _store.Place.hold)
    for text, wanted in [("web", 0xA1), ("a1" * 32, 0xA1), ("a1", 0xA1), ("a2", 0xA2), ("a2a2", 0xA2)]:
        with store.open(text) as found:
            assert found.id == f"{wanted:02x}" * 32
    with pytest.raises(UsageError, match="several"):
        store.open("a")
    for wrong in ("", "nobody", "ff", "../x", 3, "name.web", ".new-x"):
        with pytest.raises(ContainerNotFoundError):
            store.open(wrong)
    assert oct((tmp_path / "store" / "containers").stat().st_mode)[-3:] == "700"
    for each in (lock, other_lock):
        os.close(each)
    place.close()
    other.close()


def test_a_name_is_had_once_until_its_owner_has_gone(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    place, lock = store.make(config_of(1, "web"), _store.Place.hold)
    with pytest.raises(NameInUseError, match="010101010101") as caught:
        store.make(config_of(2, "web"), _store.Place.hold)
    assert (caught.value.owner, caught.value.name) == ("01" * 32, "web")
    with pytest.raises(UsageError, match="lives"):
        store.discard(place, is_keeper=False)
    os.close(lock)  # its keeper dies
    assert not place.is_kept
    store.discard(place, is_keeper=False)
    assert left(store) == []
    second, lock = store.make(config_of(2, "web"), _store.Place.hold)
    assert store.rename(second, "shop").name == "shop"
    assert left(store) == ["02" * 32, "name.shop"]
    os.close(lock)
    place.close()
    second.close()


def test_many_claim_one_name_and_one_has_it(tmp_path: Path) -> None:
    store, won, refused = store_of(tmp_path), [], []

    def claim(number: int) -> None:
        try:
            won.append(store.make(config_of(number, "web"), _store.Place.hold))
        except NameInUseError as error:
            refused.append(error.owner)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 15)
    assert set(refused) == {won[0][0].id}
    won[0][0].close()
    os.close(won[0][1])


def test_what_the_dead_have_left_is_swept(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    gone, lock = store.make(config_of(1, "gone", remove=True), _store.Place.hold)
    stays, kept_lock = store.make(config_of(2, "stays"), _store.Place.hold)
    for each in (lock, kept_lock):
        os.close(each)
    os.mkdir(f"{store.path}/.new-{'03' * 32}")
    os.symlink("04" * 32, f"{store.path}/name.nobody")
    os.symlink("/etc/passwd", f"{store.path}/name.evil")
    store.sweep()
    assert left(store) == ["02" * 32, "name.stays"]
    gone.close()
    stays.close()


def test_a_start_that_fails_before_anybody_sees_it_leaves_nothing(tmp_path: Path) -> None:
    store = store_of(tmp_path)

    def fail(place: _store.Place) -> None:
        raise OSError(28, "no space")

    with pytest.raises(OSError, match="no space"):
        store.make(config_of(1, "web"), fail)
    assert left(store) == []


@pytest.mark.parametrize("damage", [b"", b"{", b"x" * 10])
def test_a_damaged_container_is_told_and_can_be_removed(tmp_path: Path, damage: bytes) -> None:
    store = store_of(tmp_path)
    place, lock = store.make(config_of(1, "web"), _store.Place.hold)
    os.close(lock)
    Path(store.path, place.id, "config.json").write_bytes(damage)
    with pytest.raises(UsageError, match="damaged"):
        place.config()
    store.discard(place, is_keeper=False)
    assert not Path(store.path, place.id).exists()
    place.close()


def test_documents_are_never_read_through_links(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    place, lock = store.make(config_of(1, "web"), _store.Place.hold)
    Path(store.path, place.id, "state.json").unlink()
    Path(store.path, place.id, "state.json").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="damaged"):
        place.state()
    os.close(lock)
    place.close()


def test_a_store_that_others_can_look_into_is_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    place, lock = store.make(config_of(1, "web"), _store.Place.hold)
    os.chmod(store.path, 0o755)
    with pytest.raises(UsageError, match="other users"):
        store.ids()
    os.close(lock)
    place.close()


def test_the_lock_says_who_is_kept(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    place, lock = store.make(config_of(1, "web"), _store.Place.hold)
    assert [place.is_kept, place.is_kept] == [True, True]  # looking takes nothing
    fcntl.flock(lock, fcntl.LOCK_UN)
    assert [place.is_kept] == [False]
    os.close(lock)
    place.close()
