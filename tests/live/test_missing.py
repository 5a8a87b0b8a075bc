"""Hosts that lack things: either the fallback works with a real container and a real program, or the error names what is missing."""

from __future__ import annotations

import json

import pytest

from tests.refused import python_without
from tests.support import needs

pytestmark = [needs("userns"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]

ASK = """
import json, os, sandbox
before = len(os.listdir("/proc/self/fd"))
try:
    result = sandbox.run(["echo", "hi"])
    print(json.dumps(["ran", result.stdout.decode()]))
except sandbox.UnsupportedError as error:
    print(json.dumps([error.feature, str(error), len(os.listdir("/proc/self/fd")) - before]))
"""


# --- what there is a substitute for


def test_without_clone3_clone_makes_the_container() -> None:
    done = python_without("clone3", ASK)
    assert json.loads(done.stdout) == ["ran", "hi\n"], done.stderr


@needs("root", "cgroup-v1", "cgroup:memory", "cgroup:pids")
def test_without_clone3_limits_of_v1_hold() -> None:
    code = """
import sandbox
with sandbox.Container(memory="64M", pids=16) as c:
    for _ in range(3):
        r = c.exec(["sh", "-c", "x=$(head -c 200M /dev/zero | tr '\\\\0' a)"])
        print(r.status.name)
    print(c.exec(["true"], memory="32M").ok, c.degraded)
"""
    done = python_without("clone3", code)
    *statuses, last = done.stdout.splitlines()
    assert statuses == ["MEMORY_LIMIT"] * 3, done.stderr
    assert last == "True ()"


@needs("root")
def test_without_clone3_a_namespace_can_be_joined_before_the_clone() -> None:
    code = """
import os, sandbox
with sandbox.Container() as a, sandbox.Container(net=a) as b:
    print(len({os.readlink(f"/proc/{c.pid}/ns/net") for c in (a, b)}), b.exec(["true"]).ok)
"""
    done = python_without("clone3", code)
    assert done.stdout == "1 True\n", done.stderr


@pytest.mark.parametrize("calls", ["epoll_pwait2 sched_setaffinity", "clone3 epoll_pwait2"])
def test_calls_of_convenience_are_not_needed(calls: str) -> None:
    done = python_without(calls, ASK)
    assert json.loads(done.stdout) == ["ran", "hi\n"], done.stderr
