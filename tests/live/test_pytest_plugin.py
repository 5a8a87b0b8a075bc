"""The pytest plugin, from outside: pytest runs of their own, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.leak.killed import run_and_kill
from tests.leak.snapshot import Snapshot
from tests.support import import_path, needs, patience

pytest_plugins = ["pytester"]
pytestmark = [pytest.mark.unprivileged, needs("userns", "program:python3")]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "pytest_service"
CHECK = ("-p", "no:cacheprovider", "--strict-markers", "-W", "error")


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set for this suite is not for those that it runs."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_AUTO_NUM_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")  # it takes longer than all the rest
    monkeypatch.setenv("PYTHONPATH", import_path())


def are_gone(pids: list[int]) -> bool:
    """Soon: what has been killed is reaped a moment later."""
    deadline = time.monotonic() + patience(10)
    while (alive := any(os.path.exists(f"/proc/{pid}") for pid in pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive


def pids_in(path: Path) -> list[int]:
    return [int(word) for word in path.read_text().split()]


# ---- Fixtures and marks ----

FIXTURES = """
import pytest

@pytest.fixture(scope="session")
def sandbox_options():
    return {"hostname": "of-options", "env": {"A": "options"}}

class Pids:
    def __init__(self): self.of = {}
    def note(self, container):
        with open("pids", "a") as file: print(container.pid, file=file)
        return container.pid

@pytest.fixture(scope="session")
def pids(): return Pids()
"""
SCOPES = """
import os, pytest

pytestmark = pytest.mark.sandbox(hostname="of-module")

def name(container): return container.exec(["hostname"], text=True).stdout.strip()

def test_nearest_says_the_last_word(container, session_container, module_container, pids):
    assert (name(container), name(module_container), name(session_container)) == ("of-module", "of-module", "of-options")
    assert container.exec(["sh", "-c", "echo $A"]).stdout == b"options\\n"
    pids.note(container), pids.note(session_container)

@pytest.mark.sandbox(hostname="of-test")
@pytest.mark.parametrize("expected", ["of-test", pytest.param("of-set", marks=pytest.mark.sandbox(hostname="of-set"))])
def test_each_test_has_its_own(container, module_container, container_factory, expected, pids):
    pids.note(container)
    assert name(container) == name(container_factory()) == expected
    assert name(container_factory(hostname="given")) == "given"
    assert name(module_container) == "of-module"

@pytest.mark.sandbox(hostname="of-class")
class TestClass:
    def test_one(self, class_container, class_container_factory, pids):
        pids.of["class"] = pids.note(class_container)
        pids.of["made"] = class_container_factory().pid
        assert name(class_container) == "of-class"
    def test_two(self, class_container, session_container, pids):
        assert class_container.pid == pids.of["class"] and os.path.exists(f"/proc/{pids.of['made']}")
        pids.of["session"] = session_container.pid

def test_later(session_container, module_container, pids):
    assert session_container.pid == pids.of["session"]
    assert not os.path.exists(f"/proc/{pids.of['class']}") and not os.path.exists(f"/proc/{pids.of['made']}")
    pids.of["module"] = module_container.pid
"""
OTHER_MODULE = """
import os
def test_in_another_module(session_container, module_container, pids):
    assert session_container.pid == pids.of["session"] and module_container.pid != pids.of["module"]
    assert not os.path.exists(f"/proc/{pids.of['module']}")
