"""The documents of images: what we write we read, and what strangers write does no harm."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import ImageError, UsageError
from sandbox.image import Config, Descriptor, Digest, Healthcheck, History, Index, Manifest, MediaType, Platform, Settings
from sandbox.image.documents import MAX_DOCUMENT, parse_config, parse_document

WORDS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)
LISTS = st.none() | st.lists(WORDS, min_size=1, max_size=3).map(tuple)
DIGESTS = st.binary(max_size=4).map(Digest.of)
DESCRIPTORS = st.builds(
    Descriptor,
    media_type=st.sampled_from(MediaType).map(str),
    digest=DIGESTS,
    size=st.integers(0, 1 << 40),
    platform=st.none() | st.builds(Platform, st.just("linux"), st.sampled_from(["amd64", "arm64"]), st.sampled_from(["", "v8"])),
    annotations=st.dictionaries(WORDS, WORDS, max_size=2).map(lambda found: tuple(found.items())),
)
PAIRS = st.dictionaries(WORDS, WORDS, max_size=3).map(lambda found: tuple(found.items()))
SECONDS = st.none() | st.integers(1, 100).map(float)
SETTINGS = st.builds(
    Settings,
    entrypoint=LISTS | st.just(()),
    cmd=LISTS,
    env=st.lists(WORDS, max_size=3).map(tuple),
    working_dir=WORDS,
    user=WORDS,
    volumes=st.lists(WORDS, max_size=2, unique=True).map(tuple),
    exposed_ports=st.lists(WORDS, max_size=2, unique=True).map(tuple),
    stop_signal=WORDS,
    labels=PAIRS,
    healthcheck=st.none() | st.builds(Healthcheck, st.just(("CMD", "true")), SECONDS, SECONDS, SECONDS, st.none() | st.integers(1, 9), SECONDS),
    shell=LISTS,
    on_build=st.lists(WORDS, max_size=2).map(tuple),
)


@given(st.builds(Index, st.lists(DESCRIPTORS, max_size=3).map(tuple), st.sampled_from([str(MediaType.OCI_INDEX), str(MediaType.DOCKER_INDEX)])))
def test_an_index_is_read_as_it_was_written(index: Index) -> None:
    assert parse_document(index.encode()) == index


@given(st.builds(Manifest, DESCRIPTORS, st.lists(DESCRIPTORS, max_size=3).map(tuple), annotations=PAIRS))
def test_a_manifest_is_read_as_it_was_written(manifest: Manifest) -> None:
    assert parse_document(manifest.encode(), media_type=MediaType.OCI_MANIFEST) == manifest


@given(
    st.builds(
        Config,
        platform=st.builds(Platform),
        diff_ids=st.lists(DIGESTS, max_size=3).map(tuple),
        settings=SETTINGS,
        history=st.lists(st.builds(History, WORDS, WORDS, WORDS, st.booleans()), max_size=2).map(tuple),
        created=WORDS,
        author=WORDS,
    )
)
def test_a_configuration_is_read_as_it_was_written(config: Config) -> None:
    assert parse_config(config.encode()) == config


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "rootfs", "diff_ids", "history", "Env", "Cmd", "Healthcheck", "Test", "platform"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_what_is_malformed_is_refused_in_words(document: Any) -> None:
    raw = json.dumps(document).encode()
    for read in (parse_document, parse_config):
        try:
            read(raw)
        except ImageError as error:
            assert str(error)


def test_a_document_that_is_both_is_refused() -> None:
    descriptor = Descriptor.of(MediaType.OCI_CONFIG, b"{}").to_json()
    both = {"schemaVersion": 2, "config": descriptor, "layers": [], "manifests": []}
    with pytest.raises(ImageError, match="as a manifest and as an index"):
        parse_document(json.dumps(both).encode())
    with pytest.raises(ImageError, match="it came as"):
        parse_document(Index(()).encode(), media_type=MediaType.OCI_MANIFEST)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b'{"schemaVersion": 1}', b'{"schemaVersion": 2}', b"[" * 100_000, b'{"schemaVersion": 2, "manifests": [], "note": "\\ud800"}', b" " * (MAX_DOCUMENT + 1)])
def test_what_is_no_document_is_refused(raw: bytes) -> None:
    with pytest.raises(ImageError):
        parse_document(raw)


def test_sizes_and_digests_of_descriptors_are_checked() -> None:
    for change in ({"size": -1}, {"size": True}, {"size": 1 << 60}, {"size": "3"}, {"digest": "sha256:../../x"}, {"digest": None}):
        entry = Descriptor.of(MediaType.OCI_MANIFEST, b"x").to_json() | change
        with pytest.raises(ImageError):
            parse_document(json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())


def test_the_manifest_of_the_platform_is_selected_and_attestations_are_not() -> None:
    def entry(name: str, *, attests: bool = False) -> Descriptor:
        platform = Platform("unknown", "unknown") if attests else Platform.parse(name)
        notes = (("vnd.docker.reference.type", "attestation-manifest"),) if attests else ()
        return Descriptor(MediaType.OCI_MANIFEST, Digest.of(name.encode()), 1, platform, notes)

    index = Index((entry("x", attests=True), entry("linux/arm64/v8"), entry("linux/amd64"), entry("linux/arm/v7"), entry("linux/arm/v6")))
    assert index.select(Platform("linux", "amd64")) == entry("linux/amd64")
    assert index.select(Platform("linux", "arm64")) == entry("linux/arm64/v8")
    assert index.select(Platform("linux", "arm", "v6")) == entry("linux/arm/v6")
    with pytest.raises(ImageError, match="linux/amd64, linux/arm/v6"):
        index.select(Platform("linux", "s390x"))


@pytest.mark.parametrize("text", ["", "linux", "linux/", "linux/amd64/v1/x", "linux/amd64\n", "/amd64"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Platform.parse(text)
