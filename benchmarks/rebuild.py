"""What it takes to build what is built already: ``python -m benchmarks.rebuild [ROUNDS]``, a Dockerfile of 20 steps in which nothing has changed.

Needs busybox (linked statically). Everything is made in a directory of its own, which is removed. The library builds in this process, and the
command line in a new one each time; of each, the first rebuild and the median of those after it are told. Exit code 1 if one takes too long.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.ours import ENVIRONMENT
from sandbox.builder import build
from sandbox.image import Store, import_rootfs

LIMIT_S = 0.3
ROUNDS = 20
DOCKERFILE = """\
FROM base AS tools
RUN echo tool > /tool
FROM base
ARG VERSION=1
ENV APP=/srv/app PORT=8000
LABEL version=$VERSION
WORKDIR /srv/app
RUN mkdir -p data && echo $VERSION > data/version
COPY requirements.txt ./
RUN cat requirements.txt > installed
COPY --from=tools /tool /usr/bin/tool
COPY --chmod=0755 src ./src
RUN find src | sort > index
COPY <<EOF config
port=$PORT
EOF
RUN --mount=type=cache,target=/cache echo x >> /cache/x
USER 1000
EXPOSE 8000
VOLUME /srv/data
HEALTHCHECK CMD ["true"]
CMD ["sh", "src/0"]
"""


def prepare(directory: Path, busybox: str) -> Store:
    """A store with the image "base", and a context."""
    root = directory / "root"
    for name in ("bin", "etc", "tmp", "usr/bin"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for name in ("sh", "mkdir", "cat", "find", "sort"):
        (root / "bin" / name).symlink_to("busybox")
    store = Store(directory / "store")
    import_rootfs(root, "base", store=store)
    context = directory / "context"
    (context / "src").mkdir(parents=True)
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "requirements.txt").write_text("none\n")
    for number in range(100):
        (context / f"src/{number}").write_text(f"{number}\n" * 100)
    return store


def timed(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Seconds of the first turn, and the median of the others."""
    found: list[float] = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return found[0], statistics.median(found[1:])


def show(title: str, found: tuple[float, float]) -> bool:
    """Print what it took; whether it keeps to the limit."""
    kept = max(found) <= LIMIT_S
    print(f"{title:14s} first {found[0]:6.3f} s  then {found[1]:6.3f} s  {'PASS' if kept else 'FAIL'} (at most {LIMIT_S} s)", flush=True)
    return kept


def main() -> int:
    """Measure, print, and say by the exit code whether the promise is kept."""
    busybox = shutil.which("busybox")
    if busybox is None:
        print("benchmarks.rebuild: needs busybox", file=sys.stderr)
        return 2
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        store = prepare(directory, busybox)
        context = str(directory / "context")
        first = build(context, tags=["app"], store=store)
        command = [sys.executable, "-m", "sandbox", "build", "-q", "-t", "app", context]
        environment = {**ENVIRONMENT, "SANDBOX_IMAGES": store.path}

        def by_command() -> None:
            told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            if told.strip() != str(first.id):
                raise AssertionError(f"another image: {told!r}")

        def by_library() -> None:
            if build(context, tags=["app"], store=store).id != first.id:
                raise AssertionError("another image")

        kept = [show("command line", timed(by_command, rounds)), show("library", timed(by_library, rounds))]
    return int(not all(kept))


if __name__ == "__main__":
    raise SystemExit(main())
