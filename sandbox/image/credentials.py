"""Where passwords of registries are kept: Docker's file and its helper programs, so that who has logged in with one has with the other.

``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json``: `credHelpers` names a program for a registry, `credsStore` one for all
others, and `auths` has the rest, in base64, which hides nothing. What else stands in the file is kept. A program
``docker-credential-NAME`` is run without a shell, and gets a minute: it may ask its user to unlock something.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import json
import os
import re
import stat
from collections.abc import Generator
from typing import Any, Final, cast

from attrs import field, frozen

from sandbox._types import StrPath
from sandbox.errors import ImageError, UsageError
from sandbox.image.reference import DOCKER_HUB

__all__ = ["CredentialStore", "Credentials"]

_HUB_KEY: Final = "https://index.docker.io/v1/"  # what Docker calls its own registry in this file, since its first version
_MAX_FILE: Final = 4 << 20
_MAX_ANSWER: Final = 1 << 20
_HELPER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", re.ASCII)
_TOKEN_USER: Final = "<token>"  # noqa: S105 - docker-credential-helpers: the secret is an identity token
_NOT_FOUND: Final = "credentials not found"


@frozen
class Credentials:
    """A user and a password, or (with *identity_token*) what an authorization service gave instead of the password."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def __attrs_post_init__(self) -> None:
        if ":" in self.username or not is_line(self.username) or not is_line(self.password) or not is_line(self.identity_token):
            raise UsageError("credentials: a user has no ':', and neither user nor password has line breaks or other control characters")

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def is_line(text: str) -> bool:
    """Whether it can stand in one line of a header."""
    return isinstance(text, str) and not any(ord(character) < 32 or ord(character) == 127 for character in text)


