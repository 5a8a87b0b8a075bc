"""Images: their names, documents, and where they are kept. It knows nothing of containers: it hands out paths of layers."""

from __future__ import annotations

from sandbox.image.digest import Digest, Verifier
from sandbox.image.documents import Config, Descriptor, Healthcheck, History, Index, Manifest, MediaType, Platform, Settings
from sandbox.image.reference import Reference

__all__ = [
    "Config",
    "Descriptor",
    "Digest",
    "Healthcheck",
    "History",
    "Index",
    "Manifest",
    "MediaType",
    "Platform",
    "Reference",
    "Settings",
    "Verifier",
]
