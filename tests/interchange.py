"""Images to and from skopeo, umoci, podman and docker: what each case is, and the programs, run with directories of their own.

``python -m tests.interchange`` carries all cases out, as root, and writes the table of docs/reference/interchange.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from sandbox import Container
from sandbox.image import Image, Settings, Store, export, import_rootfs, load, save
from tests.support import why_not

NAME: Final = "registry.example/interchange/box:1"
ZSTD_NAME: Final = "registry.example/interchange/zstd:1"
SAID: Final = "one\ntwo\n"
COMMAND: Final = ("/bin/sh", "-c", "cat /data/one /data/link && test ! -e /data/gone")
PATHS: Final = {"docker": "docker-archive:{0}", "oci": "oci-archive:{0}", "oci-dir": "oci:{0}"}  # as skopeo and podman call them
Listing = dict[str, tuple[object, ...]]


# ---- The image, and what it should look like ----


def put_root(root: Path) -> None:
    """A root to run something in: one program, and files of all kinds."""
    for name in ("bin", "data", "etc", "tmp", "proc", "dev", "sys"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    for name in ("sh", "cat", "test", "ls", "[", "true"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (root / "data/one").write_text("one\n")
    (root / "data/two").write_text("two\n")
    (root / "data/link").symlink_to("two")
    os.link(root / "data/one", root / "data/hard")
    (root / "data/odd \u00e9").write_bytes(bytes(200_000))
    (root / "data/private").write_text("")
    os.chown(root / "data/private", 1000, 1001)
    (root / "data/private").chmod(0o4750)
    (root / "tmp").chmod(0o1777)
    for path in (*root.rglob("*"), root):
        os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)


def of_tar(data: bytes) -> Listing:
    """What a tar of a root says, but for the root directory itself; hard links as the file that they are."""
    found: Listing = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            name = os.path.normpath(info.name)
            if info.islnk():
                found[name] = found[os.path.normpath(info.linkname)]
            elif name != ".":
                file = tar.extractfile(info) if info.isreg() else None
                content = hashlib.sha256(file.read()).hexdigest() if file else info.linkname
                found[name] = (info.isdir(), 0 if info.issym() else info.mode, info.uid, info.gid, content)
    return found


def of_directory(root: Path) -> Listing:
    """The same of a directory."""
    found: Listing = {}
    for path in root.rglob("*"):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        mode = 0 if path.is_symlink() else stat.S_IMODE(status.st_mode)
        found[str(path.relative_to(root))] = (stat.S_ISDIR(status.st_mode), mode, status.st_uid, status.st_gid, content)
    return found


# ---- The programs ----


def call(*argv: str | Path, data: bytes | None = None, cwd: Path | None = None) -> str:
    """Run a program to its end, and give what it said. Raises: AssertionError: it failed; with its words."""
    stdin = {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
    done = subprocess.run([str(word) for word in argv], capture_output=True, check=False, timeout=100, cwd=cwd, **stdin)
    assert done.returncode == 0, f"{argv[0]}: {done.stderr.decode()[-1000:]}"
    return done.stdout.decode()


@define
class Workshop:
    """A directory, a store with the image in it, and the programs with places of their own below it."""

    path: Path
    store: Store = field(init=False)
    image: Image = field(init=False)
    expected: Listing = field(init=False)
    docker_host: str | None = None
    _podman_run: str | None = None
    _stack: contextlib.ExitStack = field(factory=contextlib.ExitStack)

    def __attrs_post_init__(self) -> None:
        put_root(self.path / "root")
        self.expected = of_directory(self.path / "root")
        self.store = Store(self.path / "store")
        self.image = import_rootfs(self.path / "root", NAME, settings=Settings(cmd=COMMAND, env=("PATH=/bin",)), store=self.store)

    def close(self) -> None:
        """Stop what was started."""
        self._stack.close()

    def saved(self, form: str) -> str:
        """The image as we save it."""
        target = self.path / f"ours-{form}"
        if not target.exists():
            save([NAME], target, format=form, store=self.store)
        return str(target)

    def reference(self, form: str) -> str:
        """The same in skopeo's words. Relative: podman makes a name of a path, and not each path is one."""
        return PATHS[form].format(os.path.basename(self.saved(form))) + ("" if form == "docker" else ":1")

    def new(self, name: str) -> Path:
        """A path for a program's output, with nothing there."""
        return Path(tempfile.mkdtemp(dir=self.path)) / name

    def podman(self, *words: str | Path, data: bytes | None = None) -> str:
        """Run podman with a storage of its own."""
        if self._podman_run is None:  # it takes 50 characters at most
            self._podman_run = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="podman-", dir="/tmp"))
        own = ["--root", self.path / "podman", "--runroot", self._podman_run, "--storage-driver", "vfs"]
        return call("podman", *own, "--events-backend=file", "--cgroup-manager=cgroupfs", "--runtime=runc", *words, data=data, cwd=self.path)

    def docker(self, *words: str | Path, data: bytes | None = None) -> str:
        """Run docker with a daemon of its own, started when it is first needed."""
        if self.docker_host is None:
            self.docker_host = self._stack.enter_context(_daemon(self.path / "docker"))
        return call(_client(), "-H", self.docker_host, *words, data=data)

    def check_loaded(self, source: Path, name: str | None = None) -> None:
        """Load what another program wrote into a store of its own: it is all there, and runs."""
        store = Store(self.new("store"))
        image = next(image for image in load(source, name=name, store=store) if image.settings.cmd == COMMAND)
        buffer = io.BytesIO()
        export(image, buffer, store=store)
        _same(of_tar(buffer.getvalue()), self.expected)
        with Container(image, store=store) as container:
            found = container.run()
        assert (found.ok, found.stdout.decode()) == (True, SAID), found


