"""One registry, in the words of the OCI distribution specification, which are those of Docker's registry protocol, version 2.

What is fetched is checked where it is kept: here only sizes are bounded. Requests that fail in a way that may pass (no connection, a broken
one, 408, 429, 5xx) are repeated with longer and longer pauses, or after what Retry-After says.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self, cast

from attrs import define, field, frozen

from sandbox.errors import ImageError, RegistryError
from sandbox.image._access import Access
from sandbox.image._auth import Authenticator, Scope
from sandbox.image._headers import Origin, origin_of, parse_content_range, parse_next, parse_retry_after, resolve
from sandbox.image._http import Body, BrokenTransferError, Patience, Response, Transport, Trust, need_urllib3
from sandbox.image.digest import Digest
from sandbox.image.documents import INDEXES, MANIFESTS, MAX_DOCUMENT
from sandbox.image.reference import DOCKER_HUB

__all__ = ["Document", "Registry"]

MAX_TAGS: Final = 100_000
_MAX_PAGES: Final = 1_000
_MAX_WORDS: Final = 1 << 16
_HUB_HOST: Final = "registry-1.docker.io"
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_ACCEPT: Final = ", ".join(sorted(MANIFESTS | INDEXES))
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_AUTH_TRIES: Final = 3  # without a token, with one, with a new one
_UNREACHABLE_TRIES: Final = 2  # of a host that is not there: most likely a word is wrong, and somebody waits
Action = tuple[str, ...]
PULL: Final[Action] = ("pull",)
PUSH: Final[Action] = ("pull", "push")


@frozen
class Document:
    """A manifest or an index as a registry has sent it: not yet compared with any digest but the one that was asked for."""

    data: bytes
    media_type: str  # "" where the registry says nothing of use
    digest: Digest  # of the data


@define(eq=False)
class Registry:
    """A registry at *name* (``docker.io``, ``localhost:5000``). Thread-safe; close it, or use it with ``with``.

    *on_retry* is called before each pause, with words for people.
    """

    name: str
    access: Access
    transport: Transport
    on_retry: Callable[[str], object] | None = None
    has_failed: bool = field(default=False, init=False)  # noted by who has another one to ask
    _auth: Authenticator | None = field(default=None, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    @classmethod
    def open(cls, name: str, access: Access, *, on_retry: Callable[[str], object] | None = None) -> Registry:
        """Make one; nothing is sent yet. Raises: UnsupportedError: urllib3 is missing."""
        need_urllib3()
        trust = Trust((access.ca,) if access.ca else (), frozenset({name} if access.insecure else ()))
        return cls(name, access, Transport(trust, access.patience), on_retry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self.transport.close()

    def abort(self) -> None:
        """Break off what other threads do with it."""
        self.transport.abort()

    # ---- Documents ----

    def manifest(self, repository: str, what: str | Digest) -> Document:
        """Fetch a manifest or an index by tag or digest.

        Raises: RegistryError (status 404: there is none); ImageError: it is not what the digest names.
        """
        path = f"/v2/{repository}/manifests/{what}"
        with self.request("GET", path, scopes=[Scope(repository)], headers={"Accept": _ACCEPT}) as response:
            self.expect(response, {200}, f"{repository}: {what}")
            data = response.read(MAX_DOCUMENT)
            kind = (response.header("Content-Type") or "").partition(";")[0].strip()
            said = response.header("Docker-Content-Digest")
        found = Digest.of(data)
        if isinstance(what, Digest) and what != (found if what.algorithm == "sha256" else _sha512(data)):
            raise ImageError(f"{self.name}/{repository}@{what}: the registry has sent something else ({found})")
        if said is not None and not isinstance(what, Digest) and said.startswith("sha256:") and said != str(found):
            raise RegistryError(f"{self.name}/{repository}:{what}: the registry says that it is {said[:80]}, and what it has sent is {found}")
        return Document(data, kind if kind in MANIFESTS | INDEXES else "", found)

    def put_manifest(self, repository: str, tag: str | Digest, data: bytes, media_type: str) -> Digest:
        """Give a manifest to the registry, which has all that it names. Raises: RegistryError."""
        headers = {"Content-Type": media_type}
        with self.request("PUT", f"/v2/{repository}/manifests/{tag}", scopes=[Scope(repository, PUSH)], headers=headers, body=data) as response:
            self.expect(response, {200, 201, 202}, f"{repository}: {tag}")
            said = response.header("Docker-Content-Digest")
        found = Digest.of(data)
        if said is not None and said.startswith("sha256:") and said != str(found):
            raise RegistryError(f"{self.name}/{repository}:{tag}: the registry has kept {said[:80]}, and it was given {found}")
        return found

    def tags(self, repository: str) -> list[str]:
        """All tags, in the registry's order, without those that no tag may look like. Raises: RegistryError."""
        found: dict[str, None] = {}
        path: str | None = f"{self.auth.origin}/v2/{repository}/tags/list?n=1000"
        seen: set[str] = set()
        while path is not None:
            if path in seen or len(seen) >= _MAX_PAGES or len(found) > MAX_TAGS:
                raise RegistryError(f"{self.name}/{repository}: the list of tags does not end")
            seen.add(path)
            names, path = self._page(repository, path)
            found.update(dict.fromkeys(names))
        return list(found)

    def _page(self, repository: str, path: str) -> tuple[list[str], str | None]:
        with self.request("GET", path, scopes=[Scope(repository)], headers={"Accept": "application/json"}) as response:
            self.expect(response, {200}, f"{repository}: tags")
            document = _json(response.read(MAX_DOCUMENT))
            following, url = parse_next(response.headers("Link")), response.url
        names: object = document.get("tags") or []
        if not isinstance(names, list):
            raise RegistryError(f"{self.name}/{repository}: a list of tags that is none")
        tags = [name for name in cast("list[object]", names) if isinstance(name, str) and _TAG.fullmatch(name)]
        return tags, None if following is None else self._own(resolve(url, following, what=f"{self.name}: Link"))

    def _own(self, url: str) -> str:
        """*url*, which must be of this registry. Raises: RegistryError."""
        if origin_of(url) != self.auth.origin:
            raise RegistryError(f"{self.name}: the next page is at {origin_of(url)}, which is another host")
        return url

    # ---- Blobs ----

    def has_blob(self, repository: str, digest: Digest, *, actions: Action = PULL) -> bool:
        """Whether the registry has it in this repository. Raises: RegistryError."""
        with self.request("HEAD", f"/v2/{repository}/blobs/{digest}", scopes=[Scope(repository, actions)]) as response:
            if response.status in (404, 405):
                return False
            self.expect(response, {200}, f"{repository}: {digest}")
            return True

    @contextmanager
    def blob(self, repository: str, digest: Digest, size: int, *, start: int = 0) -> Generator[Iterable[bytes]]:
        """The bytes of a blob of *size* bytes from *start* on; one try. Whoever reads them counts and hashes.

        Raises: BrokenTransferError: it may go well another time; RegistryError.
        """
        headers = {"Range": f"bytes={start}-{size - 1}"} if start else {}
        response = self.once("GET", f"/v2/{repository}/blobs/{digest}", scopes=[Scope(repository)], headers=headers)
        if response.status == 416 and start:
            response.close()
            response = self.once("GET", f"/v2/{repository}/blobs/{digest}", scopes=[Scope(repository)])
        with response:
            self.expect(response, {200, 206} if start else {200}, f"{repository}: {digest}")
            skip = self._check_part(response, digest, size, start)
            yield _without_first(response.chunks(), skip)

    def _check_part(self, response: Response, digest: Digest, size: int, start: int) -> int:
        """How many bytes of the answer are there already: none of a part, all before *start* of the whole."""
        length = response.header("Content-Length")
        if response.status == 206:
            part = parse_content_range(response.header("Content-Range"))
            if part is None or part[0] != start or part[2] not in (None, size):
                raise RegistryError(f"{self.name}: {digest}: another part than the one that was asked for ({response.header('Content-Range')!r})")
            return 0
        if length is not None and length != str(size):
            raise RegistryError(f"{self.name}: {digest}: {length[:20]} bytes, and its descriptor promises {size}")
        return start

    # ---- Requests ----

    @property
    def auth(self) -> Authenticator:
        """Who we are to it; the first time, this finds out whether it speaks https."""
        with self._lock:
            if self._auth is None:
                self._auth = self._connect()
            return self._auth

    def ping(self) -> None:
        """See whether the registry is there, and takes our credentials. Raises: RegistryError."""
        with self.request("GET", "/v2/", scopes=[]) as response:
            self.expect(response, {200}, "login")

    def _connect(self) -> Authenticator:
        """https where it is spoken. Plain http only where it is allowed and https fails, but never where a certificate is refused."""
        host = _HUB_HOST if self.name == DOCKER_HUB else self.name
        secure, plain = origin_of(f"https://{host}"), origin_of(f"http://{host}")
        if not self.transport.trust.allows_plain(plain):
            return self._authenticator(secure)
        try:
            return self._greet(secure, "https://" + host)
        except BrokenTransferError:
            return self._greet(plain, "http://" + host)

    def _greet(self, origin: Origin, url: str) -> Authenticator:
        found = self._authenticator(origin)
        with self.transport.send("GET", f"{url}/v2/", headers={}, secret={}, follow=False) as response:
            if response.status == 401:
                found.learn(response.headers("WWW-Authenticate"), [], {})
        return found

    def _authenticator(self, origin: Origin) -> Authenticator:
        return Authenticator(origin, self.transport, self.access.credentials_for(self.name), self.access.auth_hosts)

    def request(
        self, method: str, path: str, *, scopes: Sequence[Scope], headers: Mapping[str, str] | None = None, body: Body = None
    ) -> Response:
        """As `once`, again and again while it fails in a way that may pass. Raises: RegistryError."""
        tries = 0
        while True:
            try:
                return self.once(method, path, scopes=scopes, headers=headers, body=body)
            except BrokenTransferError as error:
                tries += 1
                self.pause(error, tries)

    def pause(self, error: BrokenTransferError, tries: int) -> None:
        """Wait before the next try, after *tries* that failed. Raises: RegistryError: it is not worth another."""
        patience = self.access.patience
        if self.transport.stopped.is_set():
            raise error
        if tries >= (min(_UNREACHABLE_TRIES, patience.attempts) if error.unreachable else patience.attempts):
            raise RegistryError(f"{error}; given up after {tries} tries", status=error.status) from None
        if error.retry_after is not None and error.retry_after > patience.most_asked_s:
            raise RegistryError(f"{error}; it asks to wait {error.retry_after:.0f} s, which is too long", status=error.status) from None
        delay = error.retry_after if error.retry_after is not None else _delay(patience, tries)
        if self.on_retry is not None:
            self.on_retry(f"{error}; again in {delay:.1f} s")
        if self.transport.stopped.wait(delay):
            raise error

    def once(
        self, method: str, path: str, *, scopes: Sequence[Scope], headers: Mapping[str, str] | None = None, body: Body = None
    ) -> Response:
        """Send a request with what authorizes it; *path* may be an address that the registry has named (our secrets stay at home then).

        Raises: BrokenTransferError, for statuses too that may pass; RegistryError: no token can be had.
        """
        auth = self.auth
        url = path if "://" in path else f"{auth.origin}{path}"
        at_home = origin_of(url) == auth.origin
        if not at_home:
            self.transport.check_hop(auth.origin, origin_of(url))
        response, used = None, None
        for _ in range(_AUTH_TRIES):
            secret = auth.headers(scopes) if at_home else {}
            if response is not None and secret == used:
                break  # the same again would get the same answer
            response = self.transport.send(method, url, headers=headers or {}, secret=secret, body=body)
            used = secret
            if response.status != 401 or response.crossed or not at_home:
                break
            if not auth.learn(response.headers("WWW-Authenticate"), scopes, used):
                break
            response.close()
        if response is None:
            raise AssertionError("at least one try")
        return self._unless_passing(response)

    def _unless_passing(self, response: Response) -> Response:
        if response.status not in _PASSING:
            return response
        with response:
            wait = parse_retry_after(response.header("Retry-After"))
            raise BrokenTransferError(f"{self.name}: status {response.status}{_said(response)}", status=response.status, retry_after=wait)

    def expect(self, response: Response, statuses: set[int], what: str) -> None:
        """Raises: RegistryError: the answer has another status."""
        status = response.status
        if status in statuses:
            return
        words = f"{self.name}/{what}" if what != "login" else self.name
        if status in (401, 403):
            who = self.auth.credentials
            hint = f"sandbox login {self.name}" if who is None else f"the user {who.username!r} may not do this"
            raise RegistryError(f"{words}: access denied{_said(response)}; {hint}", status=status)
        reason = "there is no such thing" if status == 404 else f"status {status}"
        raise RegistryError(f"{words}: {reason}{_said(response)}", status=status)


