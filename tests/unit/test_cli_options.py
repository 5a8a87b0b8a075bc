"""What the options of `sandbox run` mean, without starting anything."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import Bind, Container, Rlimits, SandboxError, Security, Tmpfs, UsageError, Volume
from sandbox.cli import options
from sandbox.cli.arguments import build, parse
from sandbox.cli.parser import WrongUseError

pytestmark = pytest.mark.unprivileged
PROGRAM = ["--", "true"]


def request(*words: str, environ: dict[str, str] | None = None) -> options.Request:
    return options.to_request(parse([*words, *PROGRAM]), environ or {})


def container(*words: str) -> dict[str, Any]:
    return dict(request(*words).container)


# Every option, with a value that is not the default.
EXAMPLES = {
    "--memory": "64M",
    "--memory-swap": "64M",
    "--cpus": "0.5",
    "--cpuset-cpus": "0",
    "--pids-limit": "7",
    "--ulimit": "nofile=64",
    "--shm-size": "1M",
    "--timeout": "3",
    "--cpu-time": "3",
    "--output-limit": "1K",
    "--env": "A=b",
    "--env-file": "/dev/null",
    "--workdir": "/tmp",
    "--user": "5",
    "--hostname": "box",
    "--network": "host",
    "--ipc": "host",
    "--uts": "host",
    "--cgroupns": "host",
    "--dns": "10.0.0.53",
    "--dns-search": "example.org",
    "--add-host": "db:10.0.0.9",
    "--name": "web",
    "--tty": None,
    "--no-interactive": None,
    "--root": "/usr",
    "--read-only": None,
    "--scratch": "1M",
    "--volume": "/usr:/mnt",
    "--mount": "type=tmpfs,target=/mnt",
    "--tmpfs": "/mnt",
    "--profile": "strict",
    "--cap-add": "CHOWN",
    "--cap-drop": "CHOWN",
    "--security-opt": "nesting",
    "--best-effort": None,
    "--json": "-",
    "--report": None,
    "--explain": None,
}
SAME = {"--interactive", "--help"}  # the default, and what never gets here
REFUSED = {"--pid", "--userns"}  # but for "private"
OF_IMAGES = {"--image", "--entrypoint", "--pull"}
OF_NETWORKS = {"--network-alias", "--ip", "--ip6", "--mac-address", "--publish", "--publish-all", "--link"}  # only with a network: test_cli_networks
OF_DETACHED = {"--detach", "--rm", "--restart", "--label", "--log-size"}  # test_keep_pieces
OF_HEALTH = {  # test_keep_health
    "--health-cmd", "--health-interval", "--health-timeout", "--health-start-period", "--health-start-interval", "--health-retries",
    "--no-healthcheck",
}  # fmt: skip
WITHOUT_EFFECT = {"--env-file"}  # of an empty file


def test_no_option_is_forgotten() -> None:
    names = {action.option_strings[0] for action in build()._actions if action.option_strings}
    assert names == (EXAMPLES.keys() | SAME | OF_IMAGES | REFUSED | OF_NETWORKS | OF_DETACHED | OF_HEALTH) - {"--no-interactive"}


def test_namespaces_are_the_hosts_or_its_own() -> None:
    assert container("--ipc", "host", "--uts=host", "--cgroupns", "host")["share"] == {"ipc": "host", "uts": "host", "cgroup": "host"}
    for words in (["--ipc", "private"], ["--ipc=shareable"], ["--uts", ""], ["--pid", "private"], ["--userns=private"], ["--cgroupns", "private"]):
        assert "share" not in container(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pid", "host"], "PID 1.*sandbox exec"),
        (["--pid", "container:web"], "PID 1.*sandbox exec"),
        (["--userns", "host"], "user namespace of its own"),
        (["--ipc", "none"], "none of private, shareable, host or container:NAME"),
        (["--uts", "shareable"], "none of private, host or container:NAME"),
        (["--cgroupns", "container:web"], "none of private or host"),
        (["--uts", "container:no-such-container"], "no-such-container"),
    ],
)
def test_namespaces_that_are_not_offered_are_refused_with_what_is(words: list[str], said: str) -> None:
    with pytest.raises(SandboxError, match=said):
        container(*words)


def test_the_options_of_images_have_their_meaning() -> None:
    changed = request("--image", "app", "--entrypoint", "sh", "--pull", "always")
    assert (changed.image, changed.entrypoint, changed.pull, changed.container["image"]) == ("app", "sh", "always", "app")
    assert "read_only" not in changed.container


@pytest.mark.parametrize("name", EXAMPLES.keys() - WITHOUT_EFFECT)
def test_no_option_is_ignored(name: str) -> None:
    value = EXAMPLES[name]
    base = ["--memory", "32M"] if name == "--memory-swap" else []
    changed = request(*base, name, *([] if value is None else [value]))
    assert changed != request(*base)
    Container(**changed.container)  # what is asked for is something that containers know


@pytest.mark.parametrize("pair", [("-m", "--memory"), ("-e", "--env"), ("-w", "--workdir"), ("-u", "--user"), ("-h", "--hostname"), ("-v", "--volume")])
def test_short_names(pair: tuple[str, str]) -> None:
    short, long = pair
    assert request(short, EXAMPLES[long] or "") == request(long, EXAMPLES[long] or "")


def test_options_end_at_the_program() -> None:
    for arguments in (["-it", "ls", "-l", "--", "--memory"], ["-it", "--", "ls", "-l", "--", "--memory"]):
        parsed = parse(arguments)
        assert parsed.program == ["ls", "-l", "--", "--memory"]
        assert (parsed.tty, parsed.memory) == (True, None)


@pytest.mark.parametrize("arguments", [[], ["--"], ["--memory"], ["--nonsense", "ls"], ["--mem", "64M", "ls"], ["--tty=yes", "ls"]])
def test_a_wrong_shape_is_wrong_use(arguments: list[str]) -> None:
    with pytest.raises(WrongUseError):
        parse(arguments)


def test_memory_and_swap_are_dockers() -> None:
    assert container("--memory", "64M", "--memory-swap", "100M")["swap"] == 36 << 20
    assert container("--memory", "64M")["swap"] is None
    for words in (["--memory-swap", "1G"], ["--memory", "64M", "--memory-swap", "32M"], ["--memory", "64M", "--memory-swap", "-1"]):
        with pytest.raises(UsageError, match=r"^--memory-swap"):
            request(*words)


@pytest.mark.parametrize(("text", "seconds"), [("3", 3.0), ("1.5", 1.5), ("500ms", 0.5), ("2m", 120.0), ("1h", 3600.0), (".5s", 0.5)])
def test_times(text: str, seconds: float) -> None:
    assert options.to_time("--timeout", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0", "-1", "s", "3x", "3sm", "1e3", "nan", "inf", "1..5", ".", "٣", "3 s", "0.0"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--timeout: "):
        options.to_time("--timeout", text)


@given(st.integers(1, 10**6), st.sampled_from(["", "K", "M", "G", "k", "mb", "GiB"]))
def test_sizes_are_the_librarys(number: int, unit: str) -> None:
    power = {"": 0, "k": 1, "m": 2, "g": 3}[unit[:1].lower()]
    assert options.to_bytes("--scratch", f"{number}{unit}") == number << 10 * power


def test_a_wrong_size_names_the_option() -> None:
    with pytest.raises(UsageError, match=r"^--output-limit: 'lots' is not a size"):
        request("--output-limit", "lots")


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/usr:/mnt", Bind("/usr", "/mnt")),
        ("/usr:/mnt:rw", Bind("/usr", "/mnt")),
        ("/usr:/mnt:ro", Bind("/usr", "/mnt", read_only=True)),
        (".:/mnt", Bind(".", "/mnt")),
        ("cache:/mnt:ro", Volume("cache", "/mnt", read_only=True)),
        ("/mnt", Volume(None, "/mnt")),
    ],
)
def test_volumes(text: str, mount: object) -> None:
    assert options.volume(text) == mount


@pytest.mark.parametrize("text", ["", ":", "usr", "/usr:", ":/mnt", "/usr:/mnt:", "/usr:/mnt:z", "/usr:/mnt:ro,rw", "/usr:/mnt:ro:x", "/usr:mnt", "/usr:/../mnt", "/no/such:/mnt", "!:/mnt"])
def test_what_is_no_volume(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--volume"):
        options.volume(text)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("type=bind,source=/usr,target=/mnt", Bind("/usr", "/mnt")),
        ("type=bind,src=/usr,dst=/mnt,ro", Bind("/usr", "/mnt", read_only=True)),
        ("type=bind,src=/usr,destination=/mnt,readonly=true", Bind("/usr", "/mnt", read_only=True)),
        ("type=bind,src=/usr,dst=/mnt,readonly=false,bind-recursive=disabled", Bind("/usr", "/mnt", recursive=False)),
        ("source=cache,target=/mnt", Volume("cache", "/mnt")),
        ("type=volume,source=cache,target=/mnt,ro", Volume("cache", "/mnt", read_only=True)),
        ("type=tmpfs,target=/mnt", Tmpfs("/mnt")),
        ("type=tmpfs,dst=/mnt,tmpfs-size=1M,tmpfs-mode=0700", Tmpfs("/mnt", size="1M", mode=0o700)),
    ],
)
def test_mounts(text: str, mount: object) -> None:
    assert options.mount(text) == mount


@pytest.mark.parametrize(
    "text",
    ["", "type=bind", "type=bind,source=/usr", "type=bind,target=/mnt", "type=npipe,target=/x", "type=bind,src=/usr,dst=/mnt,volume-opt=x", "bind",
     "type=tmpfs,source=/usr,target=/mnt", "type=tmpfs,target=/mnt,tmpfs-mode=9", "type=bind,src=/usr,dst=/mnt,readonly=maybe",
     "type=bind,src=/usr,dst=/mnt,bind-recursive=maybe", "type=bind,src=/no/such,dst=/mnt", "type=bind,src=/usr,dst=mnt"],
)  # fmt: skip
def test_what_is_no_mount(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--mount"):
        options.mount(text)


def test_tmpfs() -> None:
    assert options.tmpfs("/x") == Tmpfs("/x")
    assert options.tmpfs("/x:size=1M,mode=755,nr_inodes=100,rw,nosuid") == Tmpfs("/x", size="1M", mode=0o755, inodes=100)
    for text in ("", "x", "/x:1M", "/x:exec", "/x:size=", "/x:mode=8", "/x:size=lots", "/proc/x", "/x:nr_inodes=k"):
        with pytest.raises(UsageError, match=r"^--tmpfs"):
            options.tmpfs(text)


def test_variables(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("A=1\n  # comment\nB=2\r\nPASSED\nMISSING\n\n")
    (tmp_path / "b").write_text("B=3")
    found = options.environment(["C=4", "A="], [str(tmp_path / "a"), str(tmp_path / "b")], {"PASSED": "on", "OTHER": "no"})
    assert found == {"A": "", "B": "3", "PASSED": "on", "C": "4"}
    for bad in ("", "=x", "A B=x"):
        with pytest.raises(UsageError, match=r"^--env"):
            options.environment([bad], [], {})


def test_ulimits() -> None:
    assert options.ulimits([]) is None
    assert options.ulimits(["nofile=64:128", "core=-1", "as=1G", "stack=unlimited"]) == Rlimits(
        nofile=(64, 128), core="unlimited", as_="1G", stack="unlimited"
    )
    for bad in ("nofile", "nofile=", "nofile=1:", "nofile=2:1", "nofile=x", "nothing=1", "as_=1", "=1"):
        with pytest.raises(UsageError, match=r"^--ulimit"):
            options.ulimits([bad])


@pytest.mark.parametrize(
    ("words", "security"),
    [
        ([], Security()),
        (["--profile", "strict"], Security("strict")),
        (["--cap-drop", "ALL", "--cap-add", "CHOWN"], Security(cap_drop=("ALL",), cap_add=("CHOWN",))),
        (["--security-opt", "no-new-privileges"], Security()),
        (["--security-opt", "no-new-privileges:true"], Security()),
        (["--security-opt", "no-new-privileges=false"], Security(no_new_privs=False)),
        (["--security-opt", "seccomp=unconfined", "--security-opt", "landlock=off"], Security(seccomp=False, landlock=False)),
        (["--security-opt", "systempaths=unconfined"], Security(masks=False)),
    ],
)
def test_security(words: list[str], security: Security) -> None:
    assert container(*words)["security"] == security


@pytest.mark.parametrize("option", ["", "x", "seccomp=profile.json", "no-new-privileges=maybe", "apparmor=unconfined", "label=disable", "nesting=false"])
def test_what_is_no_security_option(option: str) -> None:
    with pytest.raises(UsageError, match=r"^--security-opt"):
        request("--security-opt", option)


def test_the_view_of_the_host_is_read_only_with_a_tmp() -> None:
    assert container() == {**container(), "read_only": True, "mounts": [Tmpfs("/tmp")]}
    assert container("--tmpfs", "/tmp:size=1M")["mounts"] == [Tmpfs("/tmp", size="1M")]
    assert container("--read-only")["mounts"] == []
    assert "read_only" not in container("--root", "/usr")
    assert container("--root", "name")["image"] == "./name", "never the name of an image"
    with pytest.raises(UsageError, match=r"^--scratch"):
        request("--read-only", "--scratch", "1M")


def test_contradictions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^--output-limit"):
        request("--tty", "--output-limit", "1K")


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12), max_size=4))
def test_any_words_give_a_request_or_a_complaint(words: list[str]) -> None:
    for option, word in itertools.product(("--mount", "--volume", "--tmpfs", "--ulimit", "--env", "--security-opt", "--memory", "--timeout"), words):
        try:
            request(f"{option}={word}")
        except UsageError as error:
            assert str(error)


@pytest.mark.parametrize("option", ["--mount", "--memory", "--volume"])
def test_two_dashes_are_no_value(option: str) -> None:
    with pytest.raises(UsageError, match=option):
        request(f"{option}=--")
