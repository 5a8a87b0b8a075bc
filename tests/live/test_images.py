"""Containers of images: what an image says holds, and what it cannot do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sandbox
from sandbox import Bind, Container, ImageError, ImageNotFoundError, Status, Tmpfs, UsageError
from sandbox.cli import main
from sandbox.image import Healthcheck, Image, Settings, Store
from tests.rootfs import busybox, put_image, write_layer
from tests.support import known, needs, patience

pytestmark = [needs("userns", "program:busybox", "overlay"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]
Make = Callable[..., Image]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def make(tmp_path: Path, store: Store) -> Make:
    """Make the image "app" of busybox and of more layers: ``make({"file": "content"}, entrypoint=...)``."""
    base = busybox(tmp_path / "base")

    def image(*layers: dict[str, str | bytes | None], **settings: object) -> Image:
        trees = [write_layer(tmp_path / os.urandom(4).hex(), layer) for layer in layers]
        return put_image(store, "app", base, *trees, settings=Settings(**settings))  # type: ignore[arg-type]

    return image


def out(container: Container, script: str) -> str:
    return container.exec(["sh", "-c", script], text=True, check=True).stdout  # type: ignore[return-value]


# ---- Names ----


def test_a_name_an_id_and_an_image_are_the_same(make: Make, store: Store) -> None:
    image = make(labels=(("a", "b"),), exposed_ports=("80/tcp",))
    for said in ("app", "app:latest", "docker.io/library/app:latest", image.id.short, str(image.id), image):
        with Container(said, store=store) as c:
            assert (c.image, c.labels, c.exposed_ports) == (image, {"a": "b"}, ("80/tcp",))
            assert out(c, "id -u") == "0\n"
    with Container("app", store=store.path) as c:
        assert c.image == image


def test_what_is_not_in_the_store_is_an_error_with_the_remedy(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageNotFoundError, match="sandbox pull debian:12"):
        Container("debian:12", store=store)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "debian").mkdir()
    with pytest.raises(ImageNotFoundError):
        Container("debian", store=store)
    assert Container("./debian").image is None
    assert Container(Path("debian")).image is None
    (tmp_path / "org/app").mkdir(parents=True)
    assert Container("org/app").image is None
    for wrong in ("Debian", "debian:", "a b"):
        with pytest.raises(UsageError):
            Container(wrong, store=store)
    with pytest.raises(UsageError, match="is not an image"):
        Container(7)  # type: ignore[arg-type]


def test_a_name_that_moves_is_followed(make: Make, store: Store) -> None:
    first = make({"which": "1"})
    with Container("app", store=store) as c:
        assert out(c, "cat /which") == "1"
    make({"which": "2"})
    with Container("app", store=store) as c:
        assert out(c, "cat /which") == "2"
    with Container(first) as c:
        assert out(c, "cat /which") == "1"


def test_an_image_in_use_is_not_removed_and_one_that_is_gone_is_not_started(make: Make, store: Store) -> None:
    image = make()
    with Container(image), Container(image) as c:
        with pytest.raises(sandbox.ImageInUseError):
            store.remove("app")
        assert out(c, "echo x") == "x\n"
    waiting = Container("app", store=store)
    store.remove("app")
    with pytest.raises(ImageNotFoundError):
        waiting.create()


def test_containers_started_while_their_image_is_removed_run_or_fail_cleanly(make: Make, store: Store) -> None:
    for _ in range(5):
        image = make({"a": os.urandom(4).hex()})
        failures: list[BaseException] = []
        threads = [threading.Thread(target=_start_once, args=(image, failures)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            store.remove("app", force=True)
        except sandbox.ImageInUseError as error:
            failures.append(error)
        for thread in threads:
            thread.join()
        assert {type(error) for error in failures} <= {ImageNotFoundError, sandbox.ImageInUseError}


def _start_once(image: Image, failures: list[BaseException]) -> None:
    try:
        Container(image).create().close()
    except BaseException as error:
        failures.append(error)


# ---- What it says ----


def test_entrypoint_and_cmd_run_and_arguments_take_the_place_of_cmd(make: Make, store: Store) -> None:
    make(entrypoint=("echo", "-n"), cmd=("a", "b"))
    with Container("app", store=store) as c:
        assert (c.run().stdout, c.run(["c"], text=True).stdout, c.run([]).stdout) == (b"a b", "c", b"")
        assert c.command() == ["echo", "-n", "a", "b"]
        with c.popen(c.command(), stdout=sandbox.PIPE) as process:
            assert process.communicate()[0] == b"a b"
    make(cmd=("false",))
    with Container("app", store=store) as c:
        assert c.run().exit_code == 1
        with pytest.raises(UsageError, match="one string"):
            c.run("true")
    make()
    with Container("app", store=store) as c, pytest.raises(UsageError, match="neither ENTRYPOINT nor CMD"):
        c.run()
    with Container() as c:
        assert c.run(["echo", "x"]).stdout == b"x\n"
        with pytest.raises(UsageError, match="of no image"):
            c.run()


def test_env_workdir_and_user_hold_unless_the_caller_says_otherwise(make: Make, store: Store) -> None:
    make(env=("A=1", "B=x=y", "PATH=/bin", "NOTHING="), working_dir="/srv/new", user="app")
    with Container("app", store=store) as c:
        assert out(c, 'echo "$A $B $PATH $HOME $NOTHING"; pwd; id -u; stat -c %u .') == "1 x=y /bin /home/app \n/srv/new\n1000\n" + owner_of_root()
    with Container("app", store=store, env={"A": "2"}, cwd="/tmp", user="0:0") as c:
        assert out(c, "echo $A $B $HOME; pwd; id -u") == "2 x=y /root\n/tmp\n0\n"


def owner_of_root() -> str:
    """Who owns what init makes: with one id, there is nobody else."""
    return "0\n" if os.geteuid() == 0 else "1000\n"


@needs("root")
def test_groups_come_from_the_images_own_files(make: Make, store: Store) -> None:
    make({"etc/group": "root:x:0:\napp:x:1000:\nmany:x:1001:\nextra:x:2000:many\n"}, user="many")
    with Container("app", store=store) as c:
        assert out(c, "id -u; id -G") == "1001\n1001 2000\n"
    make(user="app:other")
    with Container("app", store=store) as c:
        assert out(c, "id -u; id -g; id -G") == "1000\n2001\n2001\n"


@needs("root")
@pytest.mark.parametrize(("user", "says"), [("1000", "1000 0"), ("0", "0 0"), ("1000:7", "1000 7"), ("zero", "0 0")])
def test_a_number_is_a_number_whatever_the_images_passwd_says(make: Make, store: Store, user: str, says: str) -> None:
    make({"etc/passwd": "1000:x:0:0::/root:/bin/sh\nzero:x:0:0::/root:/bin/sh\n"}, user=user)
    with Container("app", store=store) as c:
        assert out(c, "echo $(id -u) $(id -g)").strip() == says


@pytest.mark.parametrize("user", ["nobody-there", "4294967296", "2147483648", "-1", "app:nogroup", "a:b:c", ":"])
def test_a_user_that_is_none_is_refused(make: Make, store: Store, user: str) -> None:
    make(user=user)
    with Container("app", store=store) as c, pytest.raises(UsageError, match="user"):
        c.exec(["true"])


@pytest.mark.parametrize("kind", ["huge", "fifo", "link out", "link", "directory"])
def test_a_passwd_that_is_none_neither_hangs_nor_reads_a_file_of_the_host(tmp_path: Path, store: Store, kind: str) -> None:
    base = busybox(tmp_path / "base")
    evil = tmp_path / "evil"
    write_layer(evil, {"etc/": "", "secret": "app:x:77:77::/secret:/bin/sh\n"})
    passwd = evil / "etc/passwd"
    if kind == "huge":
        passwd.write_bytes(b"x:x:1:1::/:/bin/sh\n" * 400_000 + b"app:x:1000:1000::/home/app:/bin/sh\n")
    elif kind == "fifo":
        os.mkfifo(passwd)
    elif kind == "directory":
        passwd.mkdir()
    else:
        passwd.symlink_to("/etc/shadow" if kind == "link out" else "/secret")
    put_image(store, "evil", base, evil, settings=Settings(user="0"))
    put_image(store, "named", base, evil, settings=Settings(user="app"))
    began = time.monotonic()
    with Container("evil", store=store) as c:
        assert out(c, "grep Uid: /proc/self/status").split()[1] == "0"
    with Container("named", store=store) as c:
        try:
            uid = out(c, "grep Uid: /proc/self/status").split()[1]
        except UsageError:
            uid = "refused"
    # A link within the root is followed inside; as an ordinary user, 77 is not the container's one id.
    assert uid == ("77" if kind == "link" and os.geteuid() == 0 else "refused")
    assert time.monotonic() - began < 4


# ---- Volumes and the working directory ----


def test_volumes_have_the_images_content_and_can_be_written_to_in_a_read_only_root(make: Make, store: Store) -> None:
    image = make({"data/seed": "s", "other/seed": "o"}, volumes=("/data", "/fresh", "/sys/fs/cgroup", "/"), working_dir="/work")
    with Container("app", store=store, read_only=True, mounts=[Tmpfs("/other")]) as c:
        assert out(c, "cat /data/seed; echo x >/data/x; echo y >/fresh/y; cat /data/x; pwd; ls /other") == "sx\n/work\n"
        assert c.exec(["sh", "-c", "echo x >/work/x || echo x >/x"]).exit_code != 0
    with Container(image, mounts=[Tmpfs("/data")]) as c:
        assert out(c, "ls /data; cat /other/seed") == "o"


@pytest.mark.parametrize("target", ["/proc", "/", "../../..", "/dev", "/etc", "/sys"])
def test_a_volume_or_workdir_that_is_a_link_leads_nowhere_out_of_the_root(make: Make, store: Store, tmp_path: Path, target: str) -> None:
    make({"evil": f"-> {target}"}, volumes=("/evil", "/evil/canary"), working_dir="/evil/canary2")
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    try:
        with Container("app", store=store, read_only=True, mounts=[Bind(canary, "/canary-file", read_only=True)]) as c:
            assert c.exec(["sh", "-c", "echo x >/proc/sys/kernel/hostname || echo x >/new || echo x >/canary-file"]).exit_code != 0
            assert out(c, "cat /proc/self/comm; cat /proc/timer_list /proc/keys 2>/dev/null | wc -c") == "cat\n0\n"
    except sandbox.SetupError as error:
        assert "/evil" in str(error)
    assert canary.read_text() == "untouched"
    assert not list(Path("/").glob("canary*"))


def test_what_no_container_can_be_is_an_image_error(make: Make, store: Store) -> None:
    for settings in ({"working_dir": "/proc/self/fd/7/x"}, {"env": ("=1",)}, {"volumes": tuple(f"/v{n}" for n in range(200))}):
        make(**settings)
        with pytest.raises((ImageError, UsageError)):
            Container("app", store=store)


@needs("root")
def test_root_of_an_image_has_dockers_capabilities_less_three_and_no_more(make: Make, store: Store) -> None:
    make()
    with Container("app", store=store) as c:
        bits = int(out(c, "grep CapEff /proc/self/status").split()[1], 16)
        assert bits == sandbox.sec.capabilities.DEFAULT
        assert not bits & (1 << 27 | 1 << 13 | 1 << 29)
        assert out(c, "grep CapInh /proc/self/status; grep CapAmb /proc/self/status").split()[1::2] == ["0" * 16] * 2


# ---- Ending and looking ----


def test_stop_sends_the_images_signal_and_kills_what_does_not_listen(make: Make, store: Store) -> None:
    make(stop_signal="SIGUSR1")
    with Container("app", store=store) as c:
        assert c.stop() is True
        with c.popen(["sh", "-c", "trap 'echo bye; exit 7' USR1; echo up; while :; do sleep 0.01; done"], stdout=sandbox.PIPE) as polite:
            assert known(polite.stdout).readline() == b"up\n"
            assert c.stop(10) is True
            assert (polite.wait().exit_code, known(polite.stdout).read()) == (7, b"bye\n")
        with c.popen(["sh", "-c", "trap '' USR1 TERM; echo up; while :; do sleep 0.01; done"], stdout=sandbox.PIPE) as deaf:
            assert known(deaf.stdout).readline() == b"up\n"
            began = time.monotonic()
            assert c.stop(0.2) is False
            assert time.monotonic() - began < patience(20)
            assert deaf.wait().status in (Status.SIGNALED, Status.KILLED)
        assert out(c, "echo on") == "on\n"
    with pytest.raises(sandbox.ClosedError):
        c.stop()


@pytest.mark.parametrize(("signal", "number"), [("", 15), ("TERM", 15), ("sigint", 2), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)])
def test_a_stop_signal_is_a_name_or_a_number(signal: str, number: int) -> None:
    from sandbox._imaged.stopping import to_number

    assert to_number(signal) == number
    for wrong in ("SIGNOTHING", "0", "65", "999", "SIG", "_BLOCK", "SIG_BLOCK", "RTMIN+99"):
        with pytest.raises(ImageError):
            to_number(wrong)


def test_health_is_what_the_images_check_says(make: Make, store: Store) -> None:
    make(healthcheck=Healthcheck(("CMD-SHELL", "echo looked; test -e /tmp/ready"), interval=0.02))
    with Container("app", store=store) as c:
        assert not c.health().ok
        with pytest.raises(TimeoutError, match="looked"):
            c.wait_healthy(2.0)  # in which one check at least has ended
        threading.Timer(0.1, lambda: c.write_bytes("/tmp/ready", b"")).start()
        assert c.wait_healthy(20).ok
        assert c.health().stdout == b"looked\n"
    make(healthcheck=Healthcheck(("CMD", "sleep", "9"), timeout=0.05))
    with Container("app", store=store) as c:
        assert c.health().status is Status.TIMEOUT
    for check in (None, Healthcheck(("NONE",))):
        make(healthcheck=check)
        with Container("app", store=store) as c, pytest.raises(UsageError, match="no HEALTHCHECK"):
            c.health()


# ---- The command line ----


@pytest.fixture
def command(store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``sandbox run`` in this process, with the test's own store."""
    monkeypatch.setenv("SANDBOX_IMAGES", store.path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["run", "--no-interactive", *arguments])
        return code, *capfd.readouterr()

    return run


