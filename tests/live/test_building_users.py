"""Whoever may make containers may build: an ordinary user too."""

from __future__ import annotations

import shutil

import pytest

import sandbox
from sandbox.builder._tree import Tree
from sandbox.image import Store
from tests.support import needs

pytestmark = [needs("userns", "overlay", "program:busybox"), pytest.mark.unprivileged]
TEXT = b"""FROM scratch AS base
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /etc /tmp && echo "root:x:0:0::/root:/bin/sh" > /etc/passwd
FROM base
RUN --mount=type=cache,target=/c --mount=source=src,target=/s --mount=type=secret,id=s --mount=type=secret,id=s,target=/k \\
  echo x >> /c/n; cat /c/n /s/f /run/secrets/s /k > /all; rm /bin/wget; id -u
WORKDIR /w
COPY --from=base /etc/passwd .
RUN cat passwd
"""


def test_an_image_is_built_and_is_whole(tmp_path):
    shutil.copy(shutil.which("busybox"), tmp_path / "busybox")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_text("data\n")
    store, told = Store(tmp_path / "store"), []
    image = sandbox.build(tmp_path, dockerfile=TEXT, store=store, secrets={"s": "secret\n"}, progress=told.append)
    assert b"".join(event.data for event in told).decode().split() == ["0", "root:x:0:0::/root:/bin/sh"]
    tree = Tree(list(image.layers), layered=True)
    assert tree.read("all", 100) == b"x\ndata\nsecret\nsecret\n"
    assert tree.find("bin/wget") is None
    assert store.verify() == []
    assert sandbox.build(tmp_path, dockerfile=TEXT, store=store, secrets={"s": "other"}).id == image.id


def test_steps_run_as_the_user_that_the_image_names(tmp_path):
    shutil.copy(shutil.which("busybox"), tmp_path / "busybox")
    text = TEXT.partition(b"FROM base\n")[0].decode() + (
        'RUN echo "app:x:7:7::/home/app:/bin/sh" >> /etc/passwd\n'
        "USER app\nWORKDIR /home/app\nCOPY --chown=app busybox own\n"
        "RUN --mount=type=secret,id=s,uid=7 --mount=type=secret,id=s,uid=7,target=/k "
        "id -u; echo $HOME; cat /run/secrets/s /k; rm own; echo x > mine\nUSER root\nRUN id -u; cat /home/app/mine\n"
    )
    told = []
    sandbox.build(tmp_path, dockerfile=text.encode(), store=Store(tmp_path / "store"), secrets={"s": "secret\n"}, progress=told.append)
    assert b"".join(event.data for event in told).decode().split() == ["7", "/home/app", "secret", "secret", "0", "x"]
