"""Tests that run inside a container (``@pytest.mark.sandbox(inside=True)``): their reports are as those of any other test."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.support import import_path, needs, patience, why_not

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]
pytestmark = needs("userns")

CHECK = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:xdist.looponfail", "--strict-markers")


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")  # it takes longer than all the rest
    monkeypatch.setenv("PYTHONPATH", import_path())


CONFTEST = """
import os, pytest

def pytest_addoption(parser): parser.addoption("--flavour", default="plain")

@pytest.fixture
def number(): return 42

@pytest.fixture
def bad(): raise RuntimeError("the fixture fails")

@pytest.fixture(autouse=True, scope="session")
def where():
    # Set up where the tests run, not here.
    assert os.path.exists("/etc/shadow") == (os.environ.get("HOME") != "/tmp")
"""
TESTS = """
import logging, os, sys, unittest, warnings
import pytest

pytestmark = pytest.mark.sandbox(inside=True)

def test_fixtures(number, tmp_path, capsys, monkeypatch, request, record_property):
    print("captured"); assert capsys.readouterr().out == "captured\\n"
    (tmp_path / "x").write_text("x"); monkeypatch.setenv("A", "b")
    assert number == 42 and os.getpid() < 20 and os.getppid() <= 1 and request.config.getoption("--flavour") == "sweet"
    record_property("colour", "green")

@pytest.mark.sandbox(env={"COLOUR": "blue"}, hostname="inner")
def test_it_is_shut_in():
    assert os.environ["COLOUR"] == "blue" and os.uname().nodename == "inner"
    assert not os.path.exists("/etc/shadow")
    assert "SECRET_OF_THE_CALLER" not in os.environ
    with pytest.raises(OSError): open(__file__, "a")
    assert os.listdir("/sys/class/net") == ["lo"] if os.path.isdir("/sys/class/net") else True

def test_fails():
    print("to stdout"); print("to stderr", file=sys.stderr); logging.getLogger("x").warning("to the log")
    some = [1, 2, 3]
    assert some == [1, 2, 4]

def test_bad_fixture(bad): pass

def test_bad_teardown(request): request.addfinalizer(lambda: 1 / 0)

def test_skips(): pytest.skip("no reason")

@pytest.mark.skipif(True, reason="by mark")
def test_skips_by_mark(): pass

@pytest.mark.xfail(raises=ValueError, reason="known")
def test_xfails(): raise ValueError

@pytest.mark.xfail(raises=ValueError, reason="known")
def test_fails_otherwise(): raise KeyError("other")

@pytest.mark.xfail(strict=True, reason="expected")
def test_strict(): pass

@pytest.mark.xfail
def test_xpasses(): pass

def test_xfails_imperatively(): pytest.xfail("imperative")

@pytest.mark.parametrize("n", [2, "a::b[\\u00e9"])
def test_parameters(n): assert n != 2

def test_warns(): warnings.warn("careful", DeprecationWarning)

class TestMethods:
    @pytest.fixture(autouse=True)
    def prepare(self): self.prepared = True
    def test_method(self): assert self.prepared

class TestCase(unittest.TestCase):
    def setUp(self): self.pid = min(os.getpid(), 20) % 20
    def test_of_unittest_fails(self): self.assertEqual(self.pid, 0)

@pytest.mark.sandbox(inside=False)
def test_outside(): assert os.path.exists("/etc/shadow")

