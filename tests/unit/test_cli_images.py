"""``sandbox images`` and its kin: what they print and how they end, on a store of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sandbox.cli import main, tables
from sandbox.image import Config, History, Image, Platform, Settings, Store
from tests.images import layers, make, put

pytestmark = pytest.mark.unprivileged

Say = Callable[..., tuple[int, str, str]]
CREATED = datetime.fromtimestamp(time.time() - 3 * 86400, UTC).isoformat()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SANDBOX_IMAGES", str(tmp_path / "images"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SANDBOX_VOLUMES", str(tmp_path / "volumes"))
    return Store()


@pytest.fixture
def say(store: Store, capsys: pytest.CaptureFixture[str]) -> Say:
    def said(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return said


def dated(store: Store, name: str) -> Image:
    """An image with a date, a history and labels."""
    parts = layers(name, 2)
    steps = (History("ADD rootfs", CREATED), History("ENV A=b", CREATED, empty_layer=True), History("RUN " + "x" * 60, CREATED, "a comment"))
    config = Config(Platform(), tuple(part.diff_id for part in parts), Settings(cmd=("sh",), labels=(("team", "red"),)), steps, CREATED, "me")
    with store.lease() as lease:
        return put(store, lease, parts, [name], config=config)


def test_without_a_store_there_is_nothing_to_list_and_none_is_made(store: Store, say: Say) -> None:
    assert say("images") == (0, "REPOSITORY   TAG   IMAGE ID   CREATED   SIZE\n", "")
    assert say("image", "verify")[0] == 0
    assert say("df")[0] == 0
    assert not Path(store.path).exists()


def test_images_are_listed_by_their_names(store: Store, say: Say) -> None:
    image = dated(store, "localhost:5000/team/app:1")
    nameless = make(store, "old", "1")
    make(store, "old", "2")
    code, out, err = say("images")
    rows = [line.split("   ") for line in out.splitlines()]
    assert (code, err) == (0, "")
    first = next(line for line in out.splitlines() if "team" in line).split()
    assert first[:6] == ["localhost:5000/team/app", "1", image.id.short, "3", "days", "ago"]
    assert first[6].endswith("kB")
    assert any(row[0] == "<none>" and nameless.id.short in "".join(row) for row in rows)
    assert say("images", "-q")[1].split() == say("image", "ls", "-q")[1].split()
    assert str(image.id) in say("images", "-q", "--no-trunc")[1].split()
    assert str(image.manifest) in say("images", "--digests")[1]


def test_a_json_line_for_each_row(store: Store, say: Say) -> None:
    image = dated(store, "app:1")
    store.tag("app:1", "app:2")
    rows = [json.loads(line) for line in say("images", "--format", "json")[1].splitlines()]
    assert [(row["Repository"], row["Tag"], row["ID"]) for row in rows] == [("app", tag, image.id.short) for tag in ("1", "2")]
    assert rows[0]["CreatedSince"] == "3 days ago"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["app"], {"1", "2"}),
        (["app:2"], {"2"}),
        (["a*"], {"1", "2"}),
        (["--filter", "reference=docker.io/library/app:1"], {"1"}),
        (["--filter", "label=team=red"], {"1", "2"}),
        (["--filter", "label=team=blue"], set()),
        (["--filter", "dangling=true"], set()),
        (["--filter", "before=app:1"], {"latest"}),
        (["--filter", "since=other"], {"1", "2"}),
    ],
)
def test_filters(store: Store, say: Say, options: list[str], found: set[str]) -> None:
    dated(store, "app:1")
    store.tag("app:1", "app:2")
    make(store, "other")
    rows = [json.loads(line) for line in say("images", "--format", "json", *options)[1].splitlines()]
    assert {row["Tag"] for row in rows} == found


@pytest.mark.parametrize(
    "arguments",
    [
        ["images", "--filter", "x=y"],
        ["images", "--filter", "dangling=maybe"],
        ["images", "--format", "xml"],
        ["image"],
        ["image", "frobnicate"],
        ["rmi"],
        ["tag", "one"],
        ["image", "prune", "--filter", "since=x"],
    ],
)
def test_wrong_use_is_told(say: Say, arguments: list[str]) -> None:
    code, out, err = say(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("sandbox ")


def test_history_and_inspection(store: Store, say: Say) -> None:
    image = dated(store, "app:1")
    lines = say("history", "app:1")[1].splitlines()
    assert lines[0].split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert lines[1].startswith(image.id.short)
    assert "…" in lines[1]
    assert lines[1].endswith("a comment")
    assert " 0B" in lines[2]
    assert [json.loads(line)["CreatedBy"] for line in say("history", "--no-trunc", "--format", "json", "app:1")[1].splitlines()][-1] == "ADD rootfs"
    (found,) = json.loads(say("image", "inspect", "app:1")[1])
    assert (found["Id"], found["RepoTags"], found["Author"], found["Os"]) == (str(image.id), ["app:1"], "me", "linux")
    assert (found["Config"]["Cmd"], found["Config"]["Labels"]) == (["sh"], {"team": "red"})
    code, out, err = say("image", "inspect", "nothing", "app:1")
    assert (code, len(json.loads(out))) == (1, 1)
    assert "no image nothing" in err


def test_names_are_given_and_taken(store: Store, say: Say) -> None:
    image = dated(store, "app:1")
    assert say("tag", "app:1", "team/app:2") == (0, "", "")
    assert say("rmi", "app:1") == (0, "Untagged: app:1\n", "")
    code, out, err = say("rmi", "app:1", "team/app:2")
    assert (code, out) == (1, f"Untagged: team/app:2\nDeleted: {image.id}\n")
    assert "no image app:1" in err
    assert say("tag", "app:1", "x")[0] == 1
    assert say("tag", "app:1", "UPPER")[0] == 1


def test_what_is_in_use_wants_force(store: Store, say: Say) -> None:
    image = dated(store, "app:1")
    with store.use(image):
        code, _, err = say("rmi", "app:1")
        assert code == 1
        assert "a container uses it" in err
        assert say("rmi", "-f", "app:1")[0] == 0


def test_pruning_asks_first(store: Store, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    image = dated(store, "app:1")
    monkeypatch.setattr("sys.stdin", None)
    assert say("image", "prune", "--all")[0] == 0
    assert store.images() == [image]
    assert "deleted" not in say("image", "prune", "-f")[1]
    assert "deleted" not in say("image", "prune", "-a", "-f", "--filter", "until=24h")[1]
    out = say("image", "prune", "-a", "-f")[1]
    assert f"untagged: app:1\ndeleted: {image.id}\n" in out
    assert "Total reclaimed space: " in out
    assert store.images() == []


def test_what_is_wrong_is_printed(store: Store, say: Say) -> None:
    image = dated(store, "app:1")
    assert say("image", "verify") == (0, "everything is as it should be\n", "")
    Path(f"{image.layers[0]}/d/0").write_bytes(b"x")
    code, out, _ = say("image", "verify", "--format", "json")
    assert code == 1
    assert json.loads(out)["Kind"] == "layer"


def test_df_adds_up(store: Store, say: Say) -> None:
    image = dated(store, "app:1")
    with store.use(image):
        rows = {row["Type"]: row for row in map(json.loads, say("df", "--format", "json")[1].splitlines())}
    assert set(rows) == {"Images", "Local Volumes", "Build Cache"}
    assert (rows["Images"]["TotalCount"], rows["Images"]["Active"]) == ("1", "1")
    lines = say("df", "-v")[1].splitlines()
    assert lines[0].split()[-3:] == ["UNIQUE", "SIZE", "CONTAINERS"]
    assert lines[1].split()[-1] == "0"


def test_a_name_can_do_nothing_to_a_terminal(store: Store, say: Say) -> None:
    parts = layers("x", 1)
    with store.lease() as lease:
        put(store, lease, parts, ["x"], config=Config(Platform(), (parts[0].diff_id,), history=(History("\x1b[2Jevil"),)))
    assert "\x1b" not in say("history", "x")[1]
    assert "\x1b" not in say("rmi", "\x1b[2J")[2]


def test_the_store_of_a_relative_variable_is_refused(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_IMAGES", "here")
    assert say("images")[0] == 1


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0B"), (999, "999B"), (999.6, "1kB"), (1234, "1.23kB"), (117_000_000, "117MB"), (1 << 40, "1.1TB"), (10**18, "1e+03PB")]
)
def test_sizes(count: float, text: str) -> None:
    assert tables.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (61, "About a minute"), (200, "3 minutes"), (3700, "About an hour"),
        (7300, "2 hours"), (90_000, "25 hours"), (200_000, "2 days"), (2_000_000, "3 weeks"), (8_000_000, "3 months"), (100_000_000, "3 years"),
    ],
)  # fmt: skip
def test_ages(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


@pytest.mark.parametrize("text", ["", "yesterday", "0001-01-01T00:00:00Z", "9" * 50])
def test_a_date_that_is_none_is_none(text: str) -> None:
    assert isinstance(tables.ago(text), str)
    assert isinstance(tables.at(text), str)


@pytest.mark.parametrize("words", [["images"], ["volume", "ls"], ["df"], ["--help"]])
def test_output_that_cannot_be_written_is_told_in_one_line(store: Store, words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "sandbox", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.endswith("No space left on device\n")
