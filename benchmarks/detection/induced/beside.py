"""The same runs read by the other methods of the benchmark, at their defaults and at thresholds chosen in hindsight."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from table import Row

sys.path.append(str(Path(__file__).parents[1]))

import charts
import field
import series

from collapsewatch.records import StepRecord


@dataclass(frozen=True)
class Traces:
    """A run's records as arrays, as the simulator's runs are: `streams` holds values and prompt groups."""

    steps: np.ndarray
    streams: dict[str, tuple[np.ndarray, np.ndarray]]
    metrics: dict[str, np.ndarray]

    @classmethod
    def of(cls, records: Sequence[StepRecord]) -> Traces:
        """The streams and scalars that other methods are given; 0 where a step has none."""
        told = [{o.stream: (o.value, o.n) for o in record.observations} for record in records]
        streams = {name: np.array([row.get(name, (0.0, 0)) for row in told]).T for name in series.KEY}
        metrics = {name: np.array([r.metrics.get(name, 0.0) for r in records]) for name in series.SCALARS}
        return cls(
            np.array([record.step for record in records]), {k: (v[0], v[1]) for k, v in streams.items()}, metrics
        )


def methods(traces: Sequence[Traces], rows: Sequence[Row], peers: Path | None) -> Iterator[dict[str, Any]]:
    """A line per method: at its default, and at the best threshold that alarms in no more healthy runs than we do."""
    read = [series.of(trace) for trace in traces]  # type: ignore[arg-type]
    ours = line("collapsewatch", rows, [row.alarm or 0 for row in rows])
    yield ours
    for chart in charts.CHARTS:
        statistics = [chart.statistic(s) for s in read]
        levels = np.unique(np.concatenate(statistics).round(3)).tolist()
        told = {
            f"{level:g}": [charts.first(s.steps, x, level) for s, x in zip(read, statistics, strict=True)]
            for level in (*levels, *([chart.default] if chart.default else []))
        }
        yield from shown(chart.name, told, rows, f"{chart.default:g}" if chart.default else "", ours)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "runs.npz"
        np.savez(file, **series.packed(read))
        for name, package in field.PEERS.items():
            home = (peers / package).resolve() if peers else None
            if home is None or not home.is_dir():
                yield {"method": f"{name}: not installed"}
                continue
            every = field._told(name, home, file)
            for which in dict.fromkeys(label.split()[0] for label in every):
                own = {label.split()[1]: told for label, told in every.items() if label.split()[0] == which}
                yield from shown(f"{name}, {which}", own, rows, "default", ours)


def shown(
    name: str, told: dict[str, list[int]], rows: Sequence[Row], default: str, ours: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The lines of one method: its default, and the earliest of its settings that is as quiet as we are."""
    lines = {setting: line(f"{name}, {setting}", rows, alarms) for setting, alarms in told.items()}
    if default in lines:
        yield lines[default]
    quiet = [row for row in lines.values() if row["alarmed_healthy"] <= ours["alarmed_healthy"]]
    if quiet:
        best = max(quiet, key=lambda row: (row["early_recall"], row["recall"]))
        yield best | {"method": f"{best['method']} (hindsight)"}


def line(method: str, rows: Sequence[Row], alarms: Sequence[int]) -> dict[str, Any]:
    """Recall, early recall and lead of a method's first alarms (0: none), and in how many healthy runs it alarmed."""
    sick = [(row.broken, at) for row, at in zip(rows, alarms, strict=True) if row.sick and row.broken is not None]
    leads = [broken - at for broken, at in sick if at]
    return {
        "method": method,
        "recall": len(leads) / max(len(sick), 1),
        "early_recall": sum(lead > 0 for lead in leads) / max(len(sick), 1),
        "lead_median": median(leads) if leads else None,
        "alarmed_healthy": sum(
            bool(at) for row, at in zip(rows, alarms, strict=True) if not row.sick and row.broken is None
        ),
    }


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as a table."""
    names = ("method", "recall", "early_recall", "lead_median", "alarmed_healthy")
    out = ["| method | recall | early recall | median lead | healthy runs alarmed |", "|---|---|---|---|---|"]
    for row in lines:
        values = [row.get(name) for name in names]
        cells = ("" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v) for v in values)
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)
