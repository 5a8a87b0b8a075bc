"""What a start of a container costs by how many layers its image has: ``python -m benchmarks.image_starts [ROUNDS]``.

Needs busybox (linked statically). The images are made here, in a store of their own, which is removed. Numbers of layers take turns; figures
are medians in milliseconds of create + exec of `true` + close, and ratios to one layer: in a process that makes such containers again and
again (so that the next one is made ahead), and in one whose containers are made from nothing each time.
"""

from __future__ import annotations

import io
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sandbox import Container, shut_down
from sandbox.image import Config, Descriptor, Digest, Image, Manifest, MediaType, Platform, Reference, Store

LAYERS = (1, 10, 120)
ROUNDS = 60
LIMIT = 1.5  # an image of more layers takes at most so many times as long as one of one layer, each of its lines


def member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to *archive*."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o755
    archive.addfile(info, io.BytesIO(content))


def layers(count: int, program: bytes) -> Iterator[bytes]:
    """The tars of an image of *count* layers; the lowest one has the program, each a file of its own."""
    for number in range(count):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            member(archive, f"usr/share/{count}/{number}", b"x")
            if number == 0:
                member(archive, "bin/busybox", program)
        yield buffer.getvalue()


def make(store: Store, count: int, program: bytes) -> Image:
    """An image of *count* layers."""
    with store.lease() as lease:
        found: list[Descriptor] = []
        for tar in layers(count, program):
            with store.write_blob(lease, Digest.of(tar), len(tar)) as writer:
                if not writer.is_complete:
                    writer.write(tar[writer.offset :])
                writer.commit()
            store.unpack_layer(lease, Digest.of(tar), [tar], MediaType.OCI_LAYER)
            found.append(Descriptor.of(MediaType.OCI_LAYER, tar))
        config = Config(Platform.of_this_machine(), tuple(one.digest for one in found)).encode()
        store.put_document(lease, config)
        manifest = Manifest(Descriptor.of(MediaType.OCI_CONFIG, config), tuple(found)).encode()
        return store.add_image(lease, store.put_document(lease, manifest), [Reference.parse(f"layers:{count}")])


def start(image: Image) -> float:
    """Make a container, run a program in it and remove it; seconds."""
    began = time.perf_counter()
    with Container(image) as container:
        container.exec(["/bin/busybox", "true"], check=True)
    return time.perf_counter() - began


def from_nothing(image: Image) -> float:
    """As `start`, after all that was made ahead is gone."""
    shut_down()
    with Container() as container:  # the launcher is there again; a view of the host is of another kind
        container.exec(["true"])
    return start(image)


def show(title: str, images: dict[int, Image], measure: Callable[[Image], float], rounds: int) -> bool:
    """Print a line for each number of layers; whether all of them keep to the limit."""
    times: dict[int, list[float]] = {count: [] for count in images}
    for _ in range(rounds):
        for count, image in images.items():
            measure(image)  # of its kind: the one before was another
            times[count].append(measure(image))
    print(title)
    medians = {count: statistics.median(found) for count, found in times.items()}
    ratios = {count: median / medians[min(images)] for count, median in medians.items()}
    for count, found in times.items():
        said = "" if count == min(images) else f"  {'PASS' if ratios[count] <= LIMIT else 'FAIL'} (at most {LIMIT})"
        print(f"  {count:4d} layers  {medians[count] * 1e3:7.2f} ms  min {min(found) * 1e3:6.2f}  {ratios[count]:5.2f} x{said}")
    return all(ratio <= LIMIT for ratio in ratios.values())


def main() -> int:
    """Measure, print, and say by the exit code whether the promise is kept."""
    program = shutil.which("busybox")
    if program is None:
        print("benchmarks.image_starts: needs busybox", file=sys.stderr)
        return 2
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory, "store"))
        images = {count: make(store, count, Path(program).read_bytes()) for count in LAYERS}
        kept = [show("again and again", images, start, rounds), show("from nothing", images, from_nothing, max(rounds // 4, 3))]
        shut_down()
    return int(not all(kept))


if __name__ == "__main__":
    raise SystemExit(main())
