"""Images: their names, documents, and where they are kept. It knows nothing of containers: it hands out paths of layers."""

from __future__ import annotations

from sandbox.image._blobs import BlobWriter
from sandbox.image._http import Patience
from sandbox.image._leases import Lease
from sandbox.image.archives import load, save
from sandbox.image.bootstrap import bootstrap
from sandbox.image.changes import apply_changes
from sandbox.image.credentials import Credentials, CredentialStore
from sandbox.image.digest import Digest, Verifier
from sandbox.image.documents import Config, Descriptor, Healthcheck, History, Index, Manifest, MediaType, Platform, Settings
from sandbox.image.images import Fault, HistoryRow, Image, Pruned, Removed, Step, Usage, UsageRow
from sandbox.image.progress import Progress, Stage
from sandbox.image.reference import Reference
from sandbox.image.rootfs import export, import_rootfs
from sandbox.image.store import Store, Use
from sandbox.image.tar import UnpackLimits
from sandbox.image.transfer import login, logout, pull, push, tags

__all__ = [
    "BlobWriter",
    "Config",
    "CredentialStore",
    "Credentials",
    "Descriptor",
    "Digest",
    "Fault",
    "Healthcheck",
    "History",
    "HistoryRow",
    "Image",
    "Index",
    "Lease",
    "Manifest",
    "MediaType",
    "Patience",
    "Platform",
    "Progress",
    "Pruned",
    "Reference",
    "Removed",
    "Settings",
    "Stage",
    "Step",
    "Store",
    "UnpackLimits",
    "Usage",
    "UsageRow",
    "Use",
    "Verifier",
    "apply_changes",
    "bootstrap",
    "export",
    "import_rootfs",
    "load",
    "login",
    "logout",
    "pull",
    "push",
    "save",
    "tags",
]
