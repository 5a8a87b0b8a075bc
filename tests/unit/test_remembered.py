"""What a start remembers of the one before it holds only as long as what it follows from."""

from __future__ import annotations

from functools import partial

from sandbox import Container, _host
from sandbox._ids import shape
from sandbox._sys import features
from sandbox._users import _resolve_in
from sandbox.cg import detect


def test_a_spec_is_checked_anew_when_a_probe_answers_otherwise() -> None:
    spec = Container().spec
    _host.note_that_it_does(spec)
    assert _host.is_known_to_do(spec)
    with features.pretend(openat2=False):
        assert not _host.is_known_to_do(spec)
    assert not _host.is_known_to_do(spec)  # whatever else has changed meanwhile
    _host.note_that_it_does(spec)
    features.PROBES["openat2"].forget()
    assert not _host.is_known_to_do(spec)


def test_a_spec_is_checked_anew_when_the_control_groups_are_looked_at_anew() -> None:
    spec = Container().spec
    _host.note_that_it_does(spec)
    detect(refresh=True)
    assert not _host.is_known_to_do(spec)


def test_a_user_is_looked_up_anew_when_the_file_says_something_else() -> None:
    ids = shape(privileged=True, uid=0)
    homes = [_resolve_in("0:0", f"root:x:0:0::{home}:/bin/sh\n".encode(), lambda: b"", ids).home for home in ("/root", "/home", "/root")]
    assert homes == ["/root", "/home", "/root"]


def test_an_answer_that_took_the_group_file_is_not_remembered() -> None:
    ids = shape(privileged=True, uid=0)
    passwd = b"u:x:5:5::/home/u:/bin/sh\n"
    groups = [_resolve_in("u", passwd, partial(bytes, text), ids).groups for text in (b"g:x:7:u\n", b"g:x:8:u\n")]
    assert groups == [(5, 7), (5, 8)]
