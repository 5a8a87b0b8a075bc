"""The cases: each function measures one group and notes it in the report."""

from __future__ import annotations

import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from attrs import frozen

from benchmarks import docker, floor, leftovers, ours, peers
from benchmarks.measure import Case, Samples, interleave, timed
from benchmarks.programs import Programs
from benchmarks.report import Report, Table
from sandbox import UnsupportedError


@frozen
class Setting:
    """How much to do: full, or --quick."""

    programs: Programs
    rng: random.Random
    rounds: int
    idle_rounds: int
    containers: int
    rounds_many: int
    threads: int
    per_thread: int
    imports: int
    deadlines: int
    pooled: int
    output: int
    kills: int
    with_docker: bool


def full(programs: Programs, rng: random.Random, *, rounds: int | None, with_docker: bool) -> Setting:
    n = rounds or 60
    return Setting(programs, rng, n, n, 1000, 5, 64, 20, 30, 200, 3000, 1 << 30, 200, with_docker)


def quick(programs: Programs, rng: random.Random, *, rounds: int | None, with_docker: bool) -> Setting:
    n = rounds or 7
    return Setting(programs, rng, n, n, 100, 1, 64, 2, 7, 15, 200, 1 << 26, 10, with_docker)


def _both_modes(s: Setting, report: Report, group: str, reference: str, field: peers.Field) -> None:
    report.refuse(field.refused)
    for mode, rounds in (("hot", s.rounds), ("idle", s.idle_rounds)):
        samples = interleave(field.cases, rounds=rounds, idle=mode == "idle", rng=s.rng)
        report.tables.append(Table(group, mode, reference, samples))


def measure_exec(s: Setting, report: Report) -> None:
    """A program in a live container, against the same program on the host."""
    p = s.programs
    with ExitStack() as stack:
        live = ours.live(stack, p.root)
        limited = ours.live(stack, p.root, **ours.LIMITS)
        field = peers.Field()
        capture = timed(lambda: subprocess.run([p.true], stdin=subprocess.DEVNULL, capture_output=True, check=True))
        field.cases += [
            Case("subprocess", timed(lambda: subprocess.run([p.true], **peers.QUIET, check=True))),
            Case("subprocess, captured", capture),
            Case("sandbox", timed(ours.execution(live, **ours.NULL))),
            Case("sandbox, captured", timed(ours.execution(live))),
            Case("sandbox, limits", timed(ours.execution(limited, **ours.NULL, **ours.RUN_LIMITS))),
            Case("sandbox, limits, captured", timed(ours.execution(limited, **ours.RUN_LIMITS))),
        ]
        field.add_case("floor", lambda: floor.start(stack, [p.floor, "exec", p.true]))
        field.add_case("floor, captured", lambda: floor.start(stack, [p.floor, "exec", "--captured", p.true]))
        field.add("runc exec", peers.oci_exec(p, "runc", stack))
        field.add("crun exec", peers.oci_exec(p, "crun", stack))
        if s.with_docker:
            docker.add(field, p, stack, live=True)
        _both_modes(s, report, "exec", "subprocess", field)


def measure_pool(s: Setting, report: Report) -> None:
    """A program in a pool's container, reset between uses, against the same in a live one; and how many a pool of two runs in a second."""
    p = s.programs
    with ExitStack() as stack:
        field = peers.Field()
        for name, options, limits in (("", {}, {}), (", limits", ours.LIMITS, ours.RUN_LIMITS)):
            live, pool = ours.live(stack, p.root, **options), ours.pool(stack, p.root, **options)
            field.cases += [
                Case(f"live{name}", timed(ours.execution(live, **ours.NULL, **limits))),
                Case(f"pool{name}", timed(ours.execution(pool, **ours.NULL, **limits))),
            ]
        _both_modes(s, report, "pool", "live", field)
    for name, judged in (("static program", ours.judged), ("static program that writes a file", ours.judged_writer)):
        report.figure("pool", f"{name}, 2 workers", ours.rate(p.root, judged, workers=2, runs=s.pooled), "runs/s")


