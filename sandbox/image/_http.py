"""HTTP as registries need it, on urllib3: one answer at a time, redirects followed by our own rules, a deadline for everything.

Rules:

- A secret (the `secret` headers of a request) goes to the origin that it was made for (scheme, host, port), and nowhere else. When a redirect
  has led to another origin, it is not sent again, even if the next one leads back.
- Plain http is spoken with this machine (``localhost``, 127.0.0.0/8, ::1), or with a host that the caller named as insecure. No redirect
  leads from https to http, nor from another machine to this one (whose services trust whoever comes from here).
- Answers that are read as a whole have a limit of size and one of time; long ones must go on: `Patience.stall_s` for each 64 KiB.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import unquote

from attrs import Factory, define, field, frozen

from sandbox.errors import RegistryError, UnsupportedError, UsageError
from sandbox.image._headers import Origin, origin_of, resolve, without_query
from sandbox.image._watchdog import Watch, Watchdog

if TYPE_CHECKING:
    import ssl

    from urllib3 import BaseHTTPResponse, HTTPConnectionPool

CHUNK: Final = 1 << 16
MAX_HOPS: Final = 5
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_OBJECT: Final = re.compile(r"^\w+\(host=[^)]*\): ")  # with which urllib3 begins what it says
_KEPT: Final = 8  # connections to one host that are kept open
_CERTIFICATES: Final = ("/etc/docker/certs.d", "~/.config/docker/certs.d")  # the second: Docker's when it runs without root
Body = bytes | Callable[[], Iterable[bytes]] | None


class BrokenTransferError(RegistryError):
    """The connection could not be made, broke, or took too long: what may go well the next time, perhaps after *retry_after* seconds.

    *unreachable*: nobody listens there, or there is no such host.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None, unreachable: bool = False) -> None:
        super().__init__(message, status=status)
        self.retry_after = retry_after
        self.unreachable = unreachable


@frozen
class Patience:
    """How long a registry is waited for, and how often it is asked."""

    connect_s: float = 15.0
    answer_s: float = 60.0  # from the end of the request until all headers, or all of a document, are there
    stall_s: float = 30.0  # for each 64 KiB of a layer
    attempts: int = 6  # of one request; of a download, those in a row that brought little
    first_delay_s: float = 0.5  # doubled each time, with chance between the half and the whole
    most_delay_s: float = 30.0
    most_asked_s: float = 120.0  # the longest Retry-After that is waited for


@frozen
class Trust:
    """Whom to believe: more certificate authorities, and hosts (with their port) that may speak plain http."""

    ca_files: tuple[str, ...] = ()
    insecure: frozenset[str] = frozenset()

    def allows_plain(self, origin: Origin) -> bool:
        """Whether plain http may be spoken with it."""
        return origin.is_loopback or _host_and_port(origin) in self.insecure or (origin.port in (80, 443) and origin.host in self.insecure)

    def context(self, origin: Origin) -> ssl.SSLContext:
        """The system's authorities, the caller's, and those of ``certs.d/<host>/``, as Docker's (``*.crt``; client pairs ``*.cert``, ``*.key``).

        Raises: UsageError: a file is not there, or is none.
        """
        import ssl

        context = ssl.create_default_context()
        for path in self.ca_files:
            _load(path, lambda path: context.load_verify_locations(cafile=path))
        for directory in _directories_of(origin):
            for name in sorted(os.listdir(directory)):
                path = os.path.join(directory, name)
                if name.endswith(".crt"):
                    _load(path, lambda path: context.load_verify_locations(cafile=path))
                elif name.endswith(".cert"):
                    _load(path, lambda path: context.load_cert_chain(path, path.removesuffix(".cert") + ".key"))
        return context


def _load(path: str, load: Callable[[str], object]) -> None:
    try:
        load(path)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UsageError(f"certificates: {path}: {getattr(error, 'strerror', None) or error}") from None


