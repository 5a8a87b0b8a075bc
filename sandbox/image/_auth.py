"""Who we are to a registry: Basic, and Bearer tokens of an authorization service (distribution's token authentication).

What is never done: a password or token is sent to a host that it is not for. A registry names the service that makes its tokens (the *realm*),
and that service gets the password; so a registry that was taken over could name any. Realms on the registry's own host, on a domain above it,
or beside it below the same domain are believed (``registry.example.com``: ``gitlab.example.com``); others must be named by the user (`auth_hosts`).
A challenge counts only when the registry itself answers with it, not a host that it has led to (CVE-2020-15157).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast
from urllib.parse import quote, urlencode, urlsplit

from attrs import define, field, frozen

from sandbox.errors import RegistryError
from sandbox.image._headers import Challenge, Origin, is_loopback, origin_of, parse_challenges, parse_retry_after
from sandbox.image._http import BrokenTransferError, Transport
from sandbox.image.credentials import Credentials, is_line

MAX_TOKEN: Final = 1 << 16
_MAX_ANSWER: Final = 1 << 18
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # RFC 6750, 2.1: b64token
_LEAST_LIFE_S: Final = 60.0  # distribution: clients take this where nothing is said
_EARLY_S: Final = 10.0  # so that a token does not end on its way
_CLIENT: Final = "sandbox"


@frozen
class Scope:
    """What a token is for: ``repository:library/debian:pull``."""

    repository: str
    actions: tuple[str, ...] = ("pull",)

    def __str__(self) -> str:
        return f"repository:{self.repository}:{','.join(self.actions)}"


@define
class _Token:
    value: str
    until: float


@define(eq=False)
class Authenticator:
    """The secrets for one registry: makes Authorization headers, and learns from its 401s. Thread-safe."""

    origin: Origin
    transport: Transport
    credentials: Credentials | None = None
    auth_hosts: tuple[str, ...] = ()
    identity_token: str = field(default="", init=False)  # that a service has given for the password
    _challenge: Challenge | None = field(default=None, init=False)
    _tokens: dict[tuple[str, ...], _Token] = field(factory=dict[tuple[str, ...], _Token], init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def headers(self, scopes: Iterable[Scope]) -> dict[str, str]:
        """The Authorization header for a request to the registry that needs *scopes*, as far as it is known what it wants; perhaps none.

        Raises: RegistryError: no token can be had.
        """
        challenge = self._challenge
        if challenge is None:
            return {}
        if challenge.scheme == "basic":
            return {"Authorization": self.credentials.basic} if self.credentials is not None else {}
        return {"Authorization": f"Bearer {self._token(challenge, tuple(sorted(map(str, scopes))))}"}

    def learn(self, challenges: Iterable[str], scopes: Iterable[Scope], used: Mapping[str, str]) -> bool:
        """Take in the challenge of a 401 that the registry itself gave to a request with *used*; False where it asks for nothing that we have."""
        offered = parse_challenges(challenges)
        known = next((each for each in offered if each.scheme == "bearer" and each.get("realm")), None)
        known = known or next((each for each in offered if each.scheme == "basic"), None)
        if known is None:
            return False
        key = tuple(sorted(map(str, scopes)))
        with self._lock:
            self._challenge = known
            kept = self._tokens.get(key)
            if kept is not None and used.get("Authorization") == f"Bearer {kept.value}":
                del self._tokens[key]  # it was taken back, or the registry was started anew
        return known.scheme == "bearer" or self.credentials is not None

    def _token(self, challenge: Challenge, scopes: tuple[str, ...]) -> str:
        """One request at a time: threads that want the same token wait for it."""
        with self._lock:
            kept = self._tokens.get(scopes)
            if kept is None or kept.until <= time.monotonic():
                kept = self._tokens[scopes] = self._fetch(challenge, scopes)
            return kept.value

    def _fetch(self, challenge: Challenge, scopes: tuple[str, ...]) -> _Token:
        realm = challenge.get("realm")
        self._check_realm(realm)
        wanted = [*scopes, *_extra_scopes(challenge)]
        began = time.monotonic()
        answer = self._ask(realm, challenge.get("service"), wanted)
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
            raise RegistryError(f"{self.origin}: the service at {realm[:200]} gave no token that could be one")
        given = answer.get("refresh_token")
        if isinstance(given, str) and given and len(given) <= MAX_TOKEN and is_line(given):
            self.identity_token = given
        return _Token(token, began + _life_of(answer.get("expires_in")) - _EARLY_S)

    def _check_realm(self, realm: str) -> None:
        """Whether the service that the registry names may be asked. Raises: RegistryError."""
        target = origin_of(realm, what=f"{self.origin}: realm")
        self.transport.check_hop(self.origin, target)
        if self.credentials is not None and not self._may_have_password(target):
            raise RegistryError(
                f"{self.origin} sends us to {target} for a token: another host, which would get the password of {self.credentials.username!r}; "
                f"if it is to have it, name it: auth_hosts=[{target.host!r}], or auth-hosts in registries.toml"
            )

    def _may_have_password(self, target: Origin) -> bool:
        return target.host in self.auth_hosts or is_related(self.origin.host, target.host)

    def _ask(self, realm: str, service: str, scopes: list[str]) -> dict[str, Any]:
        known = self.credentials
        fields = [("service", service)] if service else []
        fields += [("scope", scope) for scope in scopes]
        if known is not None and known.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": known.identity_token, "client_id": _CLIENT, "service": service}
            body = urlencode({**form, "scope": " ".join(scopes)}).encode()
            return self._answer("POST", realm, {}, body)
        secret = {"Authorization": known.basic} if known is not None else {}
        fields += [("account", known.username), ("client_id", _CLIENT), ("offline_token", "true")] if known is not None else []
        joint = "&" if urlsplit(realm).query else "?"
        url = realm.partition("#")[0] + (joint + urlencode(fields, quote_via=quote) if fields else "")
        return self._answer("GET", url, secret, None)

    def _answer(self, method: str, url: str, secret: Mapping[str, str], body: bytes | None) -> dict[str, Any]:
        """Never across a redirect: the service that was checked is the one that answers."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if body is not None else {}
        with self.transport.send(method, url, headers=headers, secret=secret, body=body, follow=False) as response:
            where = f"{self.origin}: the service at {url.partition('?')[0][:200]}"
            if response.status in (400, 401, 403):
                who = f"the user {self.credentials.username!r} or the password" if self.credentials is not None else "a stranger"
                raise RegistryError(f"{where} refuses {who} ({response.status}); log in anew: sandbox login", status=response.status)
            if response.status == 429 or response.status >= 500:
                wait = parse_retry_after(response.header("Retry-After"))
                raise BrokenTransferError(f"{where} answers with status {response.status}", status=response.status, retry_after=wait)
            if response.status != 200:
                raise RegistryError(f"{where} answers with status {response.status}", status=response.status)
            return _decode(response.read(_MAX_ANSWER), where)


