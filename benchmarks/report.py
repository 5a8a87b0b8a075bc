"""What was measured, as values; as a table for people, and as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from typing import Any

from attrs import define, field, frozen

from benchmarks.measure import Samples
from benchmarks.peers import Refused, versions


@frozen
class Table:
    """Cases that ran interleaved, in one mode (hot or idle); ratios are against *reference*."""

    group: str
    mode: str
    reference: str
    samples: dict[str, Samples]

    def rows(self) -> list[dict[str, Any]]:
        """One for each case, fastest first; times in seconds."""
        base = self.samples.get(self.reference)
        return [
            {
                "case": name,
                "runs": len(s.all),
                "median": s.median,
                "p95": s.p95,
                "ratio": s.ratio(base) if base else None,
                "paired_ratio": s.paired_ratio(base) if base else None,
            }
            for name, s in sorted(self.samples.items(), key=lambda item: item[1].median)
        ]


@frozen
class Figure:
    """One number that is no row of a table."""

    group: str
    name: str
    value: float
    unit: str


@define
class Report:
    """All of one run."""

    tables: list[Table] = field(factory=list)
    figures: list[Figure] = field(factory=list)
    refused: dict[str, str] = field(factory=dict)
    notes: list[str] = field(factory=list)

    def figure(self, group: str, name: str, value: float, unit: str) -> None:
        """Note a number."""
        self.figures.append(Figure(group, name, value, unit))

    def refuse(self, peers: Sequence[Refused]) -> None:
        """Note who could not take part."""
        self.refused.update({peer.name: peer.reason for peer in peers})

    def find_figure(self, group: str, name: str) -> float | None:
        return next((f.value for f in self.figures if (f.group, f.name) == (group, name)), None)

    def find_ratio(self, group: str, mode: str, case: str, reference: str) -> float | None:
        """The ratio of two medians of one table; None when one of the two did not take part."""
        for table in self.tables:
            if (table.group, table.mode) == (group, mode) and {case, reference} <= table.samples.keys():
                return table.samples[case].ratio(table.samples[reference])
        return None


def as_text(report: Report) -> str:
    """Everything, for people."""
    lines: list[str] = []
    for table in report.tables:
        lines += ["", f"{table.group}, {table.mode} (ratios against {table.reference})", _HEAD]
        lines += [_row(row) for row in table.rows()]
    group = ""
    for f in report.figures:
        if f.group != group:
            group = f.group
            lines += ["", group]
        lines.append(f"  {f.name:58s} {f.value:12.3f} {f.unit}")
    if report.refused:
        lines += ["", "did not take part"]
        lines += [f"  {name}: {reason}" for name, reason in sorted(report.refused.items())]
    if report.notes:
        lines += ["", *report.notes]
    return "\n".join(lines).lstrip("\n")


_HEAD = f"  {'case':32s} {'runs':>6s} {'median ms':>10s} {'p95 ms':>10s} {'ratio':>8s} {'paired':>8s}"


def _row(row: dict[str, Any]) -> str:
    ratios = " ".join(f"{row[key]:8.2f}" if row[key] is not None else f"{'-':>8s}" for key in ("ratio", "paired_ratio"))
    return f"  {row['case']:32s} {row['runs']:6d} {row['median'] * 1e3:10.3f} {row['p95'] * 1e3:10.3f} {ratios}"


def as_json(report: Report, host: dict[str, Any], verdicts: Sequence[dict[str, Any]]) -> str:
    """Everything, for programs; times in seconds, every single run included."""
    tables = [
        {
            "group": t.group,
            "mode": t.mode,
            "reference": t.reference,
            "rows": t.rows(),
            "samples": {name: s.all for name, s in t.samples.items()},
        }
        for t in report.tables
    ]
    figures = [{"group": f.group, "name": f.name, "value": f.value, "unit": f.unit} for f in report.figures]
    everything = {"host": host, "tables": tables, "figures": figures, "refused": report.refused, "notes": report.notes, "bars": list(verdicts)}
    return json.dumps(everything, indent=1)


def host_facts() -> dict[str, Any]:
    """What kind of machine this is, and how busy it is now."""
    governor = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": _field("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "governor": _read(governor).strip() or "unknown",
        "python": platform.python_version(),
        "user": os.geteuid(),
        "cgroups": "v1 or hybrid" if os.path.isdir("/sys/fs/cgroup/memory") else "v2",
        "load": os.getloadavg(),
        "peers": versions(),
    }


def _field(path: str, name: str) -> str:
    lines = (line.split(":", 1) for line in _read(path).splitlines() if ":" in line)
    return next((value.strip() for key, value in lines if key.strip() == name), "unknown")


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