def _same(found: Listing, expected: Listing) -> None:
    differing = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
    assert not differing, {name: (found.get(name), expected.get(name)) for name in differing}


def _client() -> str:
    """The client that came with the daemon, if there is one beside it."""
    return "/usr/bin/docker" if os.path.exists("/usr/bin/docker") else "docker"


@contextlib.contextmanager
def _daemon(path: Path) -> Iterator[str]:
    path.mkdir()
    host = f"unix://{path}/socket"
    options = ["--data-root", path / "data", "--exec-root", path / "exec", "--pidfile", path / "pid", "-H", host, "--storage-driver=vfs"]
    network = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
    with open(path / "log", "wb") as log:
        daemon = subprocess.Popen(["dockerd", *map(str, options), *network], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _await_answer(daemon, path, host)
        yield host
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)


def _await_answer(daemon: subprocess.Popen[bytes], path: Path, host: str) -> None:
    deadline = time.monotonic() + 60
    while subprocess.run([_client(), "-H", host, "info"], capture_output=True, check=False).returncode:
        assert daemon.poll() is None, (path / "log").read_text()[-1000:]
        assert time.monotonic() < deadline, "dockerd does not answer"
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(0.05)


# ---- What we write ----


def skopeo_reads(shop: Workshop, form: str) -> None:
    """Copied, with all digests checked, it has the same configuration."""
    target = shop.new("copy")
    call("skopeo", "copy", "-q", shop.reference(form), f"dir:{target}", cwd=shop.path)
    assert (target / shop.image.id.hex).exists()


def umoci_reads(shop: Workshop, form: str) -> None:
    """Unpacked, it is the same tree."""
    bundle = shop.new("bundle")
    call("umoci", "unpack", "--image", f"{shop.saved(form)}:1", bundle)
    _same(of_directory(bundle / "rootfs"), shop.expected)


def podman_runs(shop: Workshop, form: str) -> None:
    """Loaded under its name, it says what it should."""
    with contextlib.suppress(AssertionError):
        shop.podman("rmi", "-f", "-a")
    if form == "oci-dir":
        shop.podman("pull", "-q", shop.reference(form))
    else:
        shop.podman("load", "-q", "-i", shop.saved(form))
    found = shop.podman("images", "--no-trunc", "-q").split()
    assert found == [str(shop.image.id)]
    if form != "oci-dir":
        assert shop.podman("images", "--format", "{{.Repository}}:{{.Tag}}").split() == [NAME]
    limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]  # podman asks for more than a container of its own has
    assert shop.podman("run", "--rm", "--network=none", *limits, shop.image.id.hex) == SAID


