"""Docker's file of credentials, and its helper programs."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.errors import ImageError, UsageError
from sandbox.image import Credentials
from sandbox.image.credentials import CredentialStore

pytestmark = pytest.mark.unprivileged
HELPER = """\
#!/bin/sh
cd "${0%/*}" || exit 9
read -r line
echo "$1 $line" >>log
case "$1" in
get) if [ -e "answer" ]; then cat answer; else echo "credentials not found in native keychain"; exit 1; fi ;;
store) printf '%s' "$line" >answer ;;
erase) rm -f answer ;;
esac
"""


@pytest.fixture
def store(tmp_path: Path) -> CredentialStore:
    return CredentialStore(tmp_path / "docker" / "config.json")


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in PATH with `docker-credential-fake`."""
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "docker-credential-fake").write_text(HELPER)
    (directory / "docker-credential-fake").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def write(store: CredentialStore, document: Any) -> Path:
    path = Path(store.file)
    path.parent.mkdir(exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_the_file_is_where_docker_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", "/some/where")
    assert CredentialStore().file == "/some/where/config.json"
    monkeypatch.delenv("DOCKER_CONFIG")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert CredentialStore().file == "/home/somebody/.docker/config.json"


def test_without_a_file_there_is_nobody(store: CredentialStore) -> None:
    assert store.get("ghcr.io") is None
    assert not store.erase("ghcr.io")


def test_docker_hub_stands_under_its_first_name(store: CredentialStore) -> None:
    write(store, {"auths": {"https://index.docker.io/v1/": {"auth": in_base64("me:pass:word")}}})
    assert store.get("docker.io") == Credentials("me", "pass:word")
    assert store.get("ghcr.io") is None


@pytest.mark.parametrize("key", ["h:5000", "https://h:5000", "http://h:5000", "https://h:5000/v2/"])
def test_a_registry_is_found_under_the_names_it_may_have(store: CredentialStore, key: str) -> None:
    write(store, {"auths": {key: {"username": "u", "password": "p"}}})
    assert store.get("h:5000") == Credentials("u", "p")
    assert store.get("h") is None


def test_an_identity_token_goes_before_the_password(store: CredentialStore) -> None:
    write(store, {"auths": {"h.io": {"auth": in_base64("u:"), "identitytoken": "T"}}})
    assert store.get("h.io") == Credentials("u", identity_token="T")


def test_what_is_kept_is_read_again_and_closed_to_others(store: CredentialStore) -> None:
    assert store.put("h.io", Credentials("user", "pass")) == store.file
    assert store.get("h.io") == Credentials("user", "pass")
    assert stat.S_IMODE(os.stat(store.file).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(store.file)).st_mode) == 0o700
    assert store.erase("h.io")
    assert store.get("h.io") is None


