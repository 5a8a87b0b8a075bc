"""All that the benchmarks know of `sandbox`: its public face, in one place.

"Everything" is: all namespaces, a user namespace, limits on memory, processes and CPU, seccomp, Landlock, and an overlay
over a directory. Both sides of a comparison get the same standard streams: all /dev/null, or both outputs captured.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import sandbox

LIMITS: dict[str, Any] = {"memory": "64M", "pids": 32, "cpus": 1.0}
RUN_LIMITS: dict[str, Any] = {"memory": "32M", "pids": 16, "cpu_time": 10.0, "timeout": 10.0}
NULL: dict[str, Any] = {"stdout": sandbox.DEVNULL, "stderr": sandbox.DEVNULL}
INSIDE = "/true"


def limit_huge_pages() -> None:
    """Limit nothing but huge pages, and the time of runs: what the cgroup v2 of a hybrid host may have (benchmarks/on_v2)."""
    LIMITS.clear()
    RUN_LIMITS.clear()
    LIMITS["hugetlb"] = {"2M": "4M"}
    RUN_LIMITS.update(cpu_time=10.0, timeout=10.0)


def _expect(result: sandbox.Result) -> sandbox.Result:
    if not result.ok:
        raise RuntimeError(f"the payload did not run: {result}")
    return result


def live(stack: ExitStack, root: str, **options: Any) -> sandbox.Container:  # noqa: ANN401 - Container's own
    """A live container over *root*; *stack* closes it."""
    return stack.enter_context(sandbox.Container(root, **options))


def network(stack: ExitStack) -> sandbox.Network:
    """A network that containers have joined before; *stack* closes it."""
    net = stack.enter_context(sandbox.Network(internal=True))
    with sandbox.Container(net=net):
        return net


def start_of(root: str, **options: Any) -> Callable[[], float]:  # noqa: ANN401 - Container's own
    """Start a container and close it; the start is what counts."""

    def started() -> float:
        begin = time.perf_counter()
        with sandbox.Container(root, **options):
            return time.perf_counter() - begin

    return started


def pool(stack: ExitStack, root: str, **options: Any) -> sandbox.Pool:  # noqa: ANN401 - Container's own
    """A pool of two containers over *root*; *stack* closes it."""
    return stack.enter_context(sandbox.Pool(root, size=2, **options))


def judged(pool: sandbox.Pool) -> object:
    """A run as a judge makes it: with limits and accounting."""
    return _expect(pool.exec([INSIDE], **NULL, **RUN_LIMITS))


def judged_writer(pool: sandbox.Pool) -> object:
    """The same for a program that leaves a file, so that the container is replaced."""
    return _expect(pool.exec(["/work", "touch", "/left"], **NULL, **RUN_LIMITS))


def rate(root: str, run: Callable[[sandbox.Pool], object], *, workers: int, runs: int) -> float:
    """How many runs a second *workers* threads get through, with as many containers."""
    with sandbox.Pool(root, size=workers, **LIMITS) as pool:
        for _ in range(20):
            run(pool)
        threads = [threading.Thread(target=lambda: [run(pool) for _ in range(runs // workers)]) for _ in range(workers)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return runs // workers * workers / (time.perf_counter() - begin)


def execution(container: sandbox.Container | sandbox.Pool, **options: Any) -> Callable[[], object]:  # noqa: ANN401 - exec's own
    """Run the payload in it."""
    return lambda: _expect(container.exec([INSIDE], **options))


def whole(root: str, **options: Any) -> Callable[[], object]:  # noqa: ANN401 - Container's own
    """Create a container over *root*, run the payload, destroy it."""

    def run() -> object:
        with sandbox.Container(root, **options) as container:
            return _expect(container.exec([INSIDE], **NULL))

    return run


def host_view(directory: str) -> Callable[[], object]:
    """`sandbox.run` in a view of the host, with limits; the payload's directory is bound into it."""
    mounts = [sandbox.Bind(directory, "/bench", read_only=True)]
    return lambda: _expect(sandbox.run([f"/bench{INSIDE}"], mounts=mounts, **LIMITS, **NULL))


def file_box(stack: ExitStack) -> sandbox.Container:
    """A live container with room for files at /work."""
    return stack.enter_context(sandbox.Container(mounts=[sandbox.Tmpfs("/work", size="512M", inodes=100_000)]))


def unpack(container: sandbox.Container, archive: int) -> object:
    """Have a program inside unpack a tar file that comes through a pipe: how others copy into a live container."""
    return _expect(container.exec(["tar", "x", "-C", "/work/tree"], stdin=archive, **NULL))


def started(root: str) -> sandbox.Container:
    """A live container with limits; the caller closes it."""
    return sandbox.Container(root, **LIMITS).create()


def wall_overshoot(container: sandbox.Container, deadline_s: float) -> Callable[[], object]:
    """Run a sleeper against a wall deadline."""

    def run() -> object:
        result = container.exec(["/work", "sleep"], timeout=deadline_s, **NULL)
        if result.status is not sandbox.Status.TIMEOUT:
            raise RuntimeError(f"no TIMEOUT: {result}")
        return result

    return run


def cpu_overshoot(container: sandbox.Container, deadline_s: float) -> float:
    """How much CPU time beyond its deadline a spinning program got, in seconds."""
    result = container.exec(["/work", "spin"], cpu_time=deadline_s, timeout=60.0, **NULL)
    if result.status is not sandbox.Status.CPU_LIMIT:
        raise RuntimeError(f"no CPU_LIMIT: {result}")
    return float(result.cpu_time) - deadline_s


def write(container: sandbox.Container, count: int, stdout: Any, **options: Any) -> sandbox.Result:  # noqa: ANN401 - exec's own
    """Run a program that writes *count* bytes to its standard output."""
    return _expect(container.exec(["/work", "write", str(count)], stdout=stdout, stderr=sandbox.DEVNULL, **options))


def stream(container: sandbox.Container, count: int) -> int:
    """Read *count* bytes of a running program's output through a pipe, and drop them; return how many came."""
    with container.popen(["/work", "write", str(count)], stdout=sandbox.PIPE) as process:
        return drain(process.stdout)


def drain(file: Any) -> int:  # noqa: ANN401 - a binary file of either library
    """Read to the end; return how many bytes there were."""
    seen = 0
    while block := os.read(file.fileno(), 1 << 18):
        seen += len(block)
    return seen


def shut_down() -> None:
    """End the launcher of this process."""
    sandbox.shut_down()


PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.abspath(sandbox.__file__)))
# Of interpreters whose start is measured: as where a package is installed, what they compile is kept.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

# Creates, runs and destroys without end; `ready` is what the harness waits for before it kills.
EMBEDDING = """
import sandbox
first = True
while True:
    with sandbox.Container(memory="64M", pids=32, cpus=1.0) as c:
        c.exec(["/bin/true"])
        if first:
            print("ready", flush=True)
            first = False
"""