def test_run_image_runs_what_the_image_says_or_the_command_line(make: Make, command: Callable[..., tuple[int, str, str]]) -> None:
    make(entrypoint=("echo", "-n"), cmd=("a",), env=("A=1",))
    assert command("--image", "app") == (0, "a", "")
    assert command("--image", "app", "--", "b", "c") == (0, "b c", "")
    assert command("--image", "app", "--entrypoint", "sh", "--", "-c", "echo $A; exit 3") == (3, "1\n", "")
    assert command("--image", "app", "--entrypoint", "", "--", "pwd") == (0, "/\n", "")
    assert command("--image", "app", "--entrypoint", "sh", "--read-only", "--", "-c", "echo x >/x")[0] == 1
    code, out_, _ = command("--image", "app", "--explain")
    assert (code, "NewOverlay" in out_, "run ('echo', '-n', 'a')" in out_) == (0, True, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--image", "nothing:1"], 125, "sandbox pull nothing:1"),
        (["--image", "app", "--root", "/"], 125, "one of the two"),
        (["--image", "./app"], 125, "--root"),
        (["--entrypoint", "sh", "true"], 2, "only with --image"),
        (["--pull", "always", "true"], 2, "only with --image"),
        (["--image", "app", "--pull", "sometimes"], 2, "sometimes"),
    ],
)
def test_what_run_image_refuses(command: Callable[..., tuple[int, str, str]], arguments: list[str], code: int, says: str) -> None:
    got, _, told = command(*arguments)
    assert (got, says in told) == (code, True), told