def docker_runs_zstd(shop: Workshop, form: str) -> None:
    """As `docker_runs`, with layers that came compressed in a way that it cannot read."""
    target = shop.new("zstd")
    call("skopeo", "copy", "-q", "--dest-compress-format=zstd", shop.reference("docker"), f"oci:{target}:{ZSTD_NAME}", cwd=shop.path)
    (image,) = load(target, store=shop.store)
    assert "zstd" in shop.store.read_document(image.manifest).decode()
    save([ZSTD_NAME], target / "saved", format=form, store=shop.store)
    shop.docker("load", "-q", "-i", target / "saved")
    assert shop.docker("run", "--rm", "--network=none", ZSTD_NAME) == SAID


def docker_runs(shop: Workshop, form: str) -> None:
    """Loaded under its name, it says what it should."""
    shop.docker("load", "-q", "-i", shop.saved(form))
    assert shop.docker("images", "--no-trunc", "-q", NAME).split() == [str(shop.image.id)]
    assert shop.docker("run", "--rm", "--network=none", NAME) == SAID


# ---- What they write ----


def skopeo_writes(shop: Workshop, form: str) -> None:
    """What it copies into another form, we load and run."""
    target = shop.new("written")
    call("skopeo", "copy", "-q", shop.reference("docker"), PATHS[form].format(target) + (f":{NAME}" if form != "oci-dir" else ":1"), cwd=shop.path)
    shop.check_loaded(target, "box")


def umoci_writes(shop: Workshop, form: str) -> None:
    """What it packs into a layout, we load and run."""
    layout, bundle = shop.new("layout"), shop.new("bundle")
    call("umoci", "init", "--layout", layout)
    call("umoci", "new", "--image", f"{layout}:1")
    call("umoci", "config", "--image", f"{layout}:1", *(f"--config.cmd={word}" for word in COMMAND))
    call("umoci", "unpack", "--image", f"{layout}:1", bundle)
    call("cp", "-a", f"{shop.path}/root/.", bundle / "rootfs")
    call("umoci", "repack", "--image", f"{layout}:1", bundle)
    shop.check_loaded(layout, "box")


def podman_writes(shop: Workshop, form: str) -> None:
    """What it saves, we load and run."""
    shop.podman("load", "-q", "-i", shop.saved("docker"))
    target = shop.new("written")
    shop.podman("save", "-q", "--format", {"docker": "docker-archive", "oci": "oci-archive"}.get(form, form), "-o", target, NAME)
    shop.check_loaded(target)


def docker_hands_on(shop: Workshop, form: str) -> None:
    """What it loaded from us and saves again, with layers that it has put together anew, we load and run."""
    shop.docker("load", "-q", "-i", shop.saved(form))
    target = shop.new("written")
    shop.docker("save", "-o", target, NAME)
    shop.check_loaded(target)


def docker_writes(shop: Workshop, form: str) -> None:
    """What it imports and saves: two images with a layer in common, which is a link in the second one's place; we load and run."""
    tar = subprocess.run(["tar", "-c", "-C", shop.path / "root", "."], capture_output=True, check=True).stdout
    change = "CMD [" + ",".join(f'"{word}"' for word in COMMAND) + "]"
    shop.docker("import", "-", "base:1", data=tar)
    container = shop.docker("create", "--network=none", "base:1", "true").strip()
    shop.docker("commit", "-c", change, container, "derived:1")
    target = shop.new("written")
    shop.docker("save", "-o", target, "base:1", "derived:1")
    shop.check_loaded(target)


