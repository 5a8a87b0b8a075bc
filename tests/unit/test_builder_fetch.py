"""What is refused of redirections, and what messages say of URLs; against a server: tests/live/test_building_urls.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sandbox.builder._fetch import _follow, _without_password
from sandbox.errors import ImageError


class Pool:
    """Redirects each URL to the next."""

    def __init__(self, *ways: str) -> None:
        self.ways = list(ways)

    def request(self, *_: object, **__: object) -> SimpleNamespace:
        way = self.ways.pop(0) if self.ways else None
        return SimpleNamespace(status=302 if way else 200, headers={"Location": way} if way else {}, close=lambda: None)


def test_from_https_to_http_goes_only_what_is_checked() -> None:
    def follow(*ways: str, is_checked: bool = False, url: str = "https://a/x") -> int:
        return int(_follow(Pool(*ways), url, url, is_checked=is_checked).status)

    for ways in (("http://a/x",), ("https://b/x", "http://c/y"), ("//b/x", "http://a/")):
        with pytest.raises(ImageError, match="--checksum"):
            follow(*ways)
        assert follow(*ways, is_checked=True) == 200
    assert follow("https://b/", "/c") == 200
    assert follow("http://b/", "https://c/", url="http://a/") == 200


def test_no_message_tells_a_password() -> None:
    assert _without_password("https://user:secret@host:8443/p?q#f") == "https://host:8443/p?q#f"
    assert _without_password("http://host/p@h") == "http://host/p@h"
