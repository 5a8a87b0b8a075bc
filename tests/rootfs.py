"""Small images by hand, of busybox (linked statically), for tests that need something to run.

`write_layer` makes a layer as the store has it unpacked; `busybox` one that a shell and the usual tools are in; `put_image` an image of such.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from sandbox.image import Config, Descriptor, Image, Manifest, MediaType, Platform, Reference, Settings, Store
from sandbox.image.pack import pack

APPLETS = "[ cat chmod chown cp cut dd echo env false find grep head id kill ln ls mkdir mkfifo mv nc ps pwd readlink rm rmdir sed sh sleep sort stat tail test touch tr true wc"
PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:App:/home/app:/bin/sh\nmany:x:1001:1001::/home/many:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1000:\nmany:x:1001:\nextra:x:2000:many\nother:x:2001:app,many\n"
GONE = None  # instead of a file's content: a whiteout


def write_layer(directory: Path, files: Mapping[str, str | bytes | None]) -> Path:
    """Make *directory* with *files*: a text or bytes; `GONE`; a name that ends in "/" is a directory; ``"-> target"`` a link."""
    directory.mkdir(parents=True)
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            os.mknod(path, 0o20000, 0)
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif isinstance(content, str) and content.startswith("-> "):
            path.symlink_to(content[3:])
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return directory


def busybox(directory: Path, files: Mapping[str, str | bytes | None] | None = None) -> Path:
    """A layer that can run something by itself, and *files*."""
    write_layer(directory, {"etc/passwd": PASSWD, "etc/group": GROUP, "tmp/": "", "root/": "", **(files or {})})
    (directory / "bin").mkdir(exist_ok=True)
    program = shutil.which("busybox")
    assert program is not None, "the test needs program:busybox"
    shutil.copy(program, directory / "bin/busybox")
    for applet in APPLETS.split():
        (directory / "bin" / applet).symlink_to("busybox")
    (directory / "tmp").chmod(0o1777)
    return directory


def put_image(store: Store, name: str, *trees: Path, settings: Settings | None = None) -> Image:
    """Make an image of directories as `write_layer` and `busybox` make them, the lowest first."""
    owner = None if os.geteuid() == 0 else (0, 0)
    descriptors: list[Descriptor] = []
    with store.lease() as lease:
        for tree in trees:
            directory = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
            with store.write_blob(lease) as writer:
                digest = pack(directory, writer.write, owner=owner)
                writer.commit()
            os.close(directory)
            blob = store.open_blob(digest)
            store.unpack_layer(lease, digest, blob, MediaType.OCI_LAYER)
            os.close(blob)
            descriptors.append(Descriptor(MediaType.OCI_LAYER, digest, store.blob_size(digest)))
        config = Config(Platform.of_this_machine(), tuple(one.digest for one in descriptors), settings or Settings()).encode()
        store.put_document(lease, config)
        manifest = Manifest(Descriptor.of(MediaType.OCI_CONFIG, config), tuple(descriptors)).encode()
        return store.add_image(lease, store.put_document(lease, manifest), [Reference.parse(name)])
