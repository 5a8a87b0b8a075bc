"""The numbers of wire.py are those of the C headers, and what Python encodes is what the C side reads: both ends."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandbox import _plan as plan
from sandbox._launch import codec, wire
from sandbox.sec.traces import TOKEN
from tests.support import needs
from tests.unit.plans import KINDS, OPERATIONS, creations, executions

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "sandbox/_launch/c"


def numbers() -> dict[str, int]:
    """The enumerators of the headers, all of which have their value written beside them."""
    text = "".join((SOURCES / name).read_text() for name in ("wire.h", "exec.h", "ops.h"))
    found: dict[str, int] = {}
    for body in re.findall(r"enum \{(.*?)\};", text, re.DOTALL):
        for name, value in re.findall(r"(\w+)\s*=\s*([^,\n}]+)", re.sub(r"//.*", "", body)):
            found[name] = sum(int(a, 0) << int(b or "0", 0) for a, b in [re.fullmatch(r"(-?\w+)(?: << (\w+))?", value.strip()).groups()])  # type: ignore[union-attr,misc]
    return found


def test_headers_are_understood() -> None:
    assert numbers()["WIRE_MAX"] == 16 << 20
    assert numbers()["NO_SLOT"] == 0xFFFF
    assert numbers()["FROM_NULL"] == -2


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [(wire.Msg, "MSG_"), (wire.Phase, "PHASE_"), (wire.Step, "STEP_"), (wire.Cause, "CAUSE_"), (wire.CpuFormat, "CPU_"), (wire.GroupStep, "GROUP_")],
)
def test_enumerations_are_those_of_c(kind: type[wire.Msg], prefix: str) -> None:
    assert {prefix + member.name.removeprefix(prefix): member.value for member in kind} == {k: v for k, v in numbers().items() if k.startswith(prefix)}


def test_flags_are_those_of_c() -> None:
    ours = {name: value for name, value in vars(wire).items() if name.startswith(("CREATE_", "EXEC_", "DETAIL_"))}
    assert ours == {name: value for name, value in numbers().items() if name.startswith(("CREATE_", "EXEC_", "DETAIL_"))}


def test_limits_are_those_of_c() -> None:
    c = numbers()
    assert tuple(
        c[name] for name in ("WIRE_INLINE", "WIRE_FDS", "WIRE_MAX", "SLOTS", "NO_SLOT", "OWN_NULL")
    ) == (wire.INLINE, wire.MAX_FDS, wire.MAX_BODY, wire.SLOTS, wire.NO_SLOT, wire.OWN_NULL)
    assert (c["HEAD_MEMFD"], c["SLOT_ROLE_BASE"]) == (wire.HEAD_MEMFD, wire.ROLE_SLOT)
    assert (c["ROLE_ROOT"], c["ROLE_PROC"], c["ROLE_PTS"]) == (plan.ROLE_ROOT, plan.ROLE_PROC, plan.ROLE_PTS)
    assert (c["ROLE_LAST_PID"], c["ROLE_UPPER"], c["ROLE_UNSEALED"]) == (plan.ROLE_LAST_PID, plan.ROLE_UPPER, plan.ROLE_UNSEALED)


def test_the_constant_that_stands_for_inits_own_number_is_that_of_c() -> None:
    high, low = re.findall(r"TOKEN_\w+ = (0x\w+)", (SOURCES / "ops.h").read_text())
    assert int(high, 0) << 32 | int(low, 0) == TOKEN


def test_codes_of_operations_are_those_of_c() -> None:
    table = (SOURCES / "ops.c").read_text()
    theirs = {int(number) for number in re.findall(r"\[(\d+)\] = op_\w+", table)}
    assert theirs == {op.CODE for op in KINDS}


# ---- Both ends ----


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that prints what the C side makes of a body."""
    program = tmp_path_factory.mktemp("show") / "show"
    sources = [ROOT / "tests/c/show.c", *(SOURCES / name for name in ("exec.c", "held.c", "init.c", "message.c"))]
    command = ["gcc", "-std=gnu11", "-w", f"-I{SOURCES}", f"-I{ROOT / 'tests/c'}", "-o", program, *sources]
    subprocess.run(command, check=True)
    return program


