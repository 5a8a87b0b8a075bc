"""RUN: commands in containers, their mounts, users, limits, failures; and what becomes of it when somebody is killed amid a build."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from sandbox.builder import EventKind, build
from sandbox.builder._tree import Tree
from sandbox.errors import DockerfileError, UnsupportedError
from sandbox.image import Store
from tests.support import needs

pytestmark = [needs("root", "overlay", "idmap", "program:busybox")]
BASE = """\
FROM scratch AS base
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /etc /tmp && echo "root:x:0:0::/root:/bin/sh" > /etc/passwd && echo "app:x:7:7::/:/bin/sh" >> /etc/passwd
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("images") / "store")


@pytest.fixture
def context(tmp_path):
    shutil.copy(shutil.which("busybox"), tmp_path / "busybox")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_text("data\n")
    return tmp_path


@pytest.fixture
def make(context, store):
    def make(text: str, **options):
        told = []
        image = build(context, dockerfile=(BASE + text).encode(), store=store, progress=told.append, **options)
        return image, b"".join(event.data for event in told).decode(), [event.kind for event in told]

    return make


def read(image, path: str) -> str:
    return Tree(list(image.layers), layered=True).read(path, 10_000).decode()


def test_commands_run_in_the_image_so_far(make):
    image, output, _ = make('ARG V=1\nENV A=$V\nRUN echo "$A $V" > /x; id -u; pwd; echo $HOME\nSHELL ["/bin/sh", "-ec"]\nRUN rm /x; echo y > /y\n')
    assert output.split() == ["0", "/", "/root"]
    assert read(image, "y") == "y\n"
    assert Tree(list(image.layers), layered=True).find("x") is None


def test_heredocs_are_scripts_or_input(make):
    image, _, _ = make(
        "RUN <<EOF\nset -e\necho one > /one\nEOF\nRUN <<EOF\n#!/bin/busybox sh\necho by $0 > /two\nEOF\nENV A=3\nRUN cat <<A <<'B' > /three\nx\nA\n$A\nB\n"
    )
    assert [read(image, name) for name in ("one", "three")] == ["one\n", "$A\n"]
    assert read(image, "two").startswith("by /dev/")


def test_users_and_directories_hold(make):
    image, output, _ = make("USER app\nWORKDIR /home/app\nRUN id -u; pwd; echo mine > x\n")
    assert output.split() == ["7", "/home/app"]
    found = Tree(list(image.layers), layered=True).find("home/app/x")
    assert found is not None
    assert found.status.st_uid == 7


def test_mounts_are_there_and_leave_nothing(make, context):
    (context / ".dockerignore").write_text("src/hidden")
    (context / "src" / "hidden").write_text("no")
    text = """FROM base
RUN --mount=type=cache,target=/cache,id=n --mount=type=tmpfs,target=/t,size=1M --mount=source=src,target=/src \\
  --mount=from=base,source=/etc/passwd,target=/p --mount=type=secret,id=s --mount=type=secret,id=s,target=/etc/s,mode=0444 \\
  --mount=type=secret,id=s,env=SEC --mount=source=src,target=/rw,rw sh -c 'echo x >> /cache/n; ls /src; cat /run/secrets/s /etc/s; echo $SEC; \\
  head -n1 /p; touch /src/y 2>/dev/null || echo closed; touch /rw/y && echo open; touch /t/y'
"""
    image, output, _ = make(text, secrets={"s": "topsecret\n"})
    assert output.split() == ["f", "topsecret", "topsecret", "topsecret", "root:x:0:0::/root:/bin/sh", "closed", "open"]
    tree = Tree(list(image.layers), layered=True)
    assert not any(tree.find(path) for path in ("cache/n", "t/y", "src/f", "etc/s", "run/secrets/s", "rw/y"))
    assert not (context / "src" / "y").exists()
    for layer in image.layers:
        assert subprocess.run(["grep", "-rq", "topsecret", layer], check=False).returncode == 1
    count, _, _ = make("RUN --mount=type=cache,target=/c,id=n cat /c/n > /count\n"), None, None
    assert read(count[0], "count") == "x\n"


