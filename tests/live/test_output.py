"""A program's output and input: kept, counted, bounded, passed on, merged, streamed both ways; and the host's memory, which stays flat."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import PIPE, STDOUT, Container, Status, Tmpfs, UsageError
from tests.support import needs

pytestmark = [needs("userns"), pytest.mark.unprivileged]
# Bytes of the program that writes without end: 1 GB, or 10, with SANDBOX_TESTS_OUTPUT=10G.
MUCH = sandbox._types.to_size(os.environ.get("SANDBOX_TESTS_OUTPUT", "1G"))  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def box() -> Iterator[Container]:
    with Container(mounts=[Tmpfs("/tmp")]) as c:
        yield c


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


# --- limits and counts ---------------------------------------------------------------------------------------------------------


def test_what_was_written_is_counted(box: Container) -> None:
    r = box.exec(sh("printf 12345; printf 123 >&2"))
    assert (r.stdout, r.stderr, r.stdout_size, r.stderr_size) == (b"12345", b"123", 5, 3)
    quiet = box.exec(sh("echo x"), stdout=None, stderr=None)
    assert (quiet.stdout_size, quiet.stderr_size) == (None, None)
    text = box.exec(sh("printf 'ä€'"), text=True)
    assert (text.stdout, text.stdout_size) == ("ä€", 5)


def test_a_program_beyond_its_limit_is_killed_and_its_head_is_kept(box: Container) -> None:
    r = box.exec(["yes"], output_limit=100_001, timeout=30)
    assert r.status is Status.OUTPUT_LIMIT
    assert r.stdout == (b"y\n" * 50_001)[:100_001]
    assert (r.stdout_truncated, r.stderr_truncated) == (True, False)
    assert r.stdout_size is not None
    assert r.stdout_size > 100_001
    exact = box.exec(["printf", "12345"], output_limit=5)
    assert (exact.ok, exact.stdout_truncated, exact.stdout_size) == (True, False, 5)
    nothing = box.exec(["printf", "12345"], output_limit=0)
    assert (nothing.status, nothing.stdout, nothing.stdout_size) == (Status.OUTPUT_LIMIT, b"", 5)


def test_each_stream_can_have_its_own_limit(box: Container) -> None:
    both = "head -c 1000 /dev/zero; head -c 1000 /dev/zero >&2"
    assert box.exec(sh(both), output_limit=(1000, "1K")).ok
    r = box.exec(sh(both), output_limit=(1000, 999))
    assert (r.status, r.stdout_truncated, r.stderr_truncated, len(r.stderr)) == (Status.OUTPUT_LIMIT, False, True, 999)
    r = box.exec(sh(both), output_limit=("10", "1M"), on_overflow="discard")
    assert (len(r.stdout), len(r.stderr), r.stdout_size, r.stderr_size) == (10, 1000, 1000, 1000)


def test_what_is_beyond_can_be_thrown_away_and_counted(box: Container) -> None:
    r = box.exec(sh("head -c 5000000 /dev/zero; exit 3"), output_limit=1234, on_overflow="discard")
    assert (r.status, r.exit_code, len(r.stdout), r.stdout_truncated, r.stdout_size) == (Status.EXITED, 3, 1234, True, 5_000_000)
    # The last of it is still in the pipe when the program ends.
    for size in (65536, 1 << 20, (1 << 20) + 1):
        assert box.exec(["head", "-c", str(size), "/dev/zero"], output_limit=1, on_overflow="discard").stdout_size == size


@pytest.mark.parametrize("wrong", [{"output_limit": (1,)}, {"output_limit": (1, 2, 3)}, {"output_limit": 1.5}, {"output_limit": (1, "x")}, {"on_overflow": "stop"}, {"on_overflow": None}])
def test_limits_that_make_no_sense_are_refused(box: Container, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        box.exec(["true"], **wrong)
    with pytest.raises(UsageError, match=next(iter(wrong))):
        box.popen(["true"], **wrong)


def grown(since: int) -> int:
    """By how many bytes the most that this process ever had has grown."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - since


def flood(size: int) -> list[str]:
    return ["head", "-c", str(size), "/dev/zero"]


