"""The kernel's overlay over unpacked layers shows what the layers say, and what it notes in an upper directory is packed as that."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import needs
from tests.tars import archive, directory, file, symlink, unpacked

pytestmark = needs("root", "overlay", "program:unshare")

LOWER = archive(
    directory(b"./", 0o755),
    file(b"kept", b"lower"), file(b"gone", b"lower"), file(b"replaced", b"lower"),
    file(b"opaque/old", b"lower"), file(b"merged/old", b"lower"), file(b"made-anew/old", b"lower"), file(b"removed/old", b"lower"),
    symlink(b"link", b"kept"),
)  # fmt: skip
UPPER = archive(
    directory(b"./", 0o755),
    file(b".wh.gone"), file(b"replaced", b"upper"), file(b"opaque/.wh..wh..opq"), file(b"opaque/new", b"upper"), file(b"merged/new", b"upper"),
    directory(b"made-anew"), file(b".wh.made-anew"), file(b"made-anew/new", b"upper"), file(b".wh.removed"), file(b".wh.link"),
)  # fmt: skip
SHOWN = {"kept", "replaced", "opaque", "opaque/new", "merged", "merged/old", "merged/new", "made-anew", "made-anew/new"}


def run(script: str, at: Path) -> set[str]:
    """Run *script* in a mount namespace of its own; the names that it prints."""
    done = subprocess.run(["unshare", "--mount", "sh", "-ec", script], cwd=at, stdout=subprocess.PIPE, check=True, text=True)
    return {name.removeprefix("./") for name in done.stdout.split()}


def test_the_kernel_shows_what_layers_say(tmp_path: Path) -> None:
    unpacked(LOWER, tmp_path / "lower")
    unpacked(UPPER, tmp_path / "upper")
    (tmp_path / "merged").mkdir()
    script = "mount -t overlay overlay -o userxattr,lowerdir=upper:lower merged; cd merged; find . -mindepth 1"
    assert run(script, tmp_path) == SHOWN


@pytest.mark.parametrize("option", ["userxattr", "xino=auto"], ids=["user", "trusted"])
def test_what_the_kernel_notes_is_packed_as_what_layers_say(tmp_path: Path, option: str) -> None:
    """Removed, replaced and made anew by programs in an overlay; packed, unpacked, and put over the same lower layer again."""
    from sandbox.image.pack import pack

    unpacked(LOWER, tmp_path / "lower")
    for name in ("merged", "changes", "work"):
        (tmp_path / name).mkdir()
    change = (
        f"mount -t overlay overlay -o {option},lowerdir=lower,upperdir=changes,workdir=work merged; cd merged;"
        "rm gone link; echo upper >replaced; rm -r opaque made-anew removed; mkdir opaque made-anew; touch opaque/new made-anew/new merged/new"
    )
    run(change, tmp_path)
    pieces: list[bytes] = []
    fd = os.open(tmp_path / "changes", os.O_RDONLY)
    try:
        pack(fd, pieces.append)
    finally:
        os.close(fd)
    unpacked(b"".join(pieces), tmp_path / "again")
    show = "mount -t overlay overlay -o userxattr,lowerdir=again:lower merged; cd merged; find . -mindepth 1"
    assert run(show, tmp_path) == SHOWN