"""


# As root alone: it takes long, and the tests below show that an ordinary user has the same.
def test_everything_is_reported_as_usual(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "x")
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\naddopts = --flavour=sweet -ra\njunit_family = xunit1\n")
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest_subprocess(*CHECK, "--junit-xml=out.xml")
    result.assert_outcomes(passed=7, failed=5, errors=2, skipped=2, xfailed=2, xpassed=1, warnings=1)
    result.stdout.fnmatch_lines(["*ERROR at setup of test_bad_fixture*", "", "    @pytest.fixture", "*RuntimeError: the fixture fails", "*conftest.py:*: RuntimeError"])
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_bad_teardown*", "E   ZeroDivisionError: division by zero"])
    result.stdout.fnmatch_lines(
        ["*_ test_fails _*", "", "    def test_fails():", ">       assert some == [[]1, 2, 4]", "E       assert [[]1, 2, 3] == [[]1, 2, 4]",
         "*- Captured stdout call -*", "to stdout", "*- Captured stderr call -*", "to stderr", "*- Captured log call -*", "WARNING*to the log"]
    )  # fmt: skip
    result.stdout.fnmatch_lines_random(
        ["SKIPPED*: no reason", "SKIPPED*: by mark", "XFAIL*::test_xfails - known", "XFAIL*- *imperative", "XPASS*::test_xpasses*",
         "ERROR*::test_bad_fixture - RuntimeError: the fixture fails", "FAILED*::test_fails - assert [[]1, 2, 3] == [[]1, 2, 4]",
         "FAILED*::test_fails_otherwise - KeyError: 'other'", "FAILED*::test_strict - [[]XPASS(strict)] expected", "FAILED*::test_parameters[[]2] - assert 2 != 2",
         "FAILED*::TestCase::test_of_unittest_fails - AssertionError: 2 != 0",
         "*DeprecationWarning: careful"]
    )  # fmt: skip
    assert ET.parse(pytester.path / "out.xml").findall(".//property[@name='colour'][@value='green']")


ENDS = """
import os, sys, time
import pytest

inside = pytest.mark.sandbox(inside=True)

@pytest.mark.sandbox(inside=True, timeout=0.8)
def test_time(): time.sleep(100)

@inside
def test_signal(): print("before"); sys.stdout.flush(); os.kill(os.getpid(), 9)

@inside
def test_output():
    while True: os.write(1, b"x" * 65536)

@pytest.fixture
def killed(): os.kill(os.getpid(), 9)

@inside
def test_setup(killed): pass

@inside
def test_teardown(request): request.addfinalizer(lambda: os._exit(5))

@inside
def test_stops_pytest(): pytest.exit("enough")

@inside
def test_forges():
    os.write(3, b'{"when": "call", "outcome": "passed"}\\n' + b"\\x80\\x04\\x95 no pickle\\n"); os._exit(0)

@inside
def test_escapes(): assert "\\x1b]0;owned\\x07" == ""

@pytest.mark.parametrize("x", [object()], ids=lambda x: str(os.getpid()))
@inside
def test_ids_that_differ(x): pass