def test_what_else_stands_in_the_file_stays(store: CredentialStore) -> None:
    foreign = {"HttpHeaders": {"X": "é"}, "auths": {"other.io": {"auth": "eDp5", "email": "a@b"}}, "plugins": {"a": {"b": "c"}}, "detachKeys": "ctrl-q"}
    path = write(store, foreign)
    path.chmod(0o644)
    store.put("h.io", Credentials("u", "p"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.erase("h.io")
    assert json.loads(path.read_text()) == foreign
    assert list(path.parent.iterdir()) == [path]


def test_a_link_to_the_file_stays_a_link(store: CredentialStore, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.json"
    real.write_text("{}")
    Path(store.file).parent.mkdir()
    Path(store.file).symlink_to(real)
    store.put("h.io", Credentials("u", "p"))
    assert Path(store.file).is_symlink()
    assert "h.io" in real.read_text()


def test_writers_at_the_same_time_lose_nothing(store: CredentialStore) -> None:
    threads = [threading.Thread(target=store.put, args=(f"h{number}.io", Credentials("u", "p"))) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads(Path(store.file).read_text())["auths"]) == 20


@pytest.mark.parametrize(
    "document",
    ["[]", "x", "{", '"x"', {"auths": []}, {"auths": {"h.io": {"auth": "!!"}}}, {"auths": {"h.io": {"auth": in_base64("no colon")}}},
     {"auths": {"h.io": {"auth": in_base64("a:b\r\nX-Header: 1")}}}, {"auths": {"h.io": {"username": 1, "password": "x"}}},
     {"credsStore": "../../bin/sh"}, {"credsStore": "x/y"}, {"credsStore": "-x"}, {"credHelpers": {"h.io": "a;b"}}, {"credHelpers": {"h.io": 3}},
     {"credsStore": "there-is-no-such-helper"}],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_an_error(store: CredentialStore, document: Any) -> None:
    write(store, document)
    with pytest.raises(ImageError):
        store.get("h.io")


@given(st.binary(max_size=100))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_bytes_in_the_file_are_read_or_refused(store: CredentialStore, data: bytes) -> None:
    Path(store.file).parent.mkdir(exist_ok=True)
    Path(store.file).write_bytes(data)
    with contextlib.suppress(ImageError):
        assert store.get("h.io") is None


def test_a_file_that_is_none_is_refused(store: CredentialStore) -> None:
    Path(store.file).mkdir(parents=True)
    with pytest.raises(ImageError):
        store.get("h.io")


def test_a_helper_is_asked_and_told(store: CredentialStore, helper: Path) -> None:
    write(store, {"credsStore": "fake"})
    assert store.get("h.io") is None
    assert store.put("h.io", Credentials("user", "secret")) == "docker-credential-fake"
    assert store.get("h.io") == Credentials("user", "secret")
    assert "secret" not in Path(store.file).read_text()
    assert json.loads(Path(store.file).read_text())["auths"] == {"h.io": {}}
    assert store.erase("h.io")
    assert store.get("h.io") is None
    asked = [line.split()[0] for line in (helper / "log").read_text().splitlines()]
    assert asked == ["get", "store", "get", "get", "erase", "get"]


def test_a_helper_keeps_identity_tokens(store: CredentialStore, helper: Path) -> None:
    write(store, {"credHelpers": {"h.io": "fake"}})
    store.put("h.io", Credentials("user", identity_token="T"))
    assert json.loads((helper / "answer").read_text())["Username"] == "<token>"
    assert store.get("h.io") == Credentials(identity_token="T")
    assert store.get("other.io") is None


def test_where_a_helper_has_nothing_the_file_may(store: CredentialStore, helper: Path) -> None:
    write(store, {"credsStore": "fake", "auths": {"h.io": {"auth": in_base64("u:p")}}})
    assert store.get("h.io") == Credentials("u", "p")


def test_a_helper_that_fails_or_hangs_is_an_error(store: CredentialStore, helper: Path) -> None:
    program = helper / "docker-credential-fake"
    write(store, {"credsStore": "fake"})
    program.write_text("#!/bin/sh\necho secret words; exit 3\n")
    with pytest.raises(ImageError, match="exit code 3") as caught:
        store.get("h.io")
    assert "secret" not in str(caught.value)
    program.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    with pytest.raises(ImageError, match="no answer in"):
        CredentialStore(store.path, helper_timeout=0.2).get("h.io")
    program.write_text("#!/bin/sh\necho '[]'\n")
    with pytest.raises(ImageError, match="not a JSON object"):
        store.get("h.io")


def test_the_name_of_a_registry_reaches_no_shell(store: CredentialStore, helper: Path) -> None:
    write(store, {"credsStore": "fake"})
    store.get("h.io;touch${IFS}owned")
    assert (helper / "log").read_text() == "get h.io;touch${IFS}owned\n"


@pytest.mark.parametrize(("user", "password"), [("a:b", "c"), ("a\n", "c"), ("a", "b\r\nX: y"), ("a\0", "b")])
def test_credentials_that_would_break_a_header_are_refused(user: str, password: str) -> None:
    with pytest.raises(UsageError):
        Credentials(user, password)


def test_credentials_are_not_shown() -> None:
    assert "hunter2" not in repr(Credentials("u", "hunter2", "hunter2"))
