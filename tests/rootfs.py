"""Small images by hand, of busybox (linked statically), for tests that need something to run.

`write_layer` makes a layer as the store has it unpacked; `busybox` one that a shell and the usual tools are in.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

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