def measure_run(s: Setting, report: Report) -> None:
    """A whole container: create, run, destroy."""
    p = s.programs
    groups = floor.cgroup_options()
    with ExitStack() as stack:
        field = peers.Field()
        field.cases += [
            Case("sandbox", timed(ours.whole(p.root, **ours.LIMITS))),
            Case("sandbox, host net", timed(ours.whole(p.root, net="host", **ours.LIMITS))),
            Case("sandbox, no limits", timed(ours.whole(p.root))),
            Case("sandbox, host view", timed(ours.host_view(p.root))),
        ]
        if groups:
            tail = ["--root", p.root, "/true"]
            field.add_case("floor", lambda: floor.start(stack, [p.floor, "run", *groups, *tail]))
            field.add_case("floor, host net", lambda: floor.start(stack, [p.floor, "run", "--no-net", *groups, *tail]))
            field.add_case("floor, no limits", lambda: floor.start(stack, [p.floor, "run", *tail]))
        else:
            field.refused.append(peers.Refused("floor", "this process may not make control groups"))
        peers.add_run_peers(field, p)
        if s.with_docker:
            docker.add(field, p, stack, live=False)
        _both_modes(s, report, "run", "bwrap", field)


def measure_net(s: Setting, report: Report) -> None:
    """A whole container on a warm network, beside one with loopback only; and its start alone."""
    p = s.programs
    with ExitStack() as stack:
        try:
            net = ours.network(stack)
        except UnsupportedError as error:
            report.refuse([peers.Refused("sandbox, network", str(error))])
            return
        field = peers.Field()
        for name, where in (("loopback", None), ("network", net)):
            field.cases.append(Case(f"whole, {name}", timed(ours.whole(p.root, net=where))))
            field.cases.append(Case(f"start, {name}", ours.start_of(p.root, net=where)))
        _both_modes(s, report, "net", "whole, loopback", field)


SETTLE_MANY_S = 0.5  # what the kernel still frees of the containers before


