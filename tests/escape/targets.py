"""Who is attacked: this library, or with ``--against`` another tool, behind one small interface.

A `Target` runs one program of the attacker's and gives back what it wrote. Each is used as its own documentation has it for programs that are not
trusted, without hardening by hand: bwrap with ``--unshare-all``, runc with what ``runc spec`` writes, docker with its defaults and no network.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, field, frozen

import sandbox
from sandbox import Bind, Container, Security, Tmpfs
from tests.support import patience

_serial = itertools.count()
APPLETS = "[ cat chmod chown cp dd echo env false find grep head id ln ls mkdir mkfifo mount mv ps readlink rm rmdir sh sleep stat tail touch tr true umount wc"
PATIENCE_S = patience(60.0)


class Refused(Exception):  # noqa: N818 - no error: to refuse is a fine answer to an attack
    """The container was not started at all."""


class NotApplicable(Exception):  # noqa: N818
    """This target has no such thing."""


@frozen
class Outcome:
    """What came of one program. *died_of*: the signal that ended the tool itself, or None."""

    stdout: bytes
    stderr: bytes = b""
    exit_code: int | None = 0
    died_of: int | None = None

    @property
    def lines(self) -> list[str]:
        return self.stdout.decode(errors="replace").splitlines()

    @property
    def answers(self) -> dict[str, str]:
        """The lines ``NAME: ANSWER`` of an attack."""
        return dict(line.rsplit(": ", 1) for line in self.lines if ": " in line)

    @property
    def successes(self) -> list[str]:
        """What the attacker was allowed."""
        return [line for line in self.lines if line.rpartition(": ")[2].startswith(("ALLOWED", "REACHED", "UNLIMITED"))]


@define
class Target:
    """Runs programs in containers with *attacks* at /attacks, and a file system in memory at /tmp. *root*: a directory with a few programs."""

    attacks: Path
    root: Path
    scratch: Path
    said: list[bytes] = field(factory=list)  # everything that came out, for the search for secrets
    refused: str = ""
    name: ClassVar[str] = ""
    is_ours: ClassVar[bool] = False

    def run(
        self,
        argv: Sequence[str],
        *,
        root: Path | None = None,
        cwd: str = "/",
        user: str | None = None,
        memory: int | None = None,
        pids: int | None = None,
        mounts: Mapping[str, Path] | None = None,
        timeout: float = PATIENCE_S,
        stdin: int | None = None,
    ) -> Outcome:
        """Run *argv*; *mounts*: directories of the host by their place inside, read-only.

        Raises: Refused: it was not started; NotApplicable.
        """
        options: dict[str, Any] = {"cwd": cwd, "user": user, "memory": memory, "pids": pids, "mounts": mounts or {}, "timeout": timeout, "stdin": stdin}
        try:
            outcome = self._run(list(argv), root, **options)
        except Refused as reason:
            self.refused = str(reason)
            raise
        self.said += [outcome.stdout, outcome.stderr]
        return outcome

    def _run(self, argv: list[str], root: Path | None, **options: Any) -> Outcome:
        raise NotImplementedError

    def close(self) -> None:
        """Stop what belongs to the target itself."""


# --- this library -----------------------------------------------------------------------------------------------------


@define
class OursView(Target):
    """A view of the host, as an ordinary user: the default."""

    name: ClassVar[str] = "view"
    is_ours: ClassVar[bool] = True
    options: ClassVar[dict[str, Any]] = {}

    def _run(self, argv: list[str], root: Path | None, **options: Any) -> Outcome:
        mounts = [Bind(self.attacks, "/attacks", read_only=True), Tmpfs("/tmp")]
        mounts += [Bind(source, place, read_only=True) for place, source in options.pop("mounts").items()]
        user = options.pop("user")
        with _refusals(), Container(self._root(root), mounts=mounts, user=user, **self.options) as c:
            result = c.exec(argv, **{name: value for name, value in options.items() if value is not None})
        return Outcome(result.stdout, result.stderr, result.exit_code)

    def _root(self, root: Path | None) -> Path | None:
        return root


@define
class OursImage(OursView):
    """A directory as the root, as root inside, with the capabilities that images get: the strongest attacker that is let in by default."""

    name: ClassVar[str] = "image"

    def _root(self, root: Path | None) -> Path:
        return root or self.root


@define
class OursWeakened(OursImage):
    """Every wall taken down that has a switch: shows that the attacks can succeed. What is left is the user namespace."""

    name: ClassVar[str] = "weakened"
    options: ClassVar[dict[str, Any]] = {
        "security": Security(seccomp=False, landlock=False, masks=False, nesting=True, no_new_privs=False, cap_add=["ALL"]),
        "net": "host",
    }


@contextlib.contextmanager
def _refusals() -> Any:
    try:
        yield
    except (sandbox.SetupError, sandbox.UsageError) as error:
        raise Refused(str(error)) from error


# --- others -----------------------------------------------------------------------------------------------------------


def run_tool(command: Sequence[str], *, stdin: int | None, timeout: float, failed: Callable[[int, bytes], bool], **more: Any) -> Outcome:
    """Run a tool as its user would. In a session of its own: a program that kills its process group must not meet ours.

    A terminal as *stdin* becomes that session's own, as in a shell.
    """
    source = subprocess.DEVNULL if stdin is None else stdin
    has_terminal = stdin is not None and os.isatty(stdin)
    if has_terminal:
        command = ["setsid", "--ctty", *command]
    # Descriptors that are inheritable reach the tool, as they reach the programs of this library's launcher.
    process = subprocess.Popen(
        command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, close_fds=False, start_new_session=not has_terminal, **more
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
    code = process.returncode
    if failed(code, stderr) and not stdout:
        raise Refused((stderr.decode(errors="replace").strip().splitlines() or [f"exit code {code}"])[-1][:200])
    return Outcome(stdout, stderr, code if code >= 0 else None, -code if code < 0 else None)


@define
class BwrapTarget(Target):
    name: ClassVar[str] = "bwrap"

    def _run(self, argv: list[str], root: Path | None, **options: Any) -> Outcome:
        if options["memory"] or options["pids"]:
            raise NotApplicable("bwrap has no limits")
        command = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", str(root or self.root), "/", "--proc", "/proc", "--dev", "/dev"]
        command += ["--ro-bind", str(self.attacks), "/attacks", "--tmpfs", "/tmp", "--chdir", options["cwd"]]
        for place, source in options["mounts"].items():
            command += ["--ro-bind", str(source), place]
        if options["user"] is not None:
            command += ["--uid", _number(options["user"])]
        return run_tool(
            [*command, "--", *argv], stdin=options["stdin"], timeout=options["timeout"], failed=lambda code, said: code != 0 and said.startswith(b"bwrap:")
        )


@define
class RuncTarget(Target):
    name: ClassVar[str] = "runc"

    def _run(self, argv: list[str], root: Path | None, **options: Any) -> Outcome:
        bundle = Path(tempfile.mkdtemp(dir=self.scratch))
        subprocess.run(["runc", "spec"], cwd=bundle, check=True, close_fds=True)
        path = bundle / "config.json"
        config = json.loads(path.read_text())
        config["root"]["path"] = str(root or self.root)
        config["process"] |= {"terminal": False, "args": argv, "cwd": options["cwd"]}
        if options["user"] is not None:
            config["process"]["user"] = {"uid": int(_number(options["user"])), "gid": 0}
        binds = {"/attacks": self.attacks, **options["mounts"]}
        config["mounts"] += [{"destination": place, "source": str(source), "options": ["bind", "ro"]} for place, source in binds.items()]
        config["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "size=64m"]})
        resources = config["linux"].setdefault("resources", {})
        if options["memory"]:
            resources["memory"] = {"limit": options["memory"], "swap": options["memory"]}
        if options["pids"]:
            resources["pids"] = {"limit": options["pids"]}
        path.write_text(json.dumps(config))
        name = f"attack-{os.getpid()}-{next(_serial)}"
        state = str(self.scratch / "runc")
        try:
            command = ["runc", "--root", state, "run", "--bundle", str(bundle), name]
            return run_tool(
                command, stdin=options["stdin"], timeout=options["timeout"], failed=lambda code, said: code != 0 and b"level=error" in said
            )
        finally:
            subprocess.run(["runc", "--root", state, "delete", "--force", name], capture_output=True, check=False)
            shutil.rmtree(bundle)


@define
class DockerTarget(Target):
    """Docker, with a daemon for this session alone: its own store, socket and state, no bridge, no packet filter rules."""

    name: ClassVar[str] = "docker"
    _daemon: subprocess.Popen[bytes] | None = None
    _images: dict[Path, str] = field(factory=dict)

    @property
    def _client(self) -> list[str]:
        return ["docker", "--config", f"{self.scratch}/config", "--host", f"unix://{self.scratch}/socket"]

    def start(self) -> None:
        places = ["--data-root", f"{self.scratch}/data", "--exec-root", f"{self.scratch}/exec", "--pidfile", f"{self.scratch}/pid"]
        command = ["dockerd", *places, "--host", f"unix://{self.scratch}/socket", "--bridge=none", "--iptables=false", "--ip-forward=false"]
        with open(self.scratch / "log", "wb") as log:
            self._daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + PATIENCE_S
        while subprocess.run([*self._client, "version"], capture_output=True, check=False).returncode != 0:
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError(f"dockerd did not start: {(self.scratch / 'log').read_text()[-2000:]}")
            time.sleep(0.1)  # its socket is there before it listens: there is nothing to wait on

    def close(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()  # its containerd is its child, and goes with it
            self._daemon.wait(PATIENCE_S)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (place := line.split()[1]).startswith(f"{self.scratch}/"):
                subprocess.run(["umount", "--lazy", place], check=False)

    def _image(self, root: Path) -> str:
        if root not in self._images:
            name = f"attack-{next(_serial)}"
            with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
                subprocess.run([*self._client, "import", "-", name], stdin=tar.stdout, capture_output=True, check=True)
            self._images[root] = name
        return self._images[root]

    def _run(self, argv: list[str], root: Path | None, **options: Any) -> Outcome:
        command = [*self._client, "run", "--rm", "--network", "none", "--tmpfs", "/tmp", "--volume", f"{self.attacks}:/attacks:ro"]
        command += ["--workdir", options["cwd"]]
        for place, source in options["mounts"].items():
            command += ["--volume", f"{source}:{place}:ro"]
        for option in ("user", "memory"):
            command += [f"--{option}", str(options[option])] if options[option] is not None else []
        command += ["--memory-swap", str(options["memory"])] if options["memory"] else []
        command += ["--pids-limit", str(options["pids"])] if options["pids"] else []
        command += ["--interactive"] if options["stdin"] is not None else []
        return run_tool(
            [*command, self._image(root or self.root), *argv],
            stdin=options["stdin"],
            timeout=options["timeout"],
            failed=lambda code, said: code in {125, 126, 127} and b"docker: " in said,
        )


def _number(user: str) -> str:
    if not user.lstrip("-").isdigit():
        raise NotApplicable("takes numbers only")
    return user


OURS = ("view", "image")
PEERS = ("bwrap", "runc", "docker", "weakened")
KINDS: dict[str, type[Target]] = {kind.name: kind for kind in (OursView, OursImage, OursWeakened, BwrapTarget, RuncTarget, DockerTarget)}
NEEDS = {"bwrap": ("program:bwrap",), "runc": ("root", "program:runc"), "docker": ("root", "program:docker", "program:dockerd")}


def make_root(path: Path) -> Path:
    """Fill *path* with what a shell script needs: one static program under many names."""
    for directory in ("bin", "etc", "tmp", "proc", "sys", "dev", "attacks", "host"):
        (path / directory).mkdir(parents=True, exist_ok=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("no busybox")
    shutil.copyfile(busybox, path / "bin" / "busybox")
    (path / "bin" / "busybox").chmod(0o755)
    for applet in APPLETS.split():
        if not (path / "bin" / applet).is_symlink():
            (path / "bin" / applet).symlink_to("busybox")
    (path / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (path / "etc" / "group").write_text("root:x:0:\n")
    return path
