"""``ADD https://...``: fetched with bounds, checked against ``--checksum`` where there is one. urllib3 is loaded when the first one comes."""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
import re
from typing import Any, Final

from attrs import frozen

from sandbox.builder._addresses import is_url
from sandbox.errors import ImageError, UnsupportedError

MAX_FETCHED: Final = 1 << 30
_TIMEOUT_S: Final = 60.0
_MOST_REDIRECTS: Final = 5
_REDIRECTIONS: Final = (301, 302, 303, 307, 308)
_CHECKSUM: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)


@frozen(eq=False, repr=False)
class Fetched:
    """What a URL gave: its last component, and the time that the server says."""

    name: str
    data: bytes
    mtime: int | None


def check_checksum(text: str) -> None:
    """Refuse what is no checksum. Raises: ImageError."""
    if text and not _CHECKSUM.fullmatch(text):
        raise ImageError(f"--checksum={text[:100]}: write sha256: and 64 digits in lower case, or sha512: and 128")


def fetch(url: str, checksum: str) -> Fetched:
    """Get *url*. Raises: ImageError: it cannot be had, is too large, or is not what *checksum* says. UnsupportedError: no urllib3."""
    try:
        import urllib3
    except ImportError:
        raise UnsupportedError("ADD of a URL needs urllib3", feature="urllib3", remedy="install sandbox[images]") from None
    shown = _without_password(url)
    pool = urllib3.PoolManager(timeout=_TIMEOUT_S, retries=urllib3.Retry(3, redirect=False, backoff_factor=0.2))
    try:
        with contextlib.closing(_follow(pool, url, shown, is_checked=bool(checksum))) as response:
            if response.status != 200:
                raise ImageError(f"{shown}: the server says {response.status}")
            data = b"".join(_bounded(response, shown))
            changed = response.headers.get("Last-Modified", "")
    except urllib3.exceptions.HTTPError as error:
        raise ImageError(f"{shown}: {error}".replace(url, shown)) from error
    finally:
        pool.clear()
    _verify(shown, data, checksum)
    return Fetched(_name(url), data, _time(changed))


def _without_password(url: str) -> str:
    """What is said of it in messages."""
    import urllib.parse

    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _follow(pool: Any, url: str, shown: str, *, is_checked: bool) -> Any:  # noqa: ANN401 - urllib3's
    """The answer that is no redirection; the caller closes it. Not urllib3's own way, which leaves the connections of redirections open."""
    from urllib.parse import urljoin

    at = url
    for _ in range(_MOST_REDIRECTS + 1):
        # The encoding is the file's own business: what is kept is what the server keeps.
        response = pool.request("GET", at, redirect=False, preload_content=False, decode_content=False, headers={"Accept-Encoding": "identity"})
        to = response.headers.get("Location") if response.status in _REDIRECTIONS else None
        if to is None:
            return response
        response.close()
        before, at = at, urljoin(at, to)
        if not is_url(at):
            raise ImageError(f"{shown}: a redirection to {at[:100]!r}, which is not fetched")
        if before.startswith("https:") and at.startswith("http:") and not is_checked:
            raise ImageError(f"{shown}: a redirection to {at[:100]!r}, where anybody on the way could change it; give --checksum, or another URL")
    raise ImageError(f"{shown}: more than {_MOST_REDIRECTS} redirections")


def _bounded(response: Any, url: str) -> list[bytes]:  # noqa: ANN401 - urllib3's response is loaded late
    chunks: list[bytes] = []
    size = 0
    for chunk in response.stream(1 << 20):
        size += len(chunk)
        if size > MAX_FETCHED:
            raise ImageError(f"{url}: more than {MAX_FETCHED >> 20} MiB")
        chunks.append(chunk)
    return chunks


def _verify(url: str, data: bytes, checksum: str) -> None:
    if not checksum:
        return
    algorithm, _, wanted = checksum.partition(":")
    found = hashlib.new(algorithm, data).hexdigest()
    if found != wanted:
        raise ImageError(f"{url}: the content is {algorithm}:{found}, not {checksum}")


def _name(url: str) -> str:
    import urllib.parse

    return posixpath.basename(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).replace("/", "")


def _time(text: str) -> int | None:
    from email.utils import parsedate_to_datetime

    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (TypeError, ValueError):
        return None
