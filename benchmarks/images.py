"""What images cost: ``python -m benchmarks.images``. Each contender does the same work, in turns; the ratios count, the seconds are this machine's.

``pull``: an image of 10 layers and 500 MiB or more, of this host's own programs and libraries, comes from a registry on loopback (Debian's) and
is unpacked: by this library, by ``skopeo copy`` and ``umoci unpack``, and by ``docker pull`` with a daemon of our own. Needs: root, docker-registry.

A case is a function that takes the `Setting` and gives the lines to print; put it into `CASES`.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final

from attrs import define, field

from benchmarks import docker

SOURCES: Final = ("/usr/lib", "/usr/bin", "/usr/share")
MIB: Final = 1 << 20
NAME: Final = "bench/pull:1"
PULL: Final = """
import resource, sys
from sandbox.image import Store, pull
pull(sys.argv[1], store=Store(sys.argv[2]))
own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(own.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@define
class Setting:
    """What a case works with: a scratch directory, and what ends with it."""

    scratch: str
    stack: ExitStack
    rounds: int
    layers: int
    size: int  # bytes, of all layers together, unpacked


@define
class Contender:
    """One way of doing it: *run* is timed, *tidy* is not. *peaks*: KiB of memory, where it is known."""

    name: str
    run: Callable[[], object]
    tidy: Callable[[], object]
    seconds: list[float] = field(factory=list)


def take_turns(contenders: Sequence[Contender], rounds: int) -> None:
    """Each once a round, the first one of a round being another each time."""
    for number in range(rounds):
        for contender in [*contenders[number % len(contenders) :], *contenders[: number % len(contenders)]]:
            contender.tidy()
            began = time.monotonic()
            contender.run()
            contender.seconds.append(time.monotonic() - began)
    for contender in contenders:
        contender.tidy()


def compared(contenders: Sequence[Contender]) -> list[str]:
    """A line each: median and extremes, and how many times as long as the first one, by pairs of the same round."""
    first = contenders[0]
    lines: list[str] = []
    for each in contenders:
        ratio = statistics.median(theirs / ours for theirs, ours in zip(each.seconds, first.seconds, strict=True))
        times = f"{statistics.median(each.seconds):7.2f} s  ({min(each.seconds):.2f} ... {max(each.seconds):.2f})"
        lines.append(f"  {each.name:28s} {times}  {ratio:5.2f} x")
    return lines


# ---- The image ----


def _files(most: int) -> Iterator[list[str]]:
    """Regular files and links of this host, in lists of about *most* bytes."""
    found: list[str] = []
    size = 0
    for path in (path for source in SOURCES for path in _walk(source)):
        found.append(path)
        size += os.lstat(path).st_size
        if size >= most:
            yield found
            found, size = [], 0


def _walk(directory: str) -> Iterator[str]:
    for base, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            path = os.path.join(base, name)
            with contextlib.suppress(OSError):
                if os.path.islink(path) or (os.path.isfile(path) and os.access(path, os.R_OK)):
                    yield path


def _layer(paths: Sequence[str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            with contextlib.suppress(OSError):
                tar.add(path, recursive=False)
    return out.getvalue()


def _make_image(setting: Setting, reference: str) -> str:
    """Make the image in a store of its own, and push it; say what it is."""
    from sandbox.image import Config, Descriptor, Digest, Manifest, MediaType, Platform, Reference, Store, push

    store = Store(f"{setting.scratch}/source")
    diff_ids: list[Digest] = []
    layers: list[Descriptor] = []
    whole = 0
    with store.lease() as lease:
        for paths, _ in zip(_files(setting.size // setting.layers + 1), range(setting.layers), strict=False):
            tar = _layer(paths)
            whole += len(tar)
            with store.write_blob(lease) as writer:
                writer.write(gzip.compress(tar, 6, mtime=0))
                digest = writer.commit()
            diff_ids.append(Digest.of(tar))
            layers.append(Descriptor(MediaType.OCI_LAYER_GZIP, digest, store.blob_size(digest)))
            store.unpack_layer(lease, diff_ids[-1], [tar], MediaType.OCI_LAYER)
        config = Config(platform=Platform.of_this_machine(), diff_ids=tuple(diff_ids)).encode()
        store.put_document(lease, config)
        manifest = Manifest(Descriptor.of(MediaType.OCI_CONFIG, config), tuple(layers)).encode()
        image = store.add_image(lease, store.put_document(lease, manifest), [Reference.parse(reference)])
    push(reference, store=store)
    return f"{len(layers)} layers, {whole / MIB:.0f} MiB unpacked, {sum(layer.size for layer in layers) / MIB:.0f} MiB compressed ({image.id.short})"


def _serve(setting: Setting) -> str:
    """Debian's registry; its host and port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    config = {"version": 0.1, "log": {"level": "error", "accesslog": {"disabled": True}}}
    config |= {"storage": {"filesystem": {"rootdirectory": f"{setting.scratch}/registry"}}, "http": {"addr": f"127.0.0.1:{port}"}}
    with open(f"{setting.scratch}/registry.yml", "w") as file:
        json.dump(config, file)  # JSON is YAML
    server = subprocess.Popen(["docker-registry", "serve", f"{setting.scratch}/registry.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    setting.stack.callback(server.wait)
    setting.stack.callback(server.kill)
    return f"127.0.0.1:{port}"


# ---- Pulling ----


def pull(setting: Setting) -> list[str]:
    """An image from a registry on loopback, unpacked."""
    host = _serve(setting)
    reference = f"{host}/{NAME}"
    described = _make_image(setting, reference)
    peaks: list[tuple[int, int]] = []
    contenders = [_ours(setting, reference, peaks), *_others(setting, reference)]
    take_turns(contenders, setting.rounds)
    lines = [f"pull and unpack: {described}, {setting.rounds} rounds, in turns", *compared(contenders)]
    ours, workers = (max(values) / 1024 for values in zip(*peaks, strict=True))
    return [*lines, f"  peak memory of ours: {ours:.0f} MiB, of a process that unpacks: {workers:.0f} MiB"]


def _ours(setting: Setting, reference: str, peaks: list[tuple[int, int]]) -> Contender:
    store = f"{setting.scratch}/ours"

    def run() -> None:
        done = subprocess.run([sys.executable, "-c", PULL, reference, store], stdout=subprocess.PIPE, text=True, check=True)
        own, workers = map(int, done.stdout.split())
        peaks.append((own, workers))

    return Contender("sandbox pull", run, lambda: shutil.rmtree(store, ignore_errors=True))


def _others(setting: Setting, reference: str) -> Iterator[Contender]:
    if shutil.which("skopeo") and shutil.which("umoci"):
        yield _skopeo_and_umoci(setting, reference)
    else:
        print("left out: skopeo copy + umoci unpack (not installed)", file=sys.stderr)
    try:
        client = docker.daemon(setting.scratch, setting.stack)
    except (RuntimeError, OSError) as error:
        print(f"left out: docker pull ({error})", file=sys.stderr)
        return
    remove = [*client, "image", "rm", "--force", reference]
    yield Contender(
        "docker pull",
        lambda: _run([*client, "pull", "--quiet", reference]),
        lambda: subprocess.run(remove, capture_output=True, check=False),
    )


def _skopeo_and_umoci(setting: Setting, reference: str) -> Contender:
    layout, bundle = f"{setting.scratch}/layout", f"{setting.scratch}/bundle"

    def run() -> None:
        _run(["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", f"oci:{layout}:1"])
        _run(["umoci", "unpack", "--image", f"{layout}:1", bundle])

    def tidy() -> None:
        shutil.rmtree(layout, ignore_errors=True)
        shutil.rmtree(bundle, ignore_errors=True)

    return Contender("skopeo copy + umoci unpack", run, tidy)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:3])}: {done.stdout[-500:]}")


CASES: Final[dict[str, Callable[[Setting], list[str]]]] = {"pull": pull}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description="Measure what images cost.")
    parser.add_argument("case", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all without one")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--layers", type=int, default=10, metavar="N")
    parser.add_argument("--size", type=int, default=500, metavar="MIB", help="of the image, unpacked")
    options = parser.parse_args(argv)
    for name in options.case or CASES:
        if name not in CASES:
            parser.error(f"there is no case {name!r}; there are {', '.join(CASES)}")
        with ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="sandbox-images-", ignore_cleanup_errors=True))
            print("\n".join(CASES[name](Setting(scratch, stack, options.rounds, options.layers, options.size * MIB))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