def test_an_image_is_pulled_when_that_is_asked_for(make: Make, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pull(name: str) -> Image:
        asked.append(name)
        return make(cmd=("echo", "pulled"))

    monkeypatch.setattr("sandbox.image.pull", pull)
    assert command("--image", "app")[0] == 125
    assert [command("--image", "app", "--pull", when)[1] for when in ("missing", "missing", "always", "never")] == ["pulled\n"] * 4
    assert asked == ["app", "app"]


# ---- Other faces ----


@pytest.mark.usefixtures("libuv_has_its_pipe")
def test_the_same_words_are_awaited_in_asyncio(make: Make, store: Store, aio_run: Callable[..., None], tmp_path: Path) -> None:
    make(entrypoint=("echo",), cmd=("a",), healthcheck=Healthcheck(("CMD", "true")), labels=(("l", "1"),), exposed_ports=("80/tcp",))

    async def main() -> None:
        async with sandbox.aio.Container("app", store=store) as c:
            assert ((await c.run()).stdout, (await c.run(["b"], text=True)).stdout, c.command()) == (b"a\n", "b\n", ["echo", "a"])
            assert ((await c.health()).ok, (await c.wait_healthy(5)).ok, await c.stop(5)) == (True, True, True)
            await c.exec(["sh", "-c", "echo x >/new"], check=True)
            assert [str(change) for change in await c.diff()] == ["A /new"]
            made = await c.commit("made", changes=['CMD ["b"]'])
            await c.export(tmp_path / "root.tar")
            assert (c.image is not None, c.labels, c.exposed_ports) == (True, {"l": "1"}, ("80/tcp",))
        async with sandbox.aio.Container(made) as c:
            assert (await c.run()).stdout == b"b\n"
            assert (await c.exec(["cat", "/new"])).stdout == b"x\n"

    aio_run(main())


def test_a_pool_has_containers_of_an_image(make: Make, store: Store) -> None:
    image = make({"which": "1"})
    with sandbox.Pool(image, size=1) as pool:
        for _ in range(3):
            assert pool.exec(["cat", "/which"]).stdout == b"1"
        with pytest.raises(sandbox.ImageInUseError):
            store.remove("app")
    store.remove("app")