def _directories_of(origin: Origin) -> list[str]:
    names = [_host_and_port(origin)] + ([origin.host] if origin.port in (80, 443) else [])
    paths = [os.path.join(os.path.expanduser(base), name) for base in _CERTIFICATES for name in names]
    return [path for path in paths if os.path.isdir(path)]


def _host_and_port(origin: Origin) -> str:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    return f"{host}:{origin.port}"


@define(eq=False)
class Response:
    """An answer whose body is still to be read; close it. `crossed`: a redirect has led to another origin than the one that was asked."""

    raw: BaseHTTPResponse
    watch: Watch | None
    url: str
    patience: Patience
    crossed: bool = False
    _received: int = field(default=0, init=False)

    @property
    def status(self) -> int:
        """The status code."""
        return self.raw.status

    def header(self, name: str) -> str | None:
        """The value of a header."""
        return self.raw.headers.get(name)

    def headers(self, name: str) -> list[str]:
        """All values of a header that may come several times."""
        return self.raw.headers.getlist(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back if the answer was read whole, and close it otherwise."""
        with contextlib.suppress(RegistryError):  # whether the connection is of further use does not change what was answered
            if self.raw.length_remaining is not None and self.raw.length_remaining <= CHUNK:  # a few words about a failure: read, so that
                self._next(CHUNK)  # the connection stays
        if self.watch is not None:
            self.watch.release()
        (self.raw.release_conn if self.raw.length_remaining == 0 else self.raw.close)()

    def read(self, most: int) -> bytes:
        """The whole body. Raises: RegistryError: it is larger than *most*; BrokenTransferError."""
        length = self.header("Content-Length")
        if length is not None and length.isdecimal() and len(length) < 20 and int(length) > most:
            raise RegistryError(f"{self._name}: a document of {length} bytes; at most {most} are taken")
        found = bytearray()
        while data := self._next(most + 1 - len(found)):
            found += data
            if len(found) > most:
                raise RegistryError(f"{self._name}: a document of more than {most} bytes")
        return bytes(found)

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes. Raises: BrokenTransferError: it stopped before its end, or hardly goes on."""
        while True:
            if self.watch is not None:
                self.watch.extend(self.patience.stall_s)
            data = self._next(CHUNK)
            if not data:
                return
            yield data

    def _next(self, most: int) -> bytes:
        import urllib3

        try:
            data = self.raw.read(min(most, CHUNK), decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:  # ValueError: a chunk's size that is no number
            raise BrokenTransferError(f"{self._name}: {self._why(error)}") from None
        if not data and self.watch is not None and self.watch.expired:
            raise BrokenTransferError(f"{self._name}: {self._why(None)}")
        self._received += len(data)
        return data

    def _why(self, error: Exception | None) -> str:
        if self.watch is not None and self.watch.expired:
            return f"given up after {self._received} bytes: it is too slow, or was broken off"
        return f"broken off after {self._received} bytes ({_reason(error)})"

    @property
    def _name(self) -> str:
        return without_query(self.url)


def _reason(error: Exception | None) -> str:
    """What an error of urllib3 says, without the objects that it names."""
    if error is None:
        return "the end came early"
    text = str(error.args[-1] if error.args else error) or type(error).__name__
    return _OBJECT.sub("", text)


@define(eq=False)
class Transport:
    """Connections to registries and to where they lead; thread-safe. Needs: urllib3."""

    trust: Trust = Factory(Trust)
    patience: Patience = Factory(Patience)
    stopped: threading.Event = field(factory=threading.Event, init=False)
    _watchdog: Watchdog = field(factory=Watchdog, init=False)
    _pools: dict[Origin, HTTPConnectionPool] = field(factory=dict[Origin, "HTTPConnectionPool"], init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _here: threading.local = field(factory=threading.local, init=False)

    def close(self) -> None:
        """Close all connections that are kept."""
        with self._lock:
            for pool in self._pools.values():
                pool.close()
            self._pools.clear()

    def abort(self) -> None:
        """Break off all that is going on, in whatever thread; nothing new gets far."""
        self.stopped.set()
        self._watchdog.abort()

    def send(
        self, method: str, url: str, *, headers: Mapping[str, str], secret: Mapping[str, str], body: Body = None, follow: bool = True
    ) -> Response:
        """Send one request, follow redirects of GET and HEAD, and give the answer, of whatever status.

        Raises: BrokenTransferError; RegistryError: a redirect that is not followed.
        """
        first = origin = origin_of(url)
        self._check_plain(first)
        crossed = False
        for _ in range(MAX_HOPS + 1):
            response = self._once(method, url, {**headers, **({} if crossed else secret)}, body)
            response.crossed = crossed
            location = response.header("Location")
            if response.status not in REDIRECTS or not follow or location is None:
                return response
            response.close()
            if method not in ("GET", "HEAD"):
                raise RegistryError(f"{without_query(url)}: it redirects a {method}, which is not followed", status=response.status)
            url = resolve(url, location, what=without_query(url))
            self.check_hop(origin, origin_of(url))
            origin = origin_of(url)
            crossed = crossed or origin != first
        raise RegistryError(f"{without_query(url)}: more than {MAX_HOPS} redirects, one after the other")

    def check_hop(self, origin: Origin, target: Origin) -> None:
        """Whether a server at *origin* may send us to *target*. Raises: RegistryError."""
        if target.scheme == "http" and (origin.scheme != "http" or not self.trust.allows_plain(target)):
            raise RegistryError(f"{origin} leads to {target}: plain http, which anybody on the way could read and change; it is refused")
        if target.is_loopback and not origin.is_loopback:
            raise RegistryError(f"{origin} leads to {target}, on this machine; it is refused")

    def _check_plain(self, origin: Origin) -> None:
        if origin.scheme == "http" and not self.trust.allows_plain(origin):
            raise RegistryError(f"{origin}: plain http is spoken with this machine only; insecure=True (--insecure) allows it for a registry")

    def _once(self, method: str, url: str, headers: Mapping[str, str], body: Body) -> Response:
        import urllib3

        origin = origin_of(url)
        target = url.partition("://")[2]
        slash = min((at for at in (target.find("/"), target.find("?")) if at >= 0), default=len(target))
        path = target[slash:].partition("#")[0]
        if self.stopped.is_set():
            raise BrokenTransferError(f"{without_query(url)}: broken off")
        self._here.watch = None
        pool = self._pool(origin)
        try:
            raw = pool.urlopen(
                method,
                path if path.startswith("/") else "/" + path,
                body=body() if callable(body) else body,
                headers={"User-Agent": "sandbox", **headers},
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            slow = self._forget()
            if isinstance(error, urllib3.exceptions.SSLError):
                raise _of_tls(origin, error) from None
            reason = "no answer in time" if slow else _reason(error)
            if "Tunnel connection failed: 407" in reason:  # of CONNECT; urllib3 has no type for it
                remedy = "say them in https_proxy=http://USER:PASSWORD@HOST:PORT"
                raise RegistryError(f"the proxy of {origin} wants another user and password (407); {remedy}") from None
            if isinstance(error, urllib3.exceptions.ProxyError):
                reason = f"through the proxy that https_proxy names: {reason}"
            unreachable = isinstance(error, urllib3.exceptions.NewConnectionError)
            raise BrokenTransferError(f"{method} {without_query(url)}: {reason}", unreachable=unreachable) from None
        return Response(raw, self._here.watch, url, self.patience)

    def _pool(self, origin: Origin) -> HTTPConnectionPool:
        with self._lock:
            if origin not in self._pools:
                self._pools[origin] = _make_pool(origin, self.trust, self.patience, self._watch)
            return self._pools[origin]

    def _watch(self, sock: Any) -> None:  # noqa: ANN401 - a socket, or what TLS puts around it
        self._here.watch = self._watchdog.watch(sock, self.patience.answer_s)

    def _forget(self) -> bool:
        """Watch this thread's failed request no longer; say whether its time was over."""
        watch: Watch | None = self._here.watch
        if watch is None:
            return False
        watch.release()
        return watch.expired


def _of_tls(origin: Origin, error: Exception) -> RegistryError:
    text = _reason(error)
    if "CERTIFICATE_REQUIRED" in text or "ALERT_BAD_CERTIFICATE" in text:  # Go said the second until 1.21
        why = f"it wants a certificate of the client's own ({text}); put client.cert and client.key into /etc/docker/certs.d/HOST"
        return RegistryError(f"{origin}: {why}")
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = "the certificate is not signed by anybody who is trusted here"
        return RegistryError(f"{origin}: {why} ({text}); pass ca=FILE (--ca), or put it into /etc/docker/certs.d/HOST/ca.crt")
    if "_ALERT_" in text:  # it speaks TLS, and refuses: another try would be refused too, and plain http is not what it wants
        return RegistryError(f"{origin}: TLS: {text}")
    return BrokenTransferError(f"{origin}: TLS: {text}")


def _make_pool(origin: Origin, trust: Trust, patience: Patience, watch: Callable[[Any], None]) -> HTTPConnectionPool:
    import urllib3
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.response import HTTPResponse

    class Plain(HTTPConnection):
        def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own
            watch(self.sock)
            return super().getresponse()

    class Secure(HTTPSConnection):
        def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own
            watch(self.sock)
            return super().getresponse()

    timeout = urllib3.Timeout(connect=patience.connect_s, read=patience.answer_s)
    pool: HTTPConnectionPool
    if origin.scheme == "http":
        pool = urllib3.HTTPConnectionPool(origin.host, origin.port, timeout=timeout, maxsize=_KEPT)
        _connect_by(pool, Plain)
        return pool
    context = trust.context(origin)
    proxy = _proxy_of(origin)
    if proxy is None:
        pool = urllib3.HTTPSConnectionPool(origin.host, origin.port, timeout=timeout, maxsize=_KEPT, ssl_context=context)
    else:
        url, headers = _read_proxy(proxy)
        manager = urllib3.ProxyManager(url, proxy_headers=headers, timeout=timeout, maxsize=_KEPT, ssl_context=context)
        pool = manager.connection_from_host(origin.host, origin.port, "https")
    _connect_by(pool, Secure)
    return pool


def _connect_by(pool: Any, connections: type) -> None:  # noqa: ANN401 - urllib3's type of this does not fit its own classes
    pool.ConnectionCls = connections


def _proxy_of(origin: Origin) -> str | None:
    """What $HTTPS_PROXY and $NO_PROXY say; nothing goes through a proxy to this machine, and plain http never does."""
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    if origin.is_loopback or "https" not in proxies or proxy_bypass(_host_and_port(origin)):
        return None
    return proxies["https"]


def _read_proxy(text: str) -> tuple[str, dict[str, str]]:
    """The proxy that *text* names, with or without ``http://``, and what tells it the user and password in *text*. Raises: UsageError."""
    from urllib3.exceptions import LocationParseError
    from urllib3.util import Url, parse_url

    try:
        url = parse_url(text if "://" in text else f"http://{text}")
    except LocationParseError:
        url = Url()
    if url.scheme not in ("http", "https") or not url.host:
        shown = text.rpartition("@")[2]  # not its password
        raise UsageError(f"https_proxy: {shown!r} is no proxy that we can use; write http://HOST:PORT")
    secret = None if url.auth is None else unquote(url.auth)
    headers = {} if secret is None else {"proxy-authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}
    return Url(url.scheme, host=url.host, port=url.port).url, headers


def need_urllib3() -> None:
    """Raises: UnsupportedError: urllib3 is missing, or too old."""
    remedy = "pip install 'sandbox[images]'"
    try:
        import urllib3
    except ImportError:
        raise UnsupportedError("registries are reached by urllib3, which is not installed", feature="urllib3", remedy=remedy) from None
    if not hasattr(urllib3, "BaseHTTPResponse"):
        raise UnsupportedError("registries need urllib3 2, and an older one is installed", feature="urllib3", remedy=remedy)