def test_goes_on(): pass
"""


@pytest.mark.unprivileged
def test_a_test_that_does_not_come_to_its_end_says_why(pytester: pytest.Pytester):
    pytester.makepyfile(test_it=ENDS)
    result = pytester.runpytest_subprocess(*CHECK, "-ra", "-s", "--tb=short", "-o", "console_output_style=classic")
    outcomes = result.parseoutcomes()
    # On a slow machine, the time is over before the test has begun.
    assert (outcomes["passed"], outcomes["failed"] + outcomes["errors"]) == (2, 9)
    ended = "the test's process ended before its report, with exit code"
    result.stdout.fnmatch_lines_random(
        ["*before", "TIMEOUT: the test took more time than timeout=0.8 lets it have", "SIGNALED: the test was ended by signal 9",
         "OUTPUT_LIMIT: the test wrote more than 8 MiB", "*ERROR at setup of test_setup*", "*ERROR at teardown of test_teardown*", f"{ended} 5",
         "*what came out of the container is no report", "*ERROR at setup of test_ids_that_differ*",
         "*pytest inside the container was ended:*enough"]
    )  # fmt: skip
    result.stderr.fnmatch_lines(["*not found: *test_ids_that_differ*"])
    assert "\x1b" not in result.stdout.str()
    assert "\x07" not in result.stdout.str()


@pytest.mark.unprivileged
@needs("cgroup:memory", "cgroup:pids")
def test_limits_give_a_clear_failure(pytester: pytest.Pytester):
    seconds = round(patience(1.0), 1)
    pytester.makepyfile(f"""
        import os, pytest, sys
        @pytest.mark.sandbox(inside=True, memory="96M")
        def test_memory(): print("before"); sys.stdout.flush(); bytearray(200 << 20)
        @pytest.mark.sandbox(inside=True, cpu_time={seconds})
        def test_cpu():
            while True: pass
        @pytest.mark.sandbox(inside=True, memory="96M")
        def test_child_is_killed():
            if os.fork() == 0: bytearray(200 << 20); os._exit(0)
            os.wait()
        @pytest.mark.sandbox(inside=True, security="strict")
        def test_syscall():
            import ctypes; ctypes.CDLL(None).mount(None, None, None, 0, None)
    """)
    result = pytester.runpytest_subprocess(*CHECK)
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] + outcomes.get("errors", 0) == 4
    result.stdout.fnmatch_lines(
        ["MEMORY_LIMIT: the test took more memory than memory='96M' lets it have (peak: *", "before",
         f"CPU_LIMIT: the test took more CPU time than cpu_time={seconds} lets it have", "MEMORY_LIMIT: *", "SYSCALL_DENIED: the test called the forbidden system call *"]
    )  # fmt: skip


@pytest.mark.unprivileged
def test_limits_that_cannot_be_enforced_are_an_error(pytester: pytest.Pytester):
    if not why_not("cgroup:memory"):
        pytest.skip("needs a host where this user has no memory control group")
    pytester.makepyfile("import pytest\n@pytest.mark.sandbox(inside=True, memory='96M')\ndef test_x(): pass")
    result = pytester.runpytest_subprocess(*CHECK)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E*UnsupportedError: *"])


@pytest.mark.unprivileged
def test_an_interpreter_anywhere_on_disk_is_shown(pytester: pytest.Pytester, tmp_path: Path):
    """A virtual environment behind links, with a package that only an import hook finds, and a project elsewhere."""
    real = tmp_path / "some where" / "venv"
    assert pytester.run(sys.executable, "-m", "venv", "--without-pip", real).ret == 0
    (tmp_path / "link").symlink_to(real)
    hooked = tmp_path / "hooked"
    hooked.mkdir()
    (hooked / "hooked_package.py").write_text("colour = 'red'\n")
    (site,) = real.glob("lib/python3*/site-packages")
    hook = f"import importlib.util, sys; s = importlib.util.spec_from_file_location('hooked_package', {str(hooked / 'hooked_package.py')!r}); "
    hook += "m = importlib.util.module_from_spec(s); sys.modules['hooked_package'] = m; s.loader.exec_module(m)\n"
    (site / "all.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith(("-packages", "/site"))) + f"{ROOT}\n" + hook)
    pytester.makepyfile(test_it="""
        import sys, subprocess
        import hooked_package
        import pytest
        @pytest.mark.sandbox(inside=True)
        def test_x():
            assert "/link/" in sys.executable and sys.prefix != sys.base_prefix and hooked_package.colour == "red"
            assert subprocess.run([sys.executable, "-c", "import pytest"]).returncode == 0
    """)
    result = pytester.run(tmp_path / "link" / "bin" / "python", "-m", "pytest", *CHECK)
    result.stdout.fnmatch_lines(["*1 passed*"])


@pytest.mark.unprivileged
def test_another_plugins_timeout_ends_the_container(pytester: pytest.Pytester):
    pytester.makepyfile("""
        import pytest, time
        @pytest.mark.timeout(2)
        @pytest.mark.sandbox(inside=True)
        def test_x(): time.sleep(100)
        def test_goes_on(): pass
    """)
    result = pytester.runpytest_subprocess(*CHECK)
    assert result.parseoutcomes()["passed"] == 1
    result.stdout.fnmatch_lines([re.sub(r"([\[\]])", r"[\1]", "*Timeout*")])