def _delay(patience: Patience, tries: int) -> float:
    """Twice as long each time, with chance in it: many clients that failed together do not come back together."""
    import random

    whole: float = min(patience.first_delay_s * 2 ** (tries - 1), patience.most_delay_s)
    return whole * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _without_first(chunks: Iterable[bytes], count: int) -> Iterable[bytes]:
    for chunk in chunks:
        if count >= len(chunk):
            count -= len(chunk)
            continue
        yield chunk[count:]
        count = 0


def _said(response: Response) -> str:
    """What the registry says of a failure (distribution-spec, "Error Codes"), in one short line, as it is a stranger's word."""
    try:
        errors: object = _json(response.read(_MAX_WORDS)).get("errors")
    except ImageError:
        return ""
    first: object = cast("list[object]", errors)[0] if isinstance(errors, list) and errors else None
    if not isinstance(first, dict):
        return ""
    entry = cast("dict[str, object]", first)
    words = " ".join(str(entry[name]) for name in ("code", "message") if isinstance(entry.get(name), str))
    shown = "".join(character if character.isprintable() else " " for character in words)[:200].strip()
    return f" ({shown})" if shown else ""


def _json(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data.decode())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RegistryError("the registry answers with what is no JSON object")
    return cast("dict[str, Any]", found)


def _sha512(data: bytes) -> Digest:
    import hashlib

    return Digest("sha512", hashlib.sha512(data).hexdigest())
