"""A container's plan in words, for `Container.explain` and ``sandbox run --explain``."""

from __future__ import annotations

import attrs

from sandbox import _host
from sandbox._compile import compile_plan
from sandbox._ids import allot, shape
from sandbox._spec import ContainerSpec
from sandbox._start import open_sources
from sandbox._users import number_of
from sandbox.cg import Limits


def explain(spec: ContainerSpec) -> str:
    """The plan in words; opens the sources, starts nothing."""
    host = _host.host()
    ids = shape(privileged=host.privileged, uid=number_of(spec.user, spec.filesystem.root), subids=spec.subids)
    with open_sources(spec, host, ids, announce=lambda path: None) as fsplan:
        compiled = compile_plan(spec, host, fsplan)
    example = allot(ids)
    try:
        lines = [attrs.evolve(compiled.ops, uid_map=example.maps.uid_map, gid_map=example.maps.gid_map).explain()]
    finally:
        example.release()
    lines += [f"limit {field_} = {value}" for field_, value in _set_limits(spec.limits)]
    return "\n".join(lines)


def _set_limits(limits: Limits) -> list[tuple[str, object]]:
    return [(a.name, getattr(limits, a.name)) for a in attrs.fields(Limits) if getattr(limits, a.name) is not None]
