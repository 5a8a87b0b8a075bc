"""Layers unpacked by this library, GNU tar and umoci, side by side: seconds, and how many times ours that is.

    python -m benchmarks.layers [--rounds 5] [--where /tmp] [TREE ...]

The trees (by default documentation, headers and Python's modules of this machine: tens of thousands of small files) are packed into one
layer, compressed with gzip. Each contender unpacks it into an empty directory on the file system of *where*, in turns; medians. Ours is
the process that pulls use (`unpack_in_process`), with its start; it hashes the tar, which GNU tar does not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sandbox.image._worker import unpack_in_process

TREES = ["/usr/include", "/usr/lib/python3", "/usr/share/doc", "/usr/share/man", "/usr/share/perl"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Unpack a layer by several programs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--where", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("trees", nargs="*", default=[tree for tree in TREES if Path(tree).is_dir()])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="layers-", dir=options.where) as scratch:
        layer = make_layer(Path(scratch), options.trees)
        found = measure(contenders(layer), Path(scratch), options.rounds)
    ours = statistics.median(found["this library"])
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(f"{name:14} {median:6.2f} s  {median / ours:5.2f} x ours  (best {min(seconds):.2f} s)")


def make_layer(scratch: Path, trees: list[str]) -> Path:
    """Pack *trees*; with umoci at hand, an OCI layout around it."""
    tar = scratch / "layer.tar"
    subprocess.run(["tar", "-cf", tar, "-C", "/", *(tree.lstrip("/") for tree in trees)], check=True)
    names = subprocess.run(["tar", "-tf", tar], stdout=subprocess.PIPE, check=True).stdout.count(b"\n")
    subprocess.run(["gzip", "-6", "-k", tar], check=True)
    print(f"{names} entries, {tar.stat().st_size >> 20} MiB, {tar.with_suffix('.tar.gz').stat().st_size >> 20} MiB compressed")
    if shutil.which("umoci"):
        image = f"{scratch}/oci:image"
        for command in (["init", "--layout", f"{scratch}/oci"], ["new", "--image", image], ["raw", "add-layer", "--image", image, str(tar)]):
            subprocess.run(["umoci", *command], check=True, stdout=subprocess.DEVNULL)
    return tar.with_suffix(".tar.gz")


def contenders(layer: Path) -> dict[str, Callable[[Path], None]]:
    """Who unpacks into a directory, by name."""
    found: dict[str, Callable[[Path], None]] = {
        "this library": lambda path: ours(layer, path),
        "tar -xzf": lambda path: run("tar", "-xzf", layer, "-C", path),
    }
    if shutil.which("umoci"):
        found["umoci raw unpack"] = lambda path: run("umoci", "raw", "unpack", "--image", f"{layer.parent}/oci:image", path / "rootfs")
    return found


def ours(layer: Path, path: Path) -> None:
    source, directory = os.open(layer, os.O_RDONLY), os.open(path, os.O_RDONLY)
    try:
        unpack_in_process(source, directory, keep_owners=os.geteuid() == 0)
    finally:
        os.close(source)
        os.close(directory)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(contenders: dict[str, Callable[[Path], None]], scratch: Path, rounds: int) -> dict[str, list[float]]:
    """Time each *rounds* times, in turns."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, unpack in contenders.items():
            path = scratch / "out"
            path.mkdir()
            os.sync()
            begin = time.perf_counter()
            unpack(path)
            found[name].append(time.perf_counter() - begin)
            shutil.rmtree(path)
    return found


if __name__ == "__main__":
    main()
