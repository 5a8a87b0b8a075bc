"""Images of Debian and its kin, made here of their packages by debootstrap: no registry is asked.

Theory of operation: debootstrap, which is found in PATH when it is needed, installs the packages of a suite into a directory of ours, and checks
the signatures of what it gets. Then what belongs to this host and to no image is taken out (its resolv.conf and host name, which
debootstrap copies; caches, lists, logs), and the directory is imported. debootstrap runs scripts of the packages in the new root, with chroot(8)
and as root of this host: what it installs is trusted as much as the mirror and its keys are.

An ordinary user may use it through fakechroot and fakeroot, which pretend to be root for programs that are linked dynamically. Who owns
what, fakeroot alone knows, so tar(1) packs the tree below another fakeroot that takes its notes up. What fakechroot leaves in the tree is
mended first: links that begin with where the tree lies here, `/dev` and `/proc` as links, and stand-ins for ldconfig and ldd.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from attrs import frozen

from sandbox.errors import ImageError, UnsupportedError, UsageError
from sandbox.image.documents import Platform, Settings
from sandbox.image.reference import Reference
from sandbox.image.rootfs import import_rootfs

if TYPE_CHECKING:
    from sandbox.image.images import Image
    from sandbox.image.store import Store

__all__ = ["bootstrap"]

# Releases by their numbers; any suite may be named itself.
SUITES: Final = {
    "debian": {"10": "buster", "11": "bullseye", "12": "bookworm", "13": "trixie", "14": "forky", "latest": "stable"},
    "ubuntu": {"20.04": "focal", "22.04": "jammy", "24.04": "noble"},
}
VARIANTS: Final = ("minbase", "buildd", "standard")
USERS_VARIANT: Final = "fakechroot"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT: Final = ("http_proxy", "https_proxy", "no_proxy", "TMPDIR", "SOURCE_DATE_EPOCH")  # what debootstrap may know of ours
_INSTALL_FAKES: Final = "apt install debootstrap fakechroot fakeroot"
_OTHER_WAY: Final = "or import what another program made, such as: mmdebstrap --variant=minbase bookworm | sandbox import - debian:12"
# What debootstrap leaves: this host's, and what only grows. Below the new root; a slash at the end: what is in the directory.
_LEFTOVERS: Final = (
    "etc/resolv.conf", "etc/hostname", "debootstrap", "var/cache/apt/archives/", "var/cache/apt/pkgcache.bin", "var/cache/apt/srcpkgcache.bin",
    "var/lib/apt/lists/", "var/log/bootstrap.log", "var/log/alternatives.log", "var/log/dpkg.log", "var/log/apt/",
    "var/cache/ldconfig/aux-cache", "var/cache/debconf/config.dat-old", "var/cache/debconf/templates.dat-old",
    "var/lib/dpkg/status-old", "var/lib/dpkg/diversions-old", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-",
)  # fmt: skip


@frozen
class Plan:
    """What debootstrap is asked for."""

    suite: str
    variant: str
    mirror: str | None
    include: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    keyring: str | None = None

    def argv(self, program: str, target: str) -> list[str]:
        """Its command line."""
        lists = (("--include", self.include), ("--components", self.components))
        options = [] if self.variant == "standard" else [f"--variant={self.variant}"]
        options += [f"{name}={','.join(words)}" for name, words in lists if words]
        options += [f"--keyring={self.keyring}"] if self.keyring else []
        return [program, *options, self.suite, target, *([self.mirror] if self.mirror else [])]


def bootstrap(
    name: str,
    *,
    suite: str | None = None,
    mirror: str | None = None,
    variant: str | None = None,
    include: Iterable[str] = (),
    components: Iterable[str] = (),
    keyring: str | None = None,
    settings: Settings | None = None,
    store: Store | None = None,
) -> Image:
    """Make image *name* (``debian:12``, ``debian:trixie``, ``ubuntu:24.04``) of its distribution's packages, for this machine's architecture.

    *suite*: another one than *name* says; *mirror*: where packages come from (None: debootstrap's own default); *variant*: ``minbase`` (what
    apt needs, the default for root), ``buildd`` or ``standard``; *include*: more packages; *keyring*: a file of keys that the mirror is
    signed with. Blocks while packages are fetched and installed, half a minute or more.
    An ordinary user can have ``fakechroot`` alone, the packages of ``standard``: 360 MB instead of 130.
    Raises: UsageError: nothing is known of *name*, or a value is wrong. UnsupportedError: debootstrap, or for a user fakechroot and fakeroot,
        is not there. ImageError: debootstrap failed: no mirror, no such suite or package, a wrong signature.
    """
    reference = Reference.parse(name)
    plan = Plan(
        suite=_word(suite or _suite_of(reference), "suite"),
        variant=variant or (VARIANTS[0] if os.geteuid() == 0 else USERS_VARIANT),
        mirror=mirror,
        include=tuple(_word(word, "include") for word in include),
        components=tuple(_word(word, "components") for word in components),
        keyring=keyring,
    )
    _check(plan)
    program = _find("debootstrap", "apt install debootstrap")
    settings = settings or Settings(cmd=("bash",), env=(f"PATH={_PATH}",))
    with tempfile.TemporaryDirectory(prefix="sandbox-bootstrap-", dir=os.environ.get("TMPDIR") or "/var/tmp") as directory:  # noqa: S108
        make = _as_root if os.geteuid() == 0 else _as_user
        source = make(plan, program, directory)
        message = f"debootstrap {plan.suite}"
        return import_rootfs(source, reference, settings=settings, message=message, platform=Platform.of_this_machine(), store=store)


def _suite_of(reference: Reference) -> str:
    distribution, tag = reference.repository.rpartition("/")[2], (reference.tag or "latest").removesuffix("-slim")
    known = SUITES.get(distribution)
    if known is None:
        raise UsageError(f"bootstrap: {distribution!r} is none of {', '.join(SUITES)}; suite= names one for an image of another name")
    if tag[:1].isdigit() and tag not in known:
        raise UsageError(f"bootstrap: no {distribution} {tag} is known; suite= names its suite")
    if tag == "latest" and tag not in known:
        raise UsageError(f"bootstrap: {distribution} has no suite that means the latest; name a release")
    return known.get(tag, tag)


def _word(text: str, what: str) -> str:
    """Check a word of debootstrap's command line: it is no option, and is one word of its lists."""
    if not isinstance(text, str) or not text.isascii() or not text[:1].isalnum() or not all(letter.isalnum() or letter in "+-._~" for letter in text):
        raise UsageError(f"{what}: {text!r} is not a name of Debian's")
    return text