def _decode(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data.decode())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RegistryError(f"{where} answers with what is no JSON object")
    return cast("dict[str, Any]", found)


def _life_of(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _LEAST_LIFE_S <= value <= 86400:
        return _LEAST_LIFE_S
    return float(value)


def _extra_scopes(challenge: Challenge) -> list[str]:
    """Words without a colon, which some services want (``aws``); what names a repository is ours to say, not the challenge's."""
    return [word for word in challenge.get("scope").split()[:4] if word.isascii() and word.isalnum()]


def is_related(registry: str, service: str) -> bool:
    """Whether *service* is the host of *registry*, a domain above it, or beside it below the same domain of two names or more.

    ``co.uk`` and its like (two letters below a short name) are nobody's, and need a third name.
    """
    if registry == service or (is_loopback(registry) and is_loopback(service)):
        return True
    if ":" in registry + service or registry.rpartition(".")[2].isdigit() or service.rpartition(".")[2].isdigit():
        return False  # addresses
    above = registry.partition(".")[2]
    return is_owned(above) and (service == above or service.partition(".")[2] == above or (is_owned(service) and registry.endswith("." + service)))


def is_owned(domain: str) -> bool:
    """Whether a domain is likely somebody's own, not one below which anybody gets a name."""
    names = domain.split(".")
    is_country = len(names[-1]) == 2 and len(names) >= 2 and len(names[-2]) <= 3
    return len(names) >= (3 if is_country else 2)
