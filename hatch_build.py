"""Compile the C launcher for the wheel, or in place for an editable install.

All ``*.c`` of ``sandbox/_launch/c`` but ``*_test.c`` and ``fuzz_*.c`` become one executable, ``sandbox/_launch/launcher``.
It is linked statically where the C library allows (a static PIE first), dynamically otherwise. It has nothing to do with
CPython's ABI, so that one wheel, tagged ``py3-none-linux_MACHINE``, serves every Python of its platform.

Environment: `CC` is the compiler (``CC=aarch64-linux-gnu-gcc`` cross-compiles), `CFLAGS` comes after our own flags,
`SANDBOX_TARGET` overrides the machine's name in the wheel's tag, which otherwise is what the compiler says.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LAUNCHER = "sandbox/_launch/launcher"
SOURCES = "sandbox/_launch/c"

WARNINGS = ["-Wall", "-Wextra", "-Werror"]
HARDENING = ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2", "-fPIE"]
# Known to some compilers or for some machines only; each is tried on an empty program.
OPTIONAL_HARDENING = ["-fcf-protection=full", "-mbranch-protection=standard", "-fstack-clash-protection"]
LINK_HARDENING = ["-Wl,-z,relro,-z,now,-z,noexecstack"]
# In the order of preference. glibc's Debian package has what a static PIE needs, Fedora's has it in glibc-static only.
LINKAGE = [["-static-pie"], ["-static"], ["-pie"]]

INSTALL_A_COMPILER = """\
install a C compiler with the C library's and the kernel's headers, for instance
    Debian, Ubuntu:  apt-get install gcc libc6-dev
    Fedora:          dnf install gcc glibc-devel glibc-static
    Alpine:          apk add gcc musl-dev linux-headers
    Arch:            pacman -S gcc
or name another one in the environment variable CC."""


class LauncherBuildHook(BuildHookInterface[Any]):
    """Hatchling's custom build hook: runs for wheels, standard and editable."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        compiler = find_compiler()
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{machine(compiler)}"
        if version == "editable":
            build(root, compiler, root / LAUNCHER)
            return
        # Not in place: a wheel for another machine must not replace the launcher of an editable install.
        self._directory = tempfile.TemporaryDirectory(prefix="sandbox-build-")
        target = Path(self._directory.name, "launcher")
        build(root, compiler, target)
        build_data["force_include"][str(target)] = LAUNCHER

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002  # hatchling's signature
        if version != "editable":
            self._directory.cleanup()


def find_compiler() -> list[str]:
    """Give the compiler's command: `CC`, or the first of cc, gcc and clang."""
    asked = shlex.split(os.environ.get("CC", ""))
    candidates = [asked] if asked else [["cc"], ["gcc"], ["clang"]]
    for command in candidates:
        if shutil.which(command[0]):
            return command
    names = ", ".join(command[0] for command in candidates)
    raise SystemExit(f"sandbox: cannot compile the launcher: no such program: {names}\n{INSTALL_A_COMPILER}")


def machine(compiler: list[str]) -> str:
    """Name the machine that *compiler* compiles for, as wheel tags do: ``x86_64``, ``aarch64``."""
    target = os.environ.get("SANDBOX_TARGET") or run([*compiler, "-dumpmachine"]).stdout.strip()
    name = target.partition("-")[0]
    if not name.isidentifier():
        raise SystemExit(f"sandbox: {shlex.join(compiler)} -dumpmachine says {target!r}; name the machine in SANDBOX_TARGET, for instance x86_64")
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(name, name)


def build(root: Path, compiler: list[str], target: Path) -> None:
    """Compile and link the launcher into *target*, which is replaced at once or not at all."""
    sources = sorted(path for path in (root / SOURCES).glob("*.c") if not (path.name.endswith("_test.c") or path.name.startswith("fuzz_")))
    if not sources:
        raise SystemExit(f"sandbox: no C sources in {root / SOURCES}: the source tree is incomplete")
    with tempfile.TemporaryDirectory(prefix="sandbox-objects-") as scratch:
        flags = [*compile_flags(compiler, Path(scratch)), *shlex.split(os.environ.get("CFLAGS", ""))]
        objects = [compile_one(compiler, flags, source, Path(scratch)) for source in sources]
        executable = Path(scratch, "launcher")
        link(compiler, flags, objects, executable)
        # Not copied over the old file: that may be running (ETXTBSY).
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(executable, fresh)
        fresh.chmod(0o755)
        fresh.replace(target)


def compile_flags(compiler: list[str], scratch: Path) -> list[str]:
    probe = scratch / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    accepted = [flag for flag in OPTIONAL_HARDENING if run([*compiler, "-Werror", flag, "-c", "-o", os.devnull, str(probe)]).returncode == 0]
    return ["-std=gnu11", "-O2", *WARNINGS, *HARDENING, *accepted]


def compile_one(compiler: list[str], flags: list[str], source: Path, scratch: Path) -> Path:
    output = scratch / f"{source.stem}.o"
    command = [*compiler, *flags, "-c", "-o", str(output), str(source)]
    done = run(command)
    if done.returncode != 0:
        raise SystemExit(compile_error(command, done.stderr))
    return output


def link(compiler: list[str], flags: list[str], objects: list[Path], executable: Path) -> None:
    errors: list[str] = []
    for linkage in LINKAGE:
        command = [*compiler, *flags, *linkage, *LINK_HARDENING, "-o", str(executable), *map(str, objects)]
        done = run(command)
        if done.returncode == 0:
            if linkage == ["-pie"]:
                print("sandbox: the launcher is linked dynamically: this C library cannot be linked statically here")
            return
        errors.append(compile_error(command, done.stderr))
    raise SystemExit(errors[-1])


def compile_error(command: list[str], said: str) -> str:
    """Say what failed, what the compiler said, and what would help."""
    missing = "fatal error" in said and "No such file" in said
    hint = INSTALL_A_COMPILER if missing or "cannot find" in said else "if a newer compiler than ours only warns, CFLAGS=-Wno-error lets it pass"
    return f"sandbox: cannot compile the launcher:\n    {shlex.join(command)}\n{said.rstrip()}\n{hint}"


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    # The C locale: messages are searched above.
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