@pytest.mark.timeout(600)
def test_the_hosts_memory_stays_flat_under_a_flood(box: Container) -> None:
    """1 GB three ways; SANDBOX_TESTS_OUTPUT=10G for more."""
    before = grown(0)
    r = box.exec(flood(MUCH), output_limit="1M", on_overflow="discard")
    assert (r.ok, r.stdout_size, len(r.stdout)) == (True, MUCH, 1 << 20)
    counted = [0]

    def count(data: bytes) -> None:
        counted[0] += len(data)

    assert box.exec(flood(MUCH), stdout=count, output_limit=MUCH).ok
    assert counted == [MUCH]
    with box.popen(flood(MUCH), stdout=PIPE, stderr=PIPE) as p:
        assert sum(len(data) for _, data in p.chunks()) == MUCH
    killed = box.exec(flood(MUCH), output_limit="1M")
    assert killed.status is Status.OUTPUT_LIMIT
    with box.popen(flood(MUCH), stdout=PIPE, output_limit="1M", on_overflow="discard") as p:
        assert len(p.communicate()[0]) == 1 << 20
        assert p.wait().stdout_size == MUCH
    assert grown(before) < 24 << 20


def test_many_small_writes_take_no_more_memory_than_their_bytes(box: Container) -> None:
    """An object for each piece would be forty times what the limit says."""
    import tracemalloc

    from sandbox._pump import Capture

    read, write = os.pipe()
    capture = Capture(read, 1 << 20)
    tracemalloc.start()
    try:
        for _ in range(100_000):
            os.write(write, b"ab")
            capture.read()
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()
        os.close(read)
        os.close(write)
    assert capture.bytes() == b"ab" * 100_000


# --- text ----------------------------------------------------------------------------------------------------------------------


SPLIT = 'for byte in 303 244 342 202 254 360 237 246 212 015 012; do printf "\\\\$byte"; sleep 0.01; done'


def test_characters_that_come_in_pieces_are_whole(box: Container) -> None:
    assert box.exec(sh(SPLIT), text=True).stdout == "ä€🦊\n"
    got: list[str] = []
    r = box.exec(sh(SPLIT), text=True, stdout=got.append)
    assert ("".join(got), r.stdout, r.stdout_size) == ("ä€🦊\n", None, 11)
    assert "" not in got
    with box.popen(sh(SPLIT), text=True, stdout=PIPE, stderr=PIPE) as p:
        assert "".join(data for _, data in p.chunks(1)) == "ä€🦊\n"
    with box.popen(sh(SPLIT), text=True, stdout=PIPE) as p:
        assert p.communicate() == ("ä€🦊\n", None)


def test_a_limit_in_the_middle_of_a_character_leaves_it_out(box: Container) -> None:
    for limit, text in ((1, ""), (2, "ä"), (4, "ä"), (5, "ä€")):
        got: list[str] = []
        assert box.exec(["printf", "ä€"], text=True, output_limit=limit, on_overflow="discard").stdout == text
        assert box.exec(["printf", "ä€"], text=True, output_limit=limit, on_overflow="discard", stdout=got.append).ok
        assert "".join(got) == text
        with box.popen(["printf", "ä€"], text=True, output_limit=limit, on_overflow="discard", stdout=PIPE) as p:
            assert p.communicate()[0] == text


def test_half_a_character_at_the_end_is_told_as_errors_says(box: Container) -> None:
    with pytest.raises(UnicodeDecodeError):
        box.exec(["printf", "\\303"], text=True)
    with pytest.raises(UnicodeDecodeError):
        box.exec(["printf", "\\303"], text=True, stdout=lambda text: None)
    assert box.exec(["printf", "\\303"], text=True, errors="replace").stdout == "\ufffd"
    got: list[str] = []
    box.exec(["printf", "\\303"], text=True, errors="replace", stdout=got.append)
    assert got == ["\ufffd"]


# --- where it goes -------------------------------------------------------------------------------------------------------------


def test_merged_streams_keep_their_order(box: Container) -> None:
    script = "for i in $(seq 500); do echo out $i; echo err $i >&2; done"
    expected = "".join(f"out {i}\nerr {i}\n" for i in range(1, 501)).encode()
    r = box.exec(sh(script), stderr=STDOUT)
    assert (r.stdout, r.stderr, r.stdout_size, r.stderr_size) == (expected, None, len(expected), None)
    with box.popen(sh(script), stdout=PIPE, stderr=STDOUT) as p:
        assert p.communicate() == (expected, None)
    got: list[bytes] = []
    box.exec(sh(script), stdout=got.append, stderr=STDOUT)
    assert b"".join(got) == expected


