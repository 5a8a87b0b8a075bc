"""What ``commit --change`` makes of an image's settings."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import UsageError
from sandbox.image import Settings
from sandbox.image.changes import apply_changes

BASE = Settings(entrypoint=("/old",), cmd=("arg",), env=("A=1", "B=2"), working_dir="/srv", labels=(("l", "1"),), exposed_ports=("80/tcp",))


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ('CMD ["nginx", "-g", "daemon off;"]', "cmd", ("nginx", "-g", "daemon off;")),
        ("cmd echo $HOME", "cmd", ("/bin/sh", "-c", "echo $HOME")),
        ("CMD [not json", "cmd", ("/bin/sh", "-c", "[not json")),
        ("CMD [1]", "cmd", ("/bin/sh", "-c", "[1]")),
        ("CMD []", "cmd", ()),
        ('ENTRYPOINT ["/new"]', "entrypoint", ("/new",)),
        ("ENV B=3 C='a b'", "env", ("A=1", "B=3", "C=a b")),
        ("ENV C all of it", "env", ("A=1", "B=2", "C=all of it")),
        ('LABEL l=2 m="x y"', "labels", (("l", "2"), ("m", "x y"))),
        ("EXPOSE 80 53/udp 8000-8001", "exposed_ports", ("80/tcp", "53/udp", "8000/tcp", "8001/tcp")),
        ('VOLUME ["/a", "/b c"]', "volumes", ("/a", "/b c")),
        ("VOLUME /a /b", "volumes", ("/a", "/b")),
        ("WORKDIR sub", "working_dir", "/srv/sub"),
        ("WORKDIR /else/../where", "working_dir", "/where"),
        ("USER app:www", "user", "app:www"),
        ("STOPSIGNAL SIGRTMIN+3", "stop_signal", "SIGRTMIN+3"),
        ("STOPSIGNAL RTMAX-30", "stop_signal", "RTMAX-30"),
        ("STOPSIGNAL SIGQUIT", "stop_signal", "SIGQUIT"),
        ("STOPSIGNAL 64", "stop_signal", "64"),
        ("ONBUILD RUN make", "on_build", ("RUN make",)),
        ('SHELL ["/bin/bash", "-c"]', "shell", ("/bin/bash", "-c")),
    ],
)
def test_each_instruction_changes_what_it_says(change, field, value):
    assert getattr(apply_changes(BASE, [change]), field) == value


def test_an_entrypoint_takes_an_older_command_away_but_not_one_that_comes_with_it():
    assert apply_changes(BASE, ['ENTRYPOINT ["/new"]']).cmd is None
    assert apply_changes(BASE, ['ENTRYPOINT ["/new"]', 'CMD ["x"]']).cmd == ("x",)
    assert apply_changes(BASE, ['CMD ["x"]', 'ENTRYPOINT ["/new"]']).cmd == ("x",)
    assert apply_changes(BASE, ['SHELL ["/bin/bash", "-c"]', "CMD true"]).cmd == ("/bin/bash", "-c", "true")
    assert apply_changes(BASE, []) == BASE


@pytest.mark.parametrize(
    "change",
    ["", "RUN make", "FROM x", "CMD", "ENV", "ENV =1", "ENV A", "ENV A=1 B", "ENV A='1", "EXPOSE x", "EXPOSE 0", "EXPOSE 70000", "EXPOSE 2-1",
     "VOLUME data", "STOPSIGNAL nothing", "STOPSIGNAL FOO", "STOPSIGNAL SIGRTMIN+31", "STOPSIGNAL 0", "STOPSIGNAL 65", "SHELL bash", "SHELL []", "ONBUILD FROM x", "CMD a\nRUN b", "USER \0", 7],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(change):
    with pytest.raises(UsageError, match="changes"):
        apply_changes(BASE, [change])


def test_one_text_is_no_list():
    with pytest.raises(UsageError, match="give a list"):
        apply_changes(BASE, "CMD x")


@given(st.text(max_size=60))
def test_whatever_is_said_gives_settings_or_is_refused(text):
    for word in ("CMD", "ENV", "LABEL", "EXPOSE", "VOLUME", "WORKDIR", "USER", "STOPSIGNAL", "SHELL", "ONBUILD"):
        with contextlib.suppress(UsageError):
            assert isinstance(apply_changes(BASE, [f"{word} {text}"]), Settings)