"""


def test_containers_live_as_long_as_their_scope_and_marks_say_how_they_are_made(pytester: pytest.Pytester):
    pytester.makeconftest(FIXTURES)
    pytester.makepyfile(test_a=SCOPES, test_b=OTHER_MODULE)
    pytester.runpytest_subprocess(*CHECK).assert_outcomes(passed=7)
    noted = pids_in(pytester.path / "pids")
    assert len(noted) == 5
    assert are_gone(noted)


WRONG = {
    "name": ("@pytest.mark.sandbox(memroy='64M')\ndef test_x(container): pass", "*test_name.py:3: test_x: @pytest.mark.sandbox: memroy: no such option*"),
    "value": ("@pytest.mark.sandbox(memory='64 sheep')\ndef test_x(container): pass", "*@pytest.mark.sandbox: memory: *sheep*"),
    "image": ("@pytest.mark.sandbox(image='./missing')\ndef test_x(container): pass", "*@pytest.mark.sandbox: image: ./missing*no such directory*"),
    "nameless": ("@pytest.mark.sandbox('64M')\ndef test_x(container): pass", "*@pytest.mark.sandbox: '64M': options have names*"),
    "effect": ("@pytest.mark.sandbox(memory='64M')\ndef test_x(): pass", "*so the mark has no effect*"),
    "of_inside": ("@pytest.mark.sandbox(timeout=3)\ndef test_x(container): pass", "*timeout: is for a test that runs inside*"),
    "both": ("@pytest.mark.sandbox(inside=True)\ndef test_x(container): pass", "*container: a test that runs inside a container cannot make others*"),
    "inside_image": ("@pytest.mark.sandbox(inside=True, image='/srv')\ndef test_x(): pass", "*image: a test inside runs on this interpreter*"),
    "truth": ("@pytest.mark.sandbox(inside=1)\ndef test_x(): pass", "*inside: 1 is neither True nor False*"),
    "time": ("@pytest.mark.sandbox(inside=True, timeout=0)\ndef test_x(): pass", "*timeout: 0 is not a number of seconds above 0*"),
    "pool": ("@pytest.mark.sandbox(pool_size=0)\ndef test_x(sandbox_pool): pass", "*pool_size: 0 is not a number of containers*"),
}


def test_a_wrong_mark_is_an_error_of_the_collection(pytester: pytest.Pytester):
    pytester.makepyfile(**{f"test_{name}": f"import pytest\n\n{code}\n" for name, (code, _) in WRONG.items()})
    result = pytester.runpytest_subprocess(*CHECK, "-rN")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=len(WRONG))
    for _, words in WRONG.values():
        result.stdout.fnmatch_lines_random([words])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_a_wrong_mark_of_one_parameter_set_is_an_error_of_that_test(pytester: pytest.Pytester):
    pytester.makepyfile("""
        import pytest
        @pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.sandbox(memory="no"))])
        def test_x(container, x): pass
    """)
    result = pytester.runpytest_subprocess(*CHECK)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*UsageError: memory: *'no'*"])


def test_fixtures_are_listed(pytester: pytest.Pytester):
    result = pytester.runpytest_subprocess("--fixtures", "-q")
    for scope in ("", "class_", "module_", "session_"):
        for name in ("container", "container_factory", "sandbox_pool"):
            result.stdout.fnmatch_lines_random([f"{scope}{name}*pytest_plugin*"])


def test_a_run_that_does_not_use_it_imports_next_to_nothing(pytester: pytest.Pytester):
    pytester.makepyfile("""
        import sys
        def test_x():
            ours = {name for name in sys.modules if name.partition(".")[0] == "sandbox"}
            assert ours == {"sandbox", "sandbox.pytest_plugin", "sandbox.pytest_plugin._marks"}
    """)
    pytester.runpytest_subprocess(*CHECK).assert_outcomes(passed=1)


def test_without_a_pool_the_pools_fixture_says_so(pytester: pytest.Pytester):
    import sandbox

    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox(pool_size=2)
        def test_x(sandbox_pool):
            assert sandbox_pool.exec(["echo", "hi"]).stdout == b"hi\\n"
    """)
    result = pytester.runpytest_subprocess(*CHECK)
    if hasattr(sandbox, "Pool"):
        result.assert_outcomes(passed=1)
    else:
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*UnsupportedError: sandbox_pool: this release has no pool; use a later one"])


# ---- Reports ----

REPORTS = """
import pytest

@pytest.fixture(scope="session")
def service(session_container):
    return session_container.serve(["sh", "-c", "echo from the start; while read line; do echo heard $line; done"], stdin=-1).wait_for(log="start")

def say(service, word):
    service.process.stdin.write(word.encode() + b"\\n"); service.process.stdin.flush()
    service.wait_for(log="heard " + word)

def test_passes(service, container):
    say(service, "quiet"); container.exec(["echo", "not shown"])

def test_fails(service, container):
    say(service, "loud")
    container.exec(["sh", "-c", "echo \\033[31mred; echo complaint >&2; exit 4"])
    container.exec(["sh", "-c", "kill -SEGV $$"], text=True)
    assert 0

@pytest.fixture
def broken(container):
    container.serve(["sh", "-c", "echo cannot start; exit 1"], name="db").wait_for(port=1)

def test_setup_fails(broken): pass

def test_cannot_be_made(container_factory):
    container_factory().exec(["false"], check=True)
"""


def test_a_failed_test_shows_what_its_containers_wrote_and_only_that(pytester: pytest.Pytester):
    pytester.makepyfile(REPORTS)
    result = pytester.runpytest_subprocess(*CHECK)
    result.assert_outcomes(passed=1, failed=2, errors=1)
    shown = result.stdout.str()
    result.stdout.fnmatch_lines(["*ERROR at setup of test_setup_fails*", "E*ServiceError: db ended with exit code 1 before port 1 was there", "E*cannot start*"])
    result.stdout.fnmatch_lines(
        ["*_ test_fails _*", "*- container 1: view of the host -*", "$ sh: service, runs", "heard loud", "*- container 2: view of the host -*",
         "$ sh -c 'echo *: ended with exit code 4", "[\\]x1b[[]31mred", "complaint", "$ sh -c 'kill -SEGV $$': was ended by signal 11", "*_ test_cannot_be_made _*", "$ false: ended with exit code 1"]
    )  # fmt: skip
    assert "not shown" not in shown
    assert "heard quiet" not in shown
    assert "from the start" not in shown
    assert "ServiceContainer" not in shown  # what failed is the test's line, not the plugin's