def shown(program: Path, *arguments: str, body: bytes) -> list[str]:
    done = subprocess.run([program, *arguments], input=body, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode("utf-8", "surrogateescape").splitlines()


both_ends = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
FDS = 250


@needs("program:gcc")
@both_ends
@given(executions(FDS))
def test_c_reads_an_execution_as_it_was_meant(show: Path, x: codec.ExecRequest) -> None:
    def fd(reference: int) -> int:
        return -1 if reference == wire.NO_SLOT else reference

    expected = [f"{name} {getattr(x, name)}" for name in ("flags", "uid", "gid", "umask", "wall_ns", "cpu_ns", "cpus_milli")]
    expected += [f"cpu_fd {fd(x.cpu_fd)}", f"cpu_format {x.cpu_format}", f"into_cgroup {fd(x.into_cgroup)}"]
    expected += [f"rows {x.rows}", f"columns {x.columns}", f"ngroups {0xFFFFFFFF if x.groups is None else len(x.groups)}"]
    expected += [f"group {group}" for group in x.groups or ()]
    expected += [f"join {join}" for join in x.joins]
    expected += [f"fd {source} {target}" for source, target in x.fds]
    expected += ["rlimit {} {} {}".format(*limit) for limit in x.rlimits]
    expected += [f"cwd {x.cwd.hex()}", *(f"candidate {path.hex()}" for path in x.candidates)]
    expected += [*(f"argv {word.hex()}" for word in x.argv), *(f"env {word.hex()}" for word in x.env)]
    assert shown(show, "exec", str(FDS), body=codec.encode_exec(x)) == expected


@needs("program:gcc")
@both_ends
@given(creations(FDS))
def test_c_reads_a_creation_as_it_was_meant(show: Path, k: codec.CreateRequest) -> None:
    expected = [f"clone_flags {k.clone_flags}", f"flags {k.flags}", f"uid {k.uid}", f"gid {k.gid}"]
    expected += [f"into_cgroup {-1 if k.into_cgroup == wire.NO_SLOT else k.into_cgroup}"]
    expected += [f"uid_map {k.uid_map[4:-1].hex()}", f"gid_map {k.gid_map[4:-1].hex()}"]
    expected += [f"join {slot} {kind}" for slot, kind in k.joins]
    expected += [f"cleanup {path.hex()}" for path in k.cleanup]
    expected += [f"groups {k.groups.hex()}", f"host_ops {k.host_ops.hex()}", f"init_ops {k.init_ops.hex()}", f"exec {k.exec.hex()}"]
    assert shown(show, "create", str(FDS), body=codec.encode_create(k)) == expected


@needs("program:gcc")
@both_ends
# What uses a slot that was closed before is rightly not read to its end: so a Close comes last.
@given(st.lists(OPERATIONS.filter(lambda op: not isinstance(op, plan.Close)), max_size=12), st.booleans())
@example([plan.NewOverlay("slot0", (("", None), ("key", "a,b")), plan.FdPath("slot1"), classic=True)], False)
def test_c_reads_every_operation_to_its_last_byte(show: Path, ops: list[plan.Op], closes: bool) -> None:
    ops = [*ops, plan.Close("slot0")] if closes else ops
    body = struct.pack("<I", len(ops)) + codec.encode_ops(ops, codec.SlotTable((f"slot{n}" for n in range(8)), first=0))
    lines = shown(show, "ops", body=body)
    assert [line for line in lines if line.startswith("op ")] == [f"op {op.CODE} {int(bool(getattr(op, 'optional', False)))}" for op in ops]
    # Neither malformed nor left unread. The result itself is the stubs' and the operation's own business.
    assert [line.split()[2:] for line in lines if line.startswith("result ")] == [["0", "0"]] * len(ops)
    assert lines[-1] == "left 0"


@needs("program:gcc")
def test_c_passes_on_the_strings_of_operations(show: Path) -> None:
    ops = (plan.SetHostname("box"), plan.Symlink("a/link", "/its/target", "s"), plan.NewFs("m", "tmpfs", (("size", "64M"),)))
    body = struct.pack("<I", len(ops)) + codec.encode_ops(ops, codec.SlotTable(("s",), first=0))
    calls = "\n".join(shown(show, "ops", body=body))
    for call in ("sethostname(box, -)", "openat2(a, -)", "symlinkat(link, /its/target)", "fsopen(tmpfs, -)", "fsconfig(size, 64M)"):
        assert call in calls