def test_files_as_standard_streams(box: Container, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"line\n" * 1000)
    with (tmp_path / "in").open("rb") as stdin, (tmp_path / "out").open("wb") as stdout, (tmp_path / "err").open("wb") as stderr:
        r = box.exec(sh("cat; echo done >&2"), stdin=stdin, stdout=stdout, stderr=stderr)
    assert (r.ok, r.stdout, r.stdout_size) == (True, None, None)
    assert ((tmp_path / "out").read_bytes(), (tmp_path / "err").read_bytes()) == (b"line\n" * 1000, b"done\n")
    with (tmp_path / "out").open("ab") as out:
        box.exec(sh("echo more; echo and more >&2"), stdout=out, stderr=STDOUT)
    assert (tmp_path / "out").read_bytes().endswith(b"line\nmore\nand more\n")
    with (tmp_path / "in").open("rb") as stdin, box.popen(["wc", "-l"], stdin=stdin, stdout=PIPE) as p:
        assert p.communicate()[0].split() == [b"1000"]


def test_functions_get_the_output_as_it_comes(box: Container) -> None:
    got: list[tuple[str, bytes]] = []
    r = box.exec(sh("echo a; echo b >&2; read x; echo $x"), input=b"c\n", stdout=lambda d: got.append(("out", d)), stderr=lambda d: got.append(("err", d)))
    assert [b"".join(data for name, data in got if name == wanted) for wanted in ("out", "err")] == [b"a\nc\n", b"b\n"]
    assert (r.stdout, r.stderr, r.stdout_size, r.stderr_size) == (None, None, 4, 2)
    mixed = box.exec(sh("echo a; echo b >&2"), stderr=lambda d: None)
    assert (mixed.stdout, mixed.stderr) == (b"a\n", None)


def test_a_function_gets_no_more_than_the_limit(box: Container) -> None:
    got: list[bytes] = []
    r = box.exec(["yes"], stdout=got.append, output_limit=70_000)
    assert (r.status, r.stdout, r.stdout_truncated, len(b"".join(got))) == (Status.OUTPUT_LIMIT, None, True, 70_000)