def _check(plan: Plan) -> None:
    if plan.variant not in (*VARIANTS, USERS_VARIANT):
        raise UsageError(f"variant: {plan.variant!r} is not one of {', '.join(VARIANTS)}")
    if (plan.variant == USERS_VARIANT) != (os.geteuid() != 0):
        who, others = ("root", ", ".join(VARIANTS)) if os.geteuid() == 0 else ("an ordinary user", USERS_VARIANT)
        raise UnsupportedError(
            f"{who} cannot have the variant {plan.variant}", feature="root", remedy=f"{who} can have {others}, {_OTHER_WAY}"
        )
    if plan.mirror is not None and not plan.mirror.startswith(("http://", "https://", "file:///", "/")):
        raise UsageError(f"mirror: {plan.mirror!r} is not http://, https:// or file:///")
    if plan.keyring is not None and not os.path.isfile(plan.keyring):
        raise UsageError(f"keyring: {plan.keyring} is no file")


def _find(program: str, remedy: str) -> str:
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_PATH}")
    if found is None:
        raise UnsupportedError(f"bootstrap needs {program}, which is not installed", feature=program, remedy=remedy)
    return found


def _as_root(plan: Plan, program: str, directory: str) -> str:
    target = f"{directory}/root"
    # In mounts of its own: debootstrap mounts /proc and /sys into the new root, and one that is killed would leave them to this host, and to whoever
    # removes the directory.
    alone = [_find("unshare", "apt install util-linux"), "--mount", "--propagation", "private"]
    _run([*alone, *plan.argv(program, target)], target)
    clean(target)
    return target


def _as_user(plan: Plan, program: str, directory: str) -> str:
    """Have debootstrap work in a root that is pretended; give the tar of it."""
    fakechroot, fakeroot = (_find(fake, f"{_INSTALL_FAKES}, {_OTHER_WAY}") for fake in ("fakechroot", "fakeroot"))
    target, archive, notes = f"{directory}/root", f"{directory}/root.tar", f"{directory}/notes"
    _run([fakechroot, fakeroot, "-s", notes, *plan.argv(program, target)], target)
    mend(target)
    clean(target)
    _run([fakeroot, "-i", notes, _find("tar", ""), "--numeric-owner", "-C", target, "-cf", archive, "."], target)
    return archive


def mend(root: str) -> None:
    """Put right what fakechroot leaves in a tree. What is new comes before what is old goes: fakeroot's notes are by inode."""
    for parent, directories, files in os.walk(root):
        for path in (f"{parent}/{name}" for name in (*directories, *files)):
            if os.path.islink(path) and f"{os.readlink(path)}/".startswith(f"{root}/"):
                os.symlink(os.readlink(path).removeprefix(root) or "/", f"{path}.new")
                os.rename(f"{path}.new", path)
    for name in ("dev", "proc"):
        if os.path.islink(f"{root}/{name}"):
            os.mkdir(f"{root}/{name}.new", 0o755)
            os.unlink(f"{root}/{name}")
            os.rename(f"{root}/{name}.new", f"{root}/{name}")
    for name in ("sbin/ldconfig", "usr/bin/ldd"):
        if os.path.isfile(f"{root}/{name}.REAL"):
            os.rename(f"{root}/{name}.REAL", f"{root}/{name}")
    _forget_diversions(f"{root}/var/lib/dpkg/diversions")


def _forget_diversions(path: str) -> None:
    """Take fakechroot's out of dpkg's list: three lines each, the third is the package."""
    if not os.path.isfile(path):
        return
    with open(path, "r+", encoding="utf-8", errors="surrogateescape") as file:
        lines = file.read().splitlines(keepends=True)
        kept = [line for at in range(0, len(lines), 3) for line in lines[at : at + 3] if lines[at + 2 : at + 3] != ["fakechroot\n"]]
        file.seek(0)
        file.writelines(kept)
        file.truncate()


def _run(argv: Sequence[str], target: str) -> None:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment |= {"PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode == 0:
        return
    said = done.stdout.decode(errors="replace").strip().splitlines()
    with contextlib.suppress(OSError), open(f"{target}/debootstrap/debootstrap.log", encoding="utf-8", errors="replace") as log:
        said += log.read(1 << 20).strip().splitlines()[-3:]
    raise ImageError(f"debootstrap ended with {done.returncode}: {'; '.join(said[-6:]) or 'it said nothing'}"[:2000])


def clean(root: str) -> None:
    """Take out of a new root what is this host's, and caches. Nothing of it has run but what root of this host has run."""
    for name in _LEFTOVERS:
        path = f"{root}/{name}".rstrip("/")
        if os.path.islink(path) or not os.path.isdir(path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            continue
        for entry in os.scandir(path):
            shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
        if not name.endswith("/"):
            os.rmdir(path)