# ---- xdist ----


def test_it_works_under_xdist(pytester: pytest.Pytester):
    pytester.makepyfile("""
        import pytest
        @pytest.mark.parametrize("n", range(4))
        def test_x(container, session_container, n):
            with open("pids", "a") as file: print(container.pid, session_container.pid, file=file)
            assert container.exec(["echo", "hi"]).ok
        @pytest.mark.sandbox(inside=True)
        def test_inside(): assert [1] == [2]
        def test_fails(container):
            container.exec(["echo", "told"])
            assert 0
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", "-n", "2")
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines_random(["*- container *: view of the host -*", "told", "FAILED *::test_inside - assert [[]1] == [[]2]"])
    assert are_gone(pids_in(pytester.path / "pids"))


# ---- Nothing stays ----

ENDS = """
import os, signal
def test_a(session_container): assert session_container.exec(["true"]).ok
def test_b(session_container, container):
    service = container.serve(["sh", "-c", "sleep 100 & echo up; sleep 100"]).wait_for(log="up")
    with open("pids", "a") as file, open(f"/proc/{container.pid}/task/{container.pid}/children") as children:
        print(container.pid, session_container.pid, *children.read().split(), file=file)
    {end}
    container.exec(["sleep", "100"])
def test_c(): open("reached", "w")
"""


@pytest.mark.parametrize(
    ("end", "arguments", "code"),
    [
        ("assert 0", ("-x",), pytest.ExitCode.TESTS_FAILED),
        ("os.kill(0, signal.SIGINT)", (), pytest.ExitCode.INTERRUPTED),  # as Ctrl-C: to the whole group of processes
        ("import pytest; pytest.exit('enough')", (), pytest.ExitCode.INTERRUPTED),
    ],
    ids=["-x", "Ctrl-C", "exit"],
)
def test_nothing_stays_when_a_run_ends_early(pytester: pytest.Pytester, end: str, arguments: tuple[str, ...], code: int):
    pytester.makepyfile(ENDS.replace("{end}", end))
    before = Snapshot.take()
    command = [sys.executable, "-m", "pytest", *CHECK, *arguments]
    done = subprocess.run(command, cwd=pytester.path, capture_output=True, text=True, check=False, start_new_session=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert are_gone(pids_in(pytester.path / "pids"))
    assert not (pytester.path / "reached").exists()
    assert before.wait_until_clean() == []


BLOCKS = """
import pytest
@pytest.mark.parametrize("n", range(2))
def test_x(container, session_container, n):
    container.serve(["sh", "-c", "sleep 100 & echo up; sleep 100"]).wait_for(log="up")
    with open("fifo", "w") as file: print("up", file=file)
    container.exec(["sleep", "100"])
"""
# Ready when each worker (or this process) has its containers: it cannot be seen from the controller, so the tests tell by a FIFO.
RUN = """
import os, sys, threading
os.chdir({directory!r})
sys.argv[0] = "pytest"
def announce():
    with open(os.open("fifo", os.O_RDWR), "rb", buffering=0) as file:  # never without a reader: a second one may write just then
        for _ in range({times}): file.readline()
    os.write(ready, b"ready\\n")
ready = os.dup(1)
os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
threading.Thread(target=announce, daemon=True).start()
import pytest
pytest.main({arguments!r})
"""


@pytest.mark.parametrize(("arguments", "times"), [([], 1), (["-n", "2"], 2)], ids=["alone", "controller"])
def test_nothing_stays_when_pytest_is_killed(pytester: pytest.Pytester, arguments: list[str], times: int):
    pytester.makepyfile(BLOCKS)
    os.mkfifo(pytester.path / "fifo")
    code = RUN.format(directory=os.fspath(pytester.path), arguments=["-p", "no:cacheprovider", "-q", *arguments], times=times)
    assert run_and_kill(code, patience_s=30.0 if arguments else 5.0) == []


def test_nothing_stays_of_a_worker_that_is_killed(pytester: pytest.Pytester):
    pytester.makepyfile(textwrap.dedent("""
        import os, signal
        def test_x(container, session_container):
            container.serve(["sh", "-c", "sleep 100 & echo up; sleep 100"]).wait_for(log="up")
            with open("pids", "a") as file: print(container.pid, session_container.pid, file=file)
            os.kill(os.getpid(), signal.SIGKILL)
        def test_y(container): assert container.exec(["true"]).ok
    """))
    before = Snapshot.take()
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-n", "1")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*worker 'gw0' crashed while running*test_x*"])
    assert are_gone(pids_in(pytester.path / "pids"))
    assert before.wait_until_clean() == []


# ---- The example ----


@needs("program:redis-server", "cgroup:memory", "cgroup:pids")
def test_the_example_with_a_real_service_passes(tmp_path: Path):
    command = [sys.executable, "-B", "-m", "pytest", *CHECK, f"--basetemp={tmp_path / 'base'}", os.fspath(EXAMPLE)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed" in done.stdout