def test_what_a_function_raises_ends_the_program_and_leaves_the_container(box: Container) -> None:
    def broken(data: bytes) -> None:
        raise sandbox.BrokenError("of another container")

    for function, error in ((lambda d: 1 // 0, ZeroDivisionError), (broken, sandbox.BrokenError)):
        with pytest.raises(error):
            box.exec(sh("echo x; sleep 60"), stdout=function)
        assert b"sleep" not in box.exec(sh("cat /proc/[0-9]*/comm")).stdout
        assert box.is_running
        assert box.exec(["echo", "alive"]).stdout == b"alive\n"


def test_popen_takes_no_functions(box: Container) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError, match=r"Process\.chunks"):
        box.popen(["true"], stdout=print)
    with pytest.raises(UsageError, match="stdin"):
        box.exec(["true"], stdin=print)
    assert len(os.listdir("/proc/self/fd")) == before


# --- both ways -----------------------------------------------------------------------------------------------------------------


def test_a_megabyte_goes_to_and_fro_without_a_deadlock(box: Container) -> None:
    """One thread, plain writes and reads; a pipe holds 64 KiB."""
    ball = os.urandom(1_000_000)
    with box.popen(["cat"], stdin=PIPE, stdout=PIPE) as p:
        assert p.stdin is not None
        assert p.stdout is not None
        for _ in range(10):
            p.stdin.write(ball)
            p.stdin.flush()
            assert p.stdout.read(len(ball)) == ball
        p.stdin.close()  # half-close: the program sees the end of its input
        assert p.stdout.read() == b""
        assert p.wait(10).ok


def test_two_outputs_can_be_read_one_after_the_other(box: Container) -> None:
    with box.popen(sh("head -c 1000000 /dev/zero >&2; head -c 1000000 /dev/zero; printf end >&2"), stdout=PIPE, stderr=PIPE) as p:
        assert p.stdout is not None
        assert p.stderr is not None
        assert p.stdout.read() == bytes(1_000_000)
        assert p.stderr.read() == bytes(1_000_000) + b"end"


def test_what_is_kept_ahead_is_bounded(box: Container) -> None:
    with box.popen(["cat"], stdin=PIPE, stdout=PIPE, output_limit="200K") as p:
        assert p.stdin is not None
        assert p.stdout is not None
        sent = threading.Thread(target=p.stdin.write, args=(bytes(1 << 20),))
        sent.start()
        sent.join(0.3)
        assert sent.is_alive()  # 200 KiB are kept, and 64 in either pipe: then it waits
        assert len(p._duplex._outputs[0].kept) <= (200 << 10) + 65536  # type: ignore[union-attr]
        got = p.stdout.read(1 << 20)
        sent.join(10)
        assert (sent.is_alive(), got) == (False, bytes(1 << 20))
        p.kill()


def test_threads_may_read_and_write_at_once(box: Container) -> None:
    data = os.urandom(5_000_000)
    with box.popen(sh("cd /tmp; mkfifo f; cat f >&2 & tee f; wait; rm f"), stdin=PIPE, stdout=PIPE, stderr=PIPE) as p:
        got: dict[str, bytes] = {}
        readers = [threading.Thread(target=lambda n=name, f=file: got.update({n: f.read()})) for name, file in (("out", p.stdout), ("err", p.stderr))]
        for reader in readers:
            reader.start()
        assert p.stdin is not None
        p.stdin.write(data)
        p.stdin.close()
        for reader in readers:
            reader.join(30)
        assert got == {"out": data, "err": data}


def test_communicate_knows_what_was_read_ahead(box: Container) -> None:
    with box.popen(["cat"], stdin=PIPE, stdout=PIPE) as p:
        assert p.stdin is not None
        p.stdin.write(b"x" * 500_000)
        assert p.communicate(b"y" * 500_000)[0] == b"x" * 500_000 + b"y" * 500_000


def test_chunks_and_lines_come_from_both_streams(box: Container) -> None:
    script = "echo a; echo b >&2; head -c 300000 /dev/zero | tr '\\0' x >&2; echo; printf c"
    with box.popen(sh(script), stdout=PIPE, stderr=PIPE) as p:
        pieces = list(p.chunks())
        assert p.wait(10).ok
    assert b"".join(d for n, d in pieces if n == "stdout") == b"a\n\nc"
    assert b"".join(d for n, d in pieces if n == "stderr") == b"b\n" + b"x" * 300_000
    with box.popen(sh(script), stdout=PIPE, stderr=PIPE, text=True) as p:
        rows = list(p.lines(limit=100_000))
    assert [line for name, line in rows if name == "stdout"] == ["a\n", "\n", "c"]
    assert [len(line) for name, line in rows if name == "stderr"][:3] == [2, 100_000, 100_000]
    assert sum(len(line) for name, line in rows if name == "stderr") == 300_002


def test_a_conversation_by_lines(box: Container) -> None:
    with box.popen(sh("while read x; do echo got $x; done; echo bye"), stdin=PIPE, stdout=PIPE, text=True) as p:
        assert p.stdin is not None
        answers = p.lines()
        for number in range(50):
            p.stdin.write(f"{number}\n")
            p.stdin.flush()
            assert next(answers) == ("stdout", f"got {number}\n")
        p.stdin.close()
        assert list(answers) == [("stdout", "bye\n")]


def test_a_program_that_does_not_read_is_no_error_of_communicate(box: Container) -> None:
    with box.popen(["true"], stdin=PIPE, stdout=PIPE) as p:
        assert p.communicate(bytes(5_000_000)) == (b"", None)
    with box.popen(sh("exec <&-; echo closed; read x <&1"), stdin=PIPE, stdout=PIPE, stderr=PIPE) as p:
        assert p.stdin is not None
        assert p.stdout is not None
        assert p.stdout.readline() == b"closed\n"
        with pytest.raises(BrokenPipeError):
            p.stdin.write(bytes(5_000_000))


def test_streams_of_a_process_close_all_that_they_have(box: Container) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with box.popen(["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as p:
            assert p.stdin is not None
            p.stdin.write(b"x" * 200_000)
        p = box.popen(["cat"], stdin=PIPE, stdout=PIPE)
        p.close()
        p.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
