"""Helper processes for `sandbox.ns`: children of the launcher that join or make namespaces, and programs in them.

They are no containers: but for a pid namespace of their own (so that nothing outlives them) they have the caller's rights.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final

from sandbox import _plan as plan
from sandbox import _spec
from sandbox._arguments import ExecOptions, build_spec, text_of
from sandbox._compile import helper_plan
from sandbox._launch import codec, wire
from sandbox._launch.driver import Channel
from sandbox._result import Result
from sandbox._run import Spec
from sandbox._session import Session
from sandbox._sys import features
from sandbox._sys.floor import check_floor
from sandbox._types import PIPE
from sandbox._users import Identity
from sandbox._wiring import wire_up
from sandbox.cg import Leaf
from sandbox.errors import UsageError
from sandbox.sec import Rlimits

_UNCHANGED: Final = 0xFFFFFFFF  # setresuid(2): -1 leaves an id as it is
_SELF: Final = Identity(_UNCHANGED, _UNCHANGED, None, "/")
_MAX_OUTPUT: Final = 64 << 20


class Helpers:
    """The `sandbox.ns.Spawner` of this process."""

    @contextlib.contextmanager
    def helper(self, planned: plan.Plan) -> Generator[int]:
        """Start a process that has carried out *planned* and waits until the block ends; gives its pid."""
        session = start_helper(planned, wire.CREATE_DIRECT)
        try:
            yield session.pid
        finally:
            session.close()

    def run(self, planned: plan.Plan, argv: tuple[bytes, ...], /, **options: Any) -> Result:  # noqa: ANN401
        """Run one program in a process set up by *planned*, and wait for it."""
        known = {"input", "env", "cwd", "timeout", "output_limit", "on_overflow", "umask", "text", "encoding", "errors", "check"}
        known |= {"stdin", "stdout", "stderr"}
        if unknown := options.keys() - known:
            raise UsageError(f"run: {min(unknown)!r} is not for programs in namespaces; they can have {', '.join(sorted(known))}")
        text = text_of(options.pop("text", False), options.pop("encoding", None), options.pop("errors", "strict"))
        check = options.pop("check", False)
        data = options.pop("input", None)
        if isinstance(data, str):
            data = data.encode(text.encoding or "utf-8")
        streams = [options.pop(name, default) for name, default in (("stdin", None), ("stdout", PIPE), ("stderr", PIPE))]
        prepared = build_spec(_exec_options(argv, options), _container(), lambda _: _SELF)
        wiring = wire_up(PIPE if data is not None else streams[0], streams[1], streams[2], {}, tty=False)
        try:
            session = start_helper(planned, 0)
        except BaseException:
            wiring.close()
            raise
        try:
            result = session.run(prepared.spec, wiring, data, None, text=text, leaves=_NoLeaves())
        finally:
            session.close()
        return result.check() if check else result


class _NoLeaves:
    """Programs here have no control groups."""

    def tidy(self, has_ended: Callable[[], bool]) -> None:
        """Nothing to do."""

    def retire(self, leaf: Leaf) -> None:
        """There is none."""
        raise AssertionError(leaf)


def start_beside(planned: plan.Plan, argv: tuple[bytes, ...], fds: Mapping[int, int]) -> tuple[Session, Channel, Spec]:
    """Start a program in a helper of its own, with *fds* (inside -> ours, copied), and do not wait for it: it ends with the session.

    What becomes of it comes on the channel, which is the caller's.
    """
    prepared = build_spec(_exec_options(argv, {"env": {}}), _container(), lambda _: _SELF)
    wiring = wire_up(None, None, None, fds, tty=False)
    session = start_helper(planned, 0)
    try:
        channel, _ = session.launch(prepared.spec, wiring, None, leaves=_NoLeaves())
    except BaseException:
        session.close()
        raise
    return session, channel, prepared.spec


def start_helper(planned: plan.Plan, flags: int) -> Session:
    """Start a process that has carried out *planned*; without CREATE_DIRECT it is an init, which takes requests."""
    check_floor()
    names = tuple(planned.fds)
    slots = codec.SlotTable(names)
    compiled = helper_plan(planned, names, mount_setattr=features.mount_setattr())
    session = Session(compiled)
    request = codec.CreateRequest(
        clone_flags=planned.clone_flags,
        flags=flags | (wire.CREATE_DENY_SETGROUPS if planned.deny_setgroups else 0),
        uid=_UNCHANGED,
        gid=_UNCHANGED,
        uid_map=codec.encode_maps(planned.uid_map),
        gid_map=codec.encode_maps(planned.gid_map),
        joins=tuple((slots.number(name), kind) for name, kind in planned.joins),
        cleanup=(),
        groups=b"",
        host_ops=compiled.all_host_ops,
        init_ops=compiled.all_init_ops,
        exec=b"",
    )
    session.start(codec.encode_create(request), list(planned.fds.values()))
    return session


def _exec_options(argv: tuple[bytes, ...], options: dict[str, Any]) -> ExecOptions:
    return ExecOptions(
        argv=argv,
        env=options.get("env"),
        cwd=options.get("cwd"),
        user=None,
        timeout=options.get("timeout"),
        cpu_time=None,
        memory=None,
        swap=None,
        cpus=None,
        pids=None,
        output_limit=options.get("output_limit", _MAX_OUTPUT),
        on_overflow=options.get("on_overflow", "kill"),
        rlimits=None,
        umask=options.get("umask", 0o022),
        pass_fds=(),
        accounting=None,
    )


def _container() -> _spec.ContainerSpec:
    return _spec.build(
        image=None,
        net=None,
        joins=(),
        share=(),
        mounts=(),
        env={name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        cwd=None,
        user=None,
        hostname="sandbox",
        domainname=None,
        read_only=False,
        scratch=None,
        shm="64M",
        security="default",
        rlimits=Rlimits(),
        strict=True,
        time_offsets=None,
    )