def test_a_cache_begins_with_what_a_stage_has_and_goes_on_from_there(make):
    stage = "FROM base AS seed\nRUN mkdir -p /s/in && echo {0} > /s/in/f && chown -R 7:7 /s/in\nFROM base\n"
    run = "RUN --mount=type=cache,id=begins,target=/c,from=seed,source=/s/in ls /c; cat /c/f; stat -c %u /c /c/f; echo {0} > /c/{0}\n"
    assert make(stage.format("one") + run.format("a"))[1].split() == ["f", "one", "7", "7"]
    assert make(stage.format("one") + run.format("b"))[1].split() == ["a", "f", "one", "7", "7"]
    assert make(stage.format("two") + run.format("c"))[1].split() == ["f", "two", "7", "7"]  # it begins with something else, and is another one
    emptied = run.format("d").replace("ls /c;", "rm -r /c/*; ls /c;").replace("cat /c/f;", "").replace(" /c/f;", ";")
    assert make(stage.format("one") + emptied)[1].split() == ["7"]
    assert make(stage.format("one") + run.format("e").replace("cat /c/f;", ":;").replace(" /c/f;", ";"))[1].split() == ["d", "7"]  # once, and not again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("target=/c,source=/x", "what from= names"),
        ("target=/c,from=base,mode=0700", "owner and mode of that"),
        ("target=/c,from=base,source=/etc/passwd", "is a file"),
        ("target=/c,from=base,source=/no", "no file or directory"),
    ],
)
def test_a_cache_that_begins_with_nothing_is_refused(make, options, message):
    with pytest.raises(DockerfileError, match=message):
        make(f"FROM base\nRUN --mount=type=cache,{options} true\n")


def test_secrets_that_are_needed_and_not_there_are_refused(make):
    with pytest.raises(DockerfileError, match="no secret 's'"):
        make("RUN --mount=type=secret,id=s,required true\n")
    with pytest.raises(UnsupportedError, match="no agent"):
        make("RUN --mount=type=ssh true\n")


def test_mounts_are_named_as_buildkit_names_them(make):
    _, output, _ = make(
        "RUN --mount=type=secret,src=d/s,ro cat /run/secrets/s\nRUN --mount=type=SECRET,source=d/s,target=/x,mode=0 stat -c %a /x\n"
        "RUN --mount=type=cache,target=/c,id=rw,rw --mount=type=tmpfs,target=/t,rw touch /c/x /t/x\n"
        "RUN --mount=type=cache,target=/c,id=rw,rw=false,sharing=LOCKED ls /c; touch /c/y 2>/dev/null || echo closed\n",
        secrets={"d/s": "word\n"},
    )
    assert output.split() == ["word", "0", "x", "closed"]
    for options, message in (("id=a,source=b", "the same"), ("id=a,ro=false", "never written")):
        with pytest.raises(DockerfileError, match=message):
            make(f"RUN --mount=type=secret,{options} true\n")


def test_a_command_that_fails_says_where_and_how(make):
    with pytest.raises(DockerfileError, match="exit code 3") as caught:
        make("RUN true\nRUN echo lost; exit 3\n")
    assert caught.value.line == BASE.count("\n") + 2
    assert caught.value.result is not None
    assert caught.value.result.exit_code == 3
    with pytest.raises(DockerfileError, match="nothere"):
        make('RUN ["nothere"]\n')


def test_limits_hold(make):
    with pytest.raises(DockerfileError) as caught:
        make("RUN sleep 100\n", timeout=0.3)
    assert caught.value.result is not None
    assert caught.value.result.status.name == "TIMEOUT"


@needs("cgroup:memory")
def test_memory_is_limited(make):
    with pytest.raises(DockerfileError) as caught:
        make("RUN head -c 100000000 /dev/zero | tail -c 90000000 > /dev/null\n", memory="32M")
    assert caught.value.result is not None
    assert caught.value.result.status.name == "MEMORY_LIMIT"


def test_there_is_no_network_unless_it_is_asked_for(make):
    _, output, _ = make("RUN ls /sys/class/net\n")
    assert output.split() == ["lo"]
    with pytest.raises(DockerfileError, match="was not given the host's network"):
        make("RUN --network=host true\n")