@frozen
class CredentialStore:
    """Docker's file of credentials at *path* (None: where Docker has it), and the programs that it names."""

    path: StrPath | None = None
    helper_timeout: float = 60.0

    @property
    def file(self) -> str:
        """The path of the file, whether it is there or not."""
        if self.path is not None:
            return os.fspath(self.path)
        return os.path.join(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"), "config.json")

    def get(self, registry: str) -> Credentials | None:
        """What there is for *registry* (``docker.io``, ``localhost:5000``); None if nobody has logged in.

        Raises: ImageError: the file or a helper is no good.
        """
        document = self._read()
        helper = _helper_for(document, registry)
        if helper is not None:
            found = self._ask_helper(helper, registry)
            if found is not None or registry in _object(document, "credHelpers"):
                return found
        auths = _object(document, "auths")
        for key in _keys(registry):
            entry = auths.get(key)
            if isinstance(entry, dict) and entry:
                found = _from_entry(cast("dict[str, Any]", entry), f"{self.file}: auths: {key}")
                return found if found != Credentials() else None
        return None

    def put(self, registry: str, credentials: Credentials) -> str:
        """Keep *credentials* for *registry*; say where: the path of the file, or the name of a helper.

        Raises: ImageError.
        """
        with self._changed() as document:
            helper = _helper_for(document, registry)
            key = _keys(registry)[0]
            auths = _object(document, "auths")
            document["auths"] = auths
            if helper is None:
                auths[key] = _to_entry(credentials)
                return self.file
            user, secret = (_TOKEN_USER, credentials.identity_token) if credentials.identity_token else (credentials.username, credentials.password)
            self._run(helper, "store", json.dumps({"ServerURL": key, "Username": user, "Secret": secret}))
            auths[key] = {}  # as Docker does: it lists there for whom the helper has something
            return f"docker-credential-{helper}"

    def erase(self, registry: str) -> bool:
        """Forget what there is for *registry*; False if there was nothing. Raises: ImageError."""
        with self._changed() as document:
            auths = _object(document, "auths")
            found = [auths.pop(key) for key in _keys(registry) if key in auths]
            helper = _helper_for(document, registry)
            if helper is not None and self._ask_helper(helper, registry) is not None:
                self._run(helper, "erase", _keys(registry)[0])
                return True
            return bool(found)

    # ---- The file ----

    def _read(self) -> dict[str, Any]:
        try:
            with open(self.file, "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ImageError(f"{self.file}: not a regular file")
                data = file.read(_MAX_FILE + 1)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise ImageError(f"{self.file}: {error.strerror}") from None
        return _decode(data, self.file)

    @contextlib.contextmanager
    def _changed(self) -> Generator[dict[str, Any]]:
        """The document, to be changed; written if that goes well. One of us at a time, by a lock on the directory."""
        target = os.path.realpath(self.file)  # a link to where somebody keeps such files stays one
        directory = os.path.dirname(target)
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ImageError(f"{directory}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self._read()
            document = cast("dict[str, Any]", json.loads(json.dumps(before)))
            yield document
            if document != before:
                _replace(target, json.dumps(document, indent="\t", ensure_ascii=False).encode() + b"\n")
        finally:
            os.close(lock)

    # ---- The helpers ----

    def _ask_helper(self, helper: str, registry: str) -> Credentials | None:
        answer = self._run(helper, "get", _keys(registry)[0])
        if answer is None:
            return None
        found = _decode(answer, f"docker-credential-{helper}")
        user, secret = found.get("Username", ""), found.get("Secret", "")
        if not isinstance(user, str) or not isinstance(secret, str):
            raise ImageError(f"docker-credential-{helper}: no user and secret in its answer")
        return _checked("" if user == _TOKEN_USER else user, secret, is_token=user == _TOKEN_USER, what=f"docker-credential-{helper}")

    def _run(self, helper: str, action: str, text: str) -> bytes | None:
        """What the helper answers; None where it says that it has nothing. Raises: ImageError: it is not there, fails, or takes too long."""
        import shutil
        import subprocess

        name = f"docker-credential-{helper}"
        program = shutil.which(name)
        if program is None or not os.path.isabs(program):
            raise ImageError(f"{self.file} names {name}, which is not in PATH; install it, or take credsStore and credHelpers out of the file")
        try:
            # Its standard error stays ours: what asks for a passphrase may speak there.
            done = subprocess.run([program, action], input=text.encode(), stdout=subprocess.PIPE, timeout=self.helper_timeout, check=False)
        except subprocess.TimeoutExpired:
            raise ImageError(f"{name} {action}: no answer in {self.helper_timeout:g} s") from None
        except OSError as error:
            raise ImageError(f"{program}: {error.strerror}") from None
        if done.returncode == 0 and len(done.stdout) <= _MAX_ANSWER:
            return done.stdout
        said = done.stdout[:200].decode("utf-8", "replace").strip()
        if action == "get" and said.startswith(_NOT_FOUND):
            return None
        raise ImageError(f"{name} {action}: exit code {done.returncode}" + (f": {said!r}" if action != "get" else ""))


def _helper_for(document: dict[str, Any], registry: str) -> str | None:
    helpers = _object(document, "credHelpers")
    name = next((helpers[key] for key in _keys(registry) if key in helpers), None) or document.get("credsStore")
    if not name:
        return None
    if not isinstance(name, str) or not _HELPER.fullmatch(name):
        raise ImageError(f"config.json: {name!r} is not the name of a credential helper")
    return name


def _keys(registry: str) -> list[str]:
    """The names under which *registry* may stand, the one that we write first."""
    if registry == DOCKER_HUB:
        return [_HUB_KEY, "index.docker.io", "docker.io", "https://index.docker.io", "registry-1.docker.io"]
    return [registry, f"https://{registry}", f"http://{registry}", f"https://{registry}/", f"https://{registry}/v1/", f"https://{registry}/v2/"]


def _object(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: object = document.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ImageError(f"config.json: {name} is not an object")
    return cast("dict[str, Any]", found)


def _decode(data: bytes, what: str) -> dict[str, Any]:
    if len(data) > _MAX_FILE:
        raise ImageError(f"{what}: more than {_MAX_FILE} bytes")
    if not data.strip():
        return {}
    try:
        found = json.loads(data.decode())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ImageError(f"{what}: not a JSON object")
    return cast("dict[str, Any]", found)


def _from_entry(entry: dict[str, Any], what: str) -> Credentials:
    token = entry.get("identitytoken")
    user, password = entry.get("username", ""), entry.get("password", "")
    auth = entry.get("auth")
    if isinstance(auth, str) and auth:
        try:
            user, colon, password = base64.b64decode(auth, validate=True).decode().rstrip("\0").partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            raise ImageError(f"{what}: auth is not user:password in base64")
    if not isinstance(user, str) or not isinstance(password, str):
        raise ImageError(f"{what}: user and password are not texts")
    if isinstance(token, str) and token:
        return _checked(user, token, is_token=True, what=what)
    return _checked(user, password, is_token=False, what=what)


def _checked(user: str, secret: str, *, is_token: bool, what: str) -> Credentials:
    try:
        return Credentials(user, "" if is_token else secret, secret if is_token else "")
    except UsageError as error:
        raise ImageError(f"{what}: {error}") from None


def _to_entry(credentials: Credentials) -> dict[str, str]:
    auth = base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
    return {"auth": auth} | ({"identitytoken": credentials.identity_token} if credentials.identity_token else {})


def _replace(path: str, data: bytes) -> None:
    """Write a file of mode 0600 in one go; who reads meanwhile sees the old one or the new one, never a part. Its owner stays."""
    import tempfile

    try:
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), prefix=".config-", delete=False) as file:  # mode 0600 from birth
            try:
                file.write(data)
                file.flush()
                _keep_owner(file.fileno(), path)
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):  # an interrupt came when it had its name already
                    os.unlink(file.name)
                raise
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None


def _keep_owner(fd: int, path: str) -> None:
    """Root in somebody's home must not take the file away from them."""
    with contextlib.suppress(FileNotFoundError):
        before = os.stat(path)
        if os.geteuid() == 0 and (before.st_uid, before.st_gid) != (0, 0):
            os.fchown(fd, before.st_uid, before.st_gid)