@frozen
class Case:
    """One cell of the table."""

    program: str
    direction: str
    form: str
    carry_out: Callable[[Workshop, str], None]

    def __str__(self) -> str:
        return f"{self.program} {self.direction} {self.form}"

    @property
    def lacks(self) -> str:
        """Why it cannot be tried here; "" when it can."""
        programs = {"docker": ["dockerd", "skopeo"], "podman": ["podman", "runc"]}.get(self.program, [self.program])
        return "; ".join(f"{name}: {why}" for name in (*programs, "busybox") if (why := why_not(f"program:{name}")))


FORMS: Final = ("docker", "oci", "oci-dir")
CASES: Final = (
    *(Case("skopeo", "reads", form, skopeo_reads) for form in FORMS),
    Case("umoci", "reads", "oci-dir", umoci_reads),
    *(Case("podman", "runs", form, podman_runs) for form in FORMS),
    Case("docker", "runs", "docker", docker_runs),
    Case("docker", "runs zstd", "docker", docker_runs_zstd),
    *(Case("skopeo", "writes", form, skopeo_writes) for form in FORMS),
    Case("umoci", "writes", "oci-dir", umoci_writes),
    *(Case("podman", "writes", form, podman_writes) for form in FORMS),
    Case("docker", "writes", "docker", docker_writes),
    Case("docker", "hands on", "docker", docker_hands_on),
)


# ---- The table ----

HEADINGS: Final = {"docker": "`docker`", "oci": "`oci`", "oci-dir": "`oci-dir`"}
ROWS: Final = (
    ("skopeo", "reads", "skopeo copies what we save, and checks all digests"),
    ("umoci", "reads", "umoci unpacks what we save: the same tree"),
    ("podman", "runs", "podman loads (or pulls) and runs what we save, under its name and id"),
    ("docker", "runs", "docker loads and runs what we save, under its name and id"),
    ("docker", "runs zstd", "docker loads and runs what we save of an image that came with layers of zstd"),
    ("skopeo", "writes", "we load and run what skopeo copies"),
    ("umoci", "writes", "we load and run what umoci packs"),
    ("podman", "writes", "we load and run what podman saves"),
    ("docker", "writes", "we load and run what docker saves"),
    ("docker", "hands on", "we load and run what docker has loaded from us, and saved again"),
)


def table() -> str:
    """Carry all cases out, and say what came of each."""
    results: dict[tuple[str, str, str], str] = {}
    with tempfile.TemporaryDirectory(prefix="interchange-") as path, contextlib.closing(Workshop(Path(path))) as shop:
        for case in CASES:
            results[case.program, case.direction, case.form] = _outcome(case, shop)
    lines = [f"| | {' | '.join(HEADINGS.values())} |", "| --- |" + " --- |" * len(HEADINGS)]
    lines += [f"| {text} | {' | '.join(results.get((program, way, form), '') for form in HEADINGS)} |" for program, way, text in ROWS]
    return "\n".join(lines)


def _outcome(case: Case, shop: Workshop) -> str:
    if case.lacks:
        return "not tried"
    try:
        case.carry_out(shop, case.form)
    except Exception as error:  # whatever it is, it is a cell of the table
        sys.stderr.write(f"{case}: {error}\n")
        return "**no**"
    return "yes"


def versions() -> str:
    """The programs, as they call themselves."""
    asked = {"skopeo": ["skopeo", "--version"], "umoci": ["umoci", "--version"], "podman": ["podman", "--version"], "docker": ["dockerd", "--version"]}
    said = {name: call(*argv).splitlines()[0] for name, argv in asked.items() if not why_not(f"program:{argv[0]}")}
    return ", ".join(f"{name} {found[0]}" for name, text in said.items() if (found := re.findall(r"\d+(?:\.\d+)+", text)))


def document(text: str) -> str:
    """*text* with the part between the two marks made anew."""
    begin, end = "<!-- made by tests/interchange.py -->\n", "<!-- end -->"
    head, _, rest = text.partition(begin)
    return f"{head}{begin}{table()}\n\nWith {versions()}, on Linux {os.uname().release.partition('-')[0]}.\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    page = Path(__file__).parents[1] / "docs/reference/interchange.md"
    page.write_text(document(page.read_text()))