def measure_many(s: Setting, report: Report) -> None:
    """Many live containers: the start of the last against the first, and what each costs.

    The two are seconds apart and cannot take turns, and where other tenants share the machine's cores, its speed changes by 1.7 meanwhile: so the
    pair is measured again and again, and the ratios' median counts. The very first round is told apart: in a virtual machine the memory that it
    takes may be new to the host as well, which costs more than the container.
    """
    raise_descriptor_limit()
    for _ in range(20):  # warm up
        ours.started(s.programs.root).close()
    edge = min(50, s.containers // 2)
    cold, *rounds = [_many(s, edge) for _ in range(1 + s.rounds_many)]
    report.figure("many", "containers", s.containers, "live at once")
    report.figure("many", f"start, first {edge}, median", statistics.median(r.first_s for r in rounds) * 1e3, "ms")
    report.figure("many", f"start, last {edge}, median", statistics.median(r.last_s for r in rounds) * 1e3, "ms")
    report.figure("many", "last 50 / first 50", statistics.median(r.ratio for r in rounds), "times")
    report.figure("many", "last 50 / first 50, lowest", min(r.ratio for r in rounds), "times")
    report.figure("many", "last 50 / first 50, highest", max(r.ratio for r in rounds), "times")
    report.figure("many", "last 50 / first 50, in the first round", cold.ratio, "times")
    memory = [kb for r in rounds for kb in r.init_kb]
    report.figure("many", "PSS of init, median", statistics.median(memory), "kB")
    report.figure("many", "PSS of init, largest", max(memory), "kB")
    report.figure("many", "growth of the caller, per container", cold.caller_kb, "kB")


@frozen
class _Many:
    first_s: float
    last_s: float
    init_kb: list[float]
    caller_kb: float  # per container

    @property
    def ratio(self) -> float:
        return self.last_s / self.first_s


def _many(s: Setting, edge: int) -> _Many:
    time.sleep(SETTLE_MANY_S)
    with ExitStack() as stack:
        # Each edge thrice: a slow second would otherwise decide alone.
        first_times = [time_s for _ in range(3) for time_s in start_and_close(s.programs.root, edge)]
        time.sleep(SETTLE_MANY_S)
        before_kb = resident_kb()
        containers = [ours.started(s.programs.root) for _ in range(s.containers - edge)]
        for container in containers:
            stack.callback(container.close)
        caller_kb = (resident_kb() - before_kb) / len(containers)
        time.sleep(SETTLE_MANY_S)
        last_times = [time_s for _ in range(3) for time_s in start_and_close(s.programs.root, edge)]
        memory = [pss_kb(container.pid) for container in containers]
    return _Many(statistics.median(first_times), statistics.median(last_times), memory, caller_kb)


def start_and_close(root: str, count: int) -> list[float]:
    """Start *count* containers beside those that live, close them again; what each start took, in seconds."""
    times = []
    with ExitStack() as stack:
        for _ in range(count):
            begin = time.perf_counter()
            container = ours.started(root)
            times.append(time.perf_counter() - begin)
            stack.callback(container.close)
    return times


def raise_descriptor_limit() -> None:
    """A live container occupies descriptors of the embedding process; the usual soft limit of 1,024 is for select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pss_kb(pid: int) -> float:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(float(line.split()[1]) for line in file if line.startswith("Pss:"))


def resident_kb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1024


def measure_threads(s: Setting, report: Report) -> None:
    """Throughput with many threads at once, against one thread and against subprocess in as many threads."""
    p = s.programs
    total = s.threads * s.per_thread
    with ExitStack() as stack:
        live = ours.live(stack, p.root)
        jobs: dict[str, Callable[[], object]] = {
            "create + run + destroy": ours.whole(p.root, **ours.LIMITS),
            "exec in one live container": ours.execution(live, **ours.NULL),
            "subprocess": lambda: subprocess.run([p.true], **peers.QUIET, check=True),
        }
        if shutil.which("bwrap"):
            jobs["bwrap"] = lambda: subprocess.run(peers.bwrap(p), **peers.QUIET, check=True)
        for name, job in jobs.items():
            report.figure("threads", f"{name}, 1 thread", rate(job, 1, min(total, 200)), "a second")
            report.figure("threads", f"{name}, {s.threads} threads", rate(job, s.threads, s.per_thread), "a second")


def rate(job: Callable[[], object], threads: int, each: int) -> float:
    """How many times a second *job* runs, in *threads* threads. Raises: the first error of any thread."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(each):
                job()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            errors.append(error)

    job()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    begin = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - begin
    if errors:
        raise errors[0]
    return threads * each / elapsed


def measure_import(s: Setting, report: Report) -> None:
    """What importing adds to a bare interpreter: differences of runs side by side.

    Twice: ``import sandbox`` alone, and with the names that a caller needs, which a package may load late.
    """
    env = {**ours.ENVIRONMENT, "PYTHONPATH": ours.PACKAGE_PARENT}

    def interpreter(code: str) -> Callable[[], float]:
        return timed(lambda: subprocess.run([sys.executable, "-c", code], **peers.QUIET, env=env, check=True))

    bare, package, names = interpreter("pass"), interpreter("import sandbox"), interpreter("from sandbox import Container, run")
    for call in (bare, package, names):  # writes the bytecode cache
        call()
    turns = [(bare(), package(), names()) for _ in range(s.imports)]
    report.figure("import", "bare interpreter", statistics.median(b for b, _, _ in turns) * 1e3, "ms")
    report.figure("import", "import sandbox", statistics.median(p - b for b, p, _ in turns) * 1e3, "ms")
    report.figure("import", "from sandbox import Container, run", statistics.median(n - b for b, _, n in turns) * 1e3, "ms")


DEADLINE_S = 0.05


def measure_deadline(s: Setting, report: Report) -> None:
    """How late a deadline kills: wall as the caller sees it, start and end of the run included; CPU as the result tells."""
    with ExitStack() as stack:
        container = ours.live(stack, s.programs.root, **ours.LIMITS)
        late = timed(ours.wall_overshoot(container, DEADLINE_S))
        wall = [late() - DEADLINE_S for _ in range(s.deadlines)]
        cpu = [ours.cpu_overshoot(container, DEADLINE_S) for _ in range(s.deadlines)]
    report.figure("deadline", "runs of each kind", s.deadlines, "")
    for kind, values in (("wall", wall), ("CPU", cpu)):
        report.figure("deadline", f"{kind}, median", statistics.median(values) * 1e3, "ms")
        report.figure("deadline", f"{kind}, worst", max(values) * 1e3, "ms")


def measure_output(s: Setting, report: Report) -> None:
    """How fast output flows: thrown away, into a file, captured, streamed; against subprocess and a shell's pipe."""
    p = s.programs
    argv = [p.work, "write", str(s.output)]
    path = os.path.join(p.scratch, "output")
    with ExitStack() as stack:
        live = ours.live(stack, p.root)
        file = stack.enter_context(open(path, "wb", buffering=0))

        def rewound() -> int:
            os.ftruncate(file.fileno(), 0)
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            return file.fileno()

        jobs: dict[str, Callable[[], object]] = {
            "discarded, sandbox": lambda: ours.write(live, s.output, ours.NULL["stdout"]),
            "discarded, subprocess": lambda: subprocess.run(argv, **peers.QUIET, check=True),
            "into a file, sandbox": lambda: ours.write(live, s.output, rewound()),
            "into a file, subprocess": lambda: subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=rewound(), check=True),
            "captured, sandbox": lambda: captured(s.output, ours.write(live, s.output, -1, output_limit=s.output).stdout),
            "captured, subprocess": lambda: captured(s.output, subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=-1, check=True).stdout),
            "streamed, sandbox": lambda: _expect_size(s.output, ours.stream(live, s.output)),
            "streamed, subprocess": lambda: _expect_size(s.output, _stream_on_host(argv)),
            "piped into cat by a shell": lambda: subprocess.run(["sh", "-c", f"{' '.join(argv)} | cat >/dev/null"], check=True),
        }
        times = _by_turns(jobs, 3, s.rng)
        os.ftruncate(file.fileno(), 0)
    report.figure("output", "bytes", s.output, "")
    for name in jobs:
        report.figure("output", name, s.output / times[name].median / 1e6, "MB/s")