def test_what_is_part_of_the_key_and_what_is_not(make, context):
    text = "ARG V\nARG HTTP_PROXY\nRUN --mount=source=src,target=/s --mount=type=secret,id=s cat /s/f > /x\n"

    def was_cached(**options) -> bool:
        return EventKind.CACHED in make(text, **{"secrets": {"s": "1"}, **options})[2][-4:]

    was_cached()
    assert was_cached()
    assert was_cached(secrets={"s": "2"})
    assert was_cached(build_args={"HTTP_PROXY": "http://p"})
    assert not was_cached(build_args={"V": "1"})
    (context / "src" / "f").write_text("other\n")
    assert not was_cached()
    assert not was_cached(no_cache=True)


def test_stages_are_built_at_once(make, context):
    """Each waits for the other one's mark in a cache that both have."""
    wait = "RUN --mount=type=cache,id={0},target=/c touch /c/{1}; until [ -e /c/{2} ]; do sleep 0.01; done\n"
    mark = f"both-{os.getpid()}-{time.monotonic_ns()}"
    text = f"FROM base AS one\n{wait.format(mark, 1, 2)}FROM base AS two\n{wait.format(mark, 2, 1)}FROM one\nCOPY --from=two /etc/passwd /p\n"
    image, _, _ = make(text, timeout=60)
    assert read(image, "p").startswith("root")


def test_the_failure_of_a_stage_ends_what_others_run(make):
    begin = time.monotonic()
    with pytest.raises(DockerfileError, match="exit code 1"):
        make("FROM base AS a\nRUN sleep 1000\nFROM base AS b\nRUN sleep 0.5; false\nFROM a\nCOPY --from=b / /\n")
    assert time.monotonic() - begin < 60


def test_with_an_epoch_times_of_what_commands_wrote_are_clamped(make):
    image, _, _ = make("RUN echo x > /x\n", build_args={"SOURCE_DATE_EPOCH": "1700000000"})
    found = Tree(list(image.layers), layered=True).find("x")
    assert found is not None
    assert found.status.st_mtime == 1_700_000_000


def test_no_image_of_a_step_is_left(make, store):
    make("RUN echo y > /z\n", tags=["kept"])
    assert all(image.names or not dict(image.settings.labels) for image in store.images())


SCRIPT = """
import sys
from sandbox.builder import build
from sandbox.image import Store
print("begin", flush=True)
build(sys.argv[1], dockerfile=sys.argv[2].encode(), store=Store(sys.argv[3]), no_cache=True, tags=["killed"])
"""


def test_a_build_that_is_killed_leaves_a_store_that_is_whole(context, tmp_path):
    text = BASE + "RUN echo x > /x\nCOPY src /src\nRUN rm -r /src\nADD src /y/\n"
    store = Store(tmp_path / "store")
    began = time.monotonic()
    build(context, dockerfile=text.encode(), store=store)
    whole = time.monotonic() - began
    moments = random.Random(5)
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", SCRIPT, str(context), text, store.path], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"begin\n"
        timer = threading.Timer(moments.uniform(0, whole * 1.2), child.send_signal, [signal.SIGKILL])
        timer.start()
        child.wait()
        timer.cancel()
        child.stdout.close()
        assert store.verify() == []
    image = build(context, dockerfile=text.encode(), store=store, no_cache=True, tags=["whole"])
    assert read(image, "y/f") == "data\n"
    assert store.verify() == []
    assert os.listdir(os.path.join(store.path, "builds")) == []


@pytest.mark.parametrize("interrupts", [1, 3])
def test_an_interrupted_build_says_nothing_and_leaves_nothing(context, store, interrupts):
    (context / "Dockerfile").write_text(BASE + "RUN echo it runs; sleep 600\n")
    command = [sys.executable, "-m", "sandbox", "build", "--progress", "plain", str(context)]
    environment = {**os.environ, "SANDBOX_IMAGES": store.path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True) as process:
        assert process.stderr is not None
        assert any(line.endswith("] it runs\n") for line in process.stderr)
        for _ in range(interrupts):
            process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "")
    assert os.listdir(os.path.join(store.path, "builds")) == []
    assert store.verify() == []
