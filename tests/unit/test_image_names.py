"""Names and digests of images."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import ImageError, UsageError
from sandbox.image import Digest, Reference, Verifier

SHA = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "whole", "familiar"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("library/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("index.docker.io/user/app:1", "docker.io/user/app:1", "user/app:1"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
        ("ghcr.io/org/team/app:v1.2", "ghcr.io/org/team/app:v1.2", "ghcr.io/org/team/app:v1.2"),
        ("[::1]:5000/app:x", "[::1]:5000/app:x", "[::1]:5000/app:x"),
        (f"debian@{SHA}", f"docker.io/library/debian@{SHA}", f"debian@{SHA}"),
        (f"debian:12@{SHA}", f"docker.io/library/debian:12@{SHA}", f"debian:12@{SHA}"),
        ("a/b__c/d--e", "docker.io/a/b__c/d--e:latest", "a/b__c/d--e:latest"),
    ],
)
def test_names_are_read_as_docker_reads_them(text: str, whole: str, familiar: str) -> None:
    found = Reference.parse(text)
    assert str(found) == whole
    assert found.familiar == familiar
    assert Reference.parse(whole) == Reference.parse(familiar) == found


@pytest.mark.parametrize(
    "text",
    ["", "Debian", "a//b", "/a", "a/", "a:", "a:.x", "a:" + "x" * 129, "a/../b", "..", "a b", "a@", "a@sha256:12", "-a", "a-", "a..b", "a___b",
     "x" * 250, "host:99999999/a", "a\n", "a:1\n", f"a@{SHA}\n", "ho_st:80/a", "é", "a@sha256:../../x"],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Reference.parse(text)


@given(st.text(max_size=40))
def test_what_is_accepted_is_the_same_when_read_again(text: str) -> None:
    try:
        found = Reference.parse(text)
    except UsageError:
        return
    assert Reference.parse(str(found)) == Reference.parse(found.familiar) == found
    assert ".." not in found.name.split("/")


@pytest.mark.parametrize("text", ["", "sha256", "sha256:", SHA[:-1], SHA + "a", SHA.upper(), "sha1:" + "a" * 40, "sha512:" + "a" * 64, "sha256:../../x", SHA + "\n", 7, None])
def test_what_is_no_digest_is_refused(text: object) -> None:
    with pytest.raises(UsageError):
        Digest.parse(text)


@given(st.binary(max_size=64), st.binary(max_size=64), st.booleans())
def test_only_the_content_that_was_promised_passes(promised: bytes, came: bytes, knows_size: bool) -> None:
    def check() -> bytes:
        verifier = Verifier(Digest.of(promised), len(promised) if knows_size else None)
        return b"".join(verifier.check([came[:10], came[10:]]))

    if came == promised:
        assert check() == came
    else:
        with pytest.raises(ImageError):
            check()


def test_a_source_that_never_ends_is_refused_at_the_promised_size() -> None:
    verifier = Verifier(Digest("sha256", hashlib.sha256(b"").hexdigest()), 1000)
    verifier.update(bytes(1000))
    with pytest.raises(ImageError, match="more than the 1000 bytes"):
        verifier.update(b"x")