def measure_files(s: Setting, report: Report) -> None:
    """1,000 small files and one large one, into a live container and out of it; against cp, and tar through a pipe into a program inside."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))  # no disk's business
        tree, large, out = (os.path.join(directory, name) for name in ("tree", "large", "out"))
        for number in range(1000):
            os.makedirs(folder := os.path.join(tree, str(number % 20)), exist_ok=True)
            with open(os.path.join(folder, str(number)), "wb") as file:
                file.write(b"x" * 1000)
        with open(large, "wb") as file:
            file.write(os.urandom(1 << 20) * 64)
        box = ours.file_box(stack)
        box.copy_in(tree, "/work/source")
        box.copy_in(large, "/work/large-source")

        def tar() -> None:
            with subprocess.Popen(["tar", "c", "-C", tree, "."], stdout=subprocess.PIPE) as packer:
                assert packer.stdout is not None
                ours.unpack(box, packer.stdout.fileno())

        def fresh() -> None:
            box.remove("/work/tree", recursive=True, missing_ok=True)
            box.make_dirs("/work/tree")
            shutil.rmtree(out, ignore_errors=True)
            if os.path.isfile(out):
                os.unlink(out)

        jobs: dict[str, Callable[[], object]] = {
            "1,000 files in, sandbox": lambda: box.copy_in(tree, "/work/tree"),
            "1,000 files in, tar in a pipe": tar,
            "1,000 files out, sandbox": lambda: box.copy_out("/work/source", out),
            "1,000 files, cp -r on the host": lambda: subprocess.run(["cp", "-r", tree, out], check=True),
            "1,000 files removed, sandbox": lambda: box.remove("/work/source", recursive=True),
            "64 MiB in, sandbox": lambda: box.copy_in(large, "/work/large"),
            "64 MiB out, sandbox": lambda: box.copy_out("/work/large-source", out),
            "64 MiB, cp on the host": lambda: subprocess.run(["cp", large, out], check=True),
        }
        samples = {name: Samples() for name in jobs}
        for index in range(7):
            for name in s.rng.sample(list(jobs), len(jobs)):
                fresh()
                samples[name].by_round[index] = [timed(jobs[name])()]
                if "removed" in name:
                    box.copy_in(tree, "/work/source")
    for name in jobs:
        report.figure("files", name, samples[name].median * 1e3, "ms")


def _by_turns(jobs: dict[str, Callable[[], object]], rounds: int, rng: random.Random) -> dict[str, Samples]:
    samples = {name: Samples() for name in jobs}
    for index in range(rounds):
        turn: Sequence[str] = rng.sample(list(jobs), len(jobs))
        for name in turn:
            samples[name].by_round[index] = [timed(jobs[name])()]
    return samples


def captured(expected: int, data: bytes) -> None:
    _expect_size(expected, len(data))


def _expect_size(expected: int, size: int) -> None:
    if size != expected:
        raise RuntimeError(f"{size} bytes of output arrived, not {expected}")


def _stream_on_host(argv: list[str]) -> int:
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        return ours.drain(process.stdout)


def measure_killed(s: Setting, report: Report) -> None:
    """Kill the embedding process with SIGKILL at random moments, and count what is left a second later."""
    environment = {**os.environ, "PYTHONPATH": ours.PACKAGE_PARENT}
    left: list[str] = []
    for _ in range(s.kills):
        left += leftovers.kill_at(ours.EMBEDDING, s.rng.uniform(0.0, 0.05), environment).lines()
    report.figure("killed", "embedding processes killed", s.kills, "")
    report.figure("killed", "left behind", len(left), "things")
    report.notes += [f"left behind by kill -9: {line}" for line in left[:20]]


GROUPS: dict[str, Callable[[Setting, Report], None]] = {
    "exec": measure_exec,
    "pool": measure_pool,
    "run": measure_run,
    "net": measure_net,
    "many": measure_many,
    "threads": measure_threads,
    "import": measure_import,
    "deadline": measure_deadline,
    "output": measure_output,
    "files": measure_files,
    "killed": measure_killed,
}
