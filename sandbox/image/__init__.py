"""Images: their names, documents, and where they are kept. It knows nothing of containers: it hands out paths of layers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sandbox.image._blobs import BlobWriter
    from sandbox.image._bootstrap import bootstrap
    from sandbox.image._http import Patience
    from sandbox.image._leases import Lease
    from sandbox.image.archives import load, save
    from sandbox.image.changes import apply_changes
    from sandbox.image.credentials import Credentials, CredentialStore
    from sandbox.image.digest import Digest, Verifier
    from sandbox.image.documents import Config, Descriptor, Healthcheck, History, Index, Manifest, MediaType, Platform, Settings
    from sandbox.image.images import Image, Step
    from sandbox.image.outcomes import Fault, HistoryRow, Pruned, Removed, Usage, UsageRow
    from sandbox.image.progress import Progress, Stage
    from sandbox.image.reference import Reference
    from sandbox.image.rootfs import export, import_rootfs
    from sandbox.image.store import Store, Use
    from sandbox.image.tar import UnpackLimits
    from sandbox.image.transfer import login, logout, pull, push, tags

_HOMES: Final = {  # a module, and the public names that are at home there
    "_blobs": "BlobWriter",
    "_http": "Patience",
    "_leases": "Lease",
    "archives": "load save",
    "_bootstrap": "bootstrap",
    "changes": "apply_changes",
    "credentials": "Credentials CredentialStore",
    "digest": "Digest Verifier",
    "documents": "Config Descriptor Healthcheck History Index Manifest MediaType Platform Settings",
    "images": "Image Step",
    "outcomes": "Fault HistoryRow Pruned Removed Usage UsageRow",
    "progress": "Progress Stage",
    "reference": "Reference",
    "rootfs": "export import_rootfs",
    "store": "Store Use",
    "tar": "UnpackLimits",
    "transfer": "login logout pull push tags",
}
_HOME_OF: Final = {name: module for module, names in _HOMES.items() for name in names.split()}

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


def __getattr__(name: str) -> object:
    """Load a public name at its first use: what only keeps images needs no HTTP, no archives, and `sandbox build` of nothing new is quick."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sandbox.image' has no attribute {name!r}")
    value: object = getattr(import_module(f"sandbox.image.{_HOME_OF[name]}"), name)
    globals()[name] = value  # the next use finds it there
    return value
