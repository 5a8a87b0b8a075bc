"""Docker's strings for mounts: what each says, what is refused, and that they round-trip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import Container
from sandbox.errors import UsageError
from sandbox.fs import Bind, Mount, Tmpfs, Volume, parse_mount, parse_tmpfs, parse_volume, to_mount
from sandbox.fs.strings import csv_fields

pytestmark = pytest.mark.unprivileged
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
PART = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=8).filter(lambda part: part not in (".", ".."))
PATH = st.lists(PART, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
NAME = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,20}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/src:/dst", Bind("/src", "/dst")),
        ("/src:/dst:ro", Bind("/src", "/dst", read_only=True)),
        ("/src:/dst:rw,rprivate", Bind("/src", "/dst")),
        ("./src:/dst:private,ro", Bind("./src", "/dst", read_only=True)),
        ("..:/dst", Bind("..", "/dst")),
        ("/src:/dst:cached,ro", Bind("/src", "/dst", read_only=True)),
        ("TYPE=Bind,SRC=/A,Target=/b,Consistency=delegated", Bind("/A", "/b")),
        ("a/b:/dst", Bind("a/b", "/dst")),
        ("name:/dst", Volume("name", "/dst")),
        ("name:/dst:ro,nocopy", Volume("name", "/dst", read_only=True, nocopy=True)),
        ("/dst", Volume(None, "/dst")),
        ("type=bind,source=/a,target=/b", Bind("/a", "/b")),
        ("source=/a,type=bind,dst=/b,readonly,bind-recursive=disabled", Bind("/a", "/b", read_only=True, recursive=False)),
        ("type=bind,src=/a,dst=/b,bind-nonrecursive=true", Bind("/a", "/b", recursive=False)),
        ("type=bind,src=/a,dst=/b,ro=1,bind-propagation=rprivate,bind-recursive=readonly", Bind("/a", "/b", read_only=True)),
        ('type=bind,"source=/a,b",target=/c', Bind("/a,b", "/c")),
        ('type=bind,"source=/a ""b""",target=/c', Bind('/a "b"', "/c")),
        ("src=name,dst=/b", Volume("name", "/b")),
        ("type=volume,dst=/b", Volume(None, "/b")),
        ("type=volume,source=,dst=/b", Volume(None, "/b")),
        ("type=volume,source=n,target=/b,volume-subpath=x/y,volume-nocopy", Volume("n", "/b", subpath="x/y", nocopy=True)),
        ("type=volume,source=n,target=/b,volume-nocopy=false,readonly=true", Volume("n", "/b", read_only=True)),
        ("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=0700", Tmpfs("/t", size="1M", mode=0o700)),
        ('"type=tmpfs",dst=/t', Tmpfs("/t")),
    ],
)  # fmt: skip
def test_what_each_says(text: str, mount: Mount) -> None:
    assert to_mount(text) == mount
    assert (parse_mount if "=" in text else parse_volume)(text) == mount


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "absolute|relative"), ("name", "relative"), (":", "not SRC:DST"), ("a:", "not SRC:DST"), (":/b", "not SRC:DST"), ("a:/b:c:d", "not SRC:DST"),
        ("a:/b:", "not SRC:DST"), ("/dst:ro", "no place"), ("name:ro", "no place"), ("a:/b:z", "SELinux"), ("/a:/b:ro,Z", "SELinux"),
        ("/a:/b:shared", "leave it out"), ("/a:/b:rslave", "leave it out"), ("/a:/b:nocopy", "for volumes"), ("a:/b:cache", "unknown"), ("a:/b:cached,delegated", "twice"),
        ("a:/b:ro,rw", "twice"), ("a:/b:ro,ro", "twice"), ("a:/b:ro,", "unknown"), ("a:b", "relative"), ("a b:/c", "not a name"), ("a:/proc/x", "kernel"),
        ("a:/", "made by us"), ("a:/b/../c", r"\.\."),
    ],
)  # fmt: skip
def test_what_is_no_volume(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_volume(text)
    with pytest.raises(UsageError, match=words):
        to_mount(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("type=npipe,target=/x", "not offered"), ("type=bind,target=/x", "source= is missing"), ("type=bind,source=,target=/x", "source= is missing"),
        ("type=volume", "target= is missing"), ("type=bind,src=/a,dst=/b,bind-propagation=rshared", "leave it out"),
        ("type=bind,src=/a,dst=/b,bind-propagation=odd", "always private"), ("type=bind,src=/a,dst=/b,bind-recursive=writable", "read-only holds"),
        ("type=bind,src=/a,dst=/b,bind-recursive=readonly", "give both"), ("type=bind,src=/a,dst=/b,volume-nocopy", "not an option of type=bind"),
        ("type=volume,src=a,dst=/b,volume-opt=o=size=1m", "size=SIZE"), ("type=volume,src=a,dst=/b,volume-driver=nfs", "volume create"),
        ("type=volume,src=a,dst=/b,volume-label=x", "volume create"), ("type=volume,src=/a,dst=/b", "not a name"), ("type=volume,dst=/b,volume-subpath=x", "anonymous"),
        ("type=volume,src=a,dst=/b,volume-subpath=../x", r"\.\."), ("type=volume,src=a,dst=/b,volume-subpath=/x", "absolute"),
        ("type=tmpfs,source=/a,target=/b", "not an option"), ("type=tmpfs,target=/b,tmpfs-mode=9", "octal"), ("type=tmpfs,target=/b,tmpfs-size=much", "size"),
        ("type=bind,src=/a,src=/c,dst=/b", "twice"), ("type=bind,src=/a,source=/a,dst=/b", "twice"), ("type=bind,src=/a,dst=/b,ro=maybe", "neither"),
        ("type=bind,src=/a,,dst=/b", "not KEY=VALUE"), ('type=bind,"src=/a,dst=/b', "double quote"), ('type=bind,src="/a",dst=/b', "double quotes"),
        ('type=bind,"src=/a"x,dst=/b', "double quote"), ("type=bind,src=/a,dst=/b,consistency=strict", "none of them"), ("", "not KEY=VALUE"), ("type", "not KEY=VALUE"),
    ],
)  # fmt: skip
def test_what_is_no_mount(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_mount(text)


def test_tmpfs() -> None:
    assert parse_tmpfs("/x:size=1M,mode=755,nr_inodes=100,rw,nosuid") == Tmpfs("/x", size="1M", mode=0o755, inodes=100)
    for text in ("", "x", "/x:1M", "/x:exec", "/x:size=", "/x:mode=8", "/x:mode=\u0663", "/x:nr_inodes=\u0663", "/x:nr_inodes=99999999999"):
        with pytest.raises(UsageError):
            parse_tmpfs(text)


@given(st.lists(TEXT, min_size=1, max_size=5), st.booleans())
def test_fields_survive_quoting(fields: list[str], always: bool) -> None:
    quoted = ['"' + field.replace('"', '""') + '"' if always or "," in field or '"' in field else field for field in fields]
    assert list(csv_fields(",".join(quoted))) == fields


@given(TEXT | st.lists(st.sampled_from('a/:,="') | st.sampled_from(["type=", "bind", "src=", "dst=", "/x", "ro", "volume-"]), max_size=9).map("".join))
def test_any_text_is_a_mount_or_a_usage_error(text: str) -> None:
    for parse in (to_mount, parse_mount, parse_volume, parse_tmpfs):
        try:
            assert isinstance(parse(text), (Bind, Tmpfs, Volume))
        except UsageError as error:
            assert str(error)


TARGET = PATH.filter(lambda path: path.split("/")[1] not in ("proc", "sys", "dev"))


def said(*words: str) -> str:
    return ",".join('"' + word.replace('"', '""') + '"' for word in words)


@given(PATH, TARGET, st.booleans())
def test_binds_round_trip(source: str, target: str, read_only: bool) -> None:
    text = said("type=bind", f"source={source}", f"target={target}", f"readonly={str(read_only).lower()}")
    assert to_mount(text) == Bind(source, target, read_only=read_only)


@given(NAME, TARGET, st.lists(PART, max_size=2).map("/".join), st.booleans())
def test_volumes_round_trip(name: str, target: str, subpath: str, nocopy: bool) -> None:
    text = said("type=volume", f"source={name}", f"target={target}", f"volume-subpath={subpath}", f"volume-nocopy={int(nocopy)}")
    assert to_mount(text) == Volume(name, target, subpath=subpath, nocopy=nocopy)


def test_containers_take_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mounts = Container(mounts=["./a:/src:ro", "type=tmpfs,target=/t", Volume("v", "/v")]).spec.filesystem.mounts
    assert mounts == (Bind(f"{tmp_path}/./a", "/src", read_only=True), Tmpfs("/t"), Volume("v", "/v"))
    monkeypatch.chdir("/")
    (mount,) = Container(mounts=["./a:/src:ro"]).spec.filesystem.mounts
    assert mount == Bind("/./a", "/src", read_only=True), "not remembered from another directory"
    for wrong in ("a:/b", ["a:b"], [7]):
        with pytest.raises(UsageError, match="mounts"):
            Container(mounts=wrong)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []
