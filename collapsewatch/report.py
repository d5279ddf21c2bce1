"""Post-hoc: what happened to a run, since when, and what moved first. Replays what the monitor does live."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import importers, queries
from .detectors import FA_PER_10K, spec
from .importers import Imported
from .plugins import UnknownPlugin
from .records import Alarm, Driver, Event, Verdict
from .shares import Shares, tabulate
from .tables import print_structure, printable
from .verdict import Trace, decide, not_judged, replay, shares_verdict

OWN = "collapsewatch"
"""The source of our own runs, beside the importers'."""


class ReportError(ValueError):
    """There is nothing to analyze at the path."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """What is to say of one run. `steps` is (first, last, count), with None for a log without step numbers.

    `reward` is the mean over the first, the best and the last window, or None without rewards; `structure` is
    None without turns.
    """

    name: str
    path: str
    source: str
    steps: tuple[int | None, int | None, int] = (None, None, 0)
    verdict: Verdict = Verdict.UNJUDGED
    kind: str = ""
    onset_step: int | None = None
    detected_step: int | None = None
    first_mover: str = ""
    token: str = ""
    evidence: tuple[Driver, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    not_judged: tuple[tuple[str, str], ...] = ()
    unmapped: tuple[str, ...] = ()
    reward: tuple[float, float, float] | None = None
    interventions: int = 0
    structure: Shares | None = None

    def to_dict(self) -> dict[str, Any]:
        """The object of `analyze --json`."""
        return {
            "name": self.name,
            "path": self.path,
            "source": self.source,
            "steps": dict(zip(("first", "last", "count"), self.steps, strict=True)),
            "verdict": str(self.verdict),
            "kind": self.kind,
            "onset_step": self.onset_step,
            "detected_step": self.detected_step,
            "first_mover": self.first_mover,
            "token": self.token,
            "evidence": [
                {"stream": d.stream, "share": d.share, "level": d.level, "baseline": d.baseline}
                | {"tolerance": d.tolerance}
                for d in self.evidence
            ],
            "alarms": [
                {"step": a.step, "tier": str(a.tier), "detector": a.detector, "kind": a.kind}
                | {"streams": [d.stream for d in a.drivers], "onset_step": a.onset_step, "log_e": a.log_e}
                for a in self.alarms
            ],
            "not_judged": [{"stream": s, "reason": r} for s, r in self.not_judged],
            "unmapped": list(self.unmapped),
            "reward": None if self.reward is None else dict(zip(("first", "best", "last"), self.reward, strict=True)),
            "interventions": self.interventions,
        } | ({} if self.structure is None else {"structure": self.structure.to_dict()})


def analyze(path: str | Path, *, format: str = "hermes", fa_per_10k: float | None = None) -> list[RunReport]:
    """Judge the run at `path`, or every run and readable foreign log below a folder.

    `format` is the chat format of transcripts. `fa_per_10k` is the false-alarm budget; without it a run of ours
    is judged by the one it was watched with. A broken file becomes a report with verdict `unjudged` and its
    reason; it never stops the rest.

    Raises:
        ReportError: no such path, or nothing there that can be read.
    """
    root = Path(path)
    if not root.exists():
        raise ReportError(f"analyze: got {root}, expected a run, a log file or a folder of them; no such path")
    if root.name == "run.duckdb":
        root = root.parent
    own = list(queries.find_runs(root)) if root.is_dir() else []
    reports = [_own_run(p, fa_per_10k) for p in own]
    for file in _files(root, own):
        reports += _foreign(file, format, fa_per_10k or FA_PER_10K, named=file == root)
    if not reports:
        raise ReportError(
            f"analyze: got {root} with no run in it, expected folders with run.duckdb, or logs of "
            f"{', '.join(importers.IMPORTERS)}"
        )
    return reports


def to_json(reports: Sequence[RunReport]) -> dict[str, Any]:
    """The contract of `analyze --json`: `{"runs": [...]}` of plain values."""
    return {"runs": [r.to_dict() for r in reports]}


def print_summary(reports: Sequence[RunReport], console: Console) -> None:
    """A table with one row per run, a line for each thing that could not be judged, and the shares of transcripts.

    A column that no run fills is left out.
    """
    names, rows = _WORDS + _NUMBERS, []
    for r in reports:
        verdict = f"{r.verdict} ({r.kind})" if r.kind else str(r.verdict)
        reward = "" if r.reward is None else " / ".join(f"{x:.2f}" for x in r.reward)
        words = (r.name, verdict, r.first_mover, r.token)
        numbers = (r.steps[2] or None, r.onset_step, r.detected_step, reward, r.interventions or None)
        rows.append([printable(value) for value in (*words, *numbers)])
    table = Table(show_edge=False, pad_edge=False)
    told = [i for i in range(len(names)) if any(row[i] for row in rows)]
    for i in told:
        table.add_column(names[i], justify="left" if names[i] in _WORDS else "right")
    for r, row in zip(reports, rows, strict=True):
        table.add_row(*(Text(row[i]) for i in told), style=_STYLES[r.verdict])
    console.print(table)
    for note, runs in _notes(reports).items():
        console.print(Text(printable(f"{', '.join(runs)}: {note}")))
    for r in reports:
        if r.structure and r.source != OWN:
            print_structure(r.name, r.structure, console)


def _notes(reports: Iterable[RunReport]) -> dict[str, list[str]]:
    """What could not be judged of a whole run, with the names of the runs it is said of."""
    notes: dict[str, list[str]] = {}
    for r in reports:
        said = [reason for stream, reason in r.not_judged if not stream]
        if r.verdict is Verdict.UNJUDGED and not said:
            said = [reason for _, reason in r.not_judged[:1]]
        for note in said:
            notes.setdefault(note, []).append(r.name)
    return notes


_WORDS = ("run", "verdict", "first mover", "token")
_NUMBERS = ("steps", "onset", "detected", "reward first/best/last", "interventions")
_STYLES: dict[Verdict, str] = {
    Verdict.HEALTHY: "green",
    Verdict.RECOVERED: "green",
    Verdict.DEGRADED: "yellow",
    Verdict.SILENT: "red",
    Verdict.COLLAPSED: "red",
    Verdict.DEAD: "red",
    Verdict.UNJUDGED: "dim",
}


def _files(root: Path, own: Sequence[Path]) -> Iterable[Path]:
    if root.is_file():
        return [root]
    inside = {p.resolve() for p in own}
    found = (p for p in root.rglob("*") if p.is_file())
    found = (p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts))
    return sorted(p for p in found if not inside & set(p.resolve().parents))


def _budget(events: Sequence[Event]) -> float:
    """The false-alarm budget the run was watched with, so that the replay raises the alarms it raised live."""
    for event in reversed(events):
        if event.name == "started" and event.detail:
            return float(json.loads(event.detail).get("fa_per_10k", FA_PER_10K))
    return FA_PER_10K


def _own_run(path: Path, fa_per_10k: float | None) -> RunReport:
    try:
        with closing(queries.open_run(path)) as run:
            applied = sum(a.status == "applied" for a in run.applied())
            events = run.events()
            trace = replay(run.records(), events, fa_per_10k or _budget(events))
            structure = tabulate(run.turn_counts())
    except Exception as error:  # whatever is wrong with one run, the others are still judged
        return _broken(path, path.name, OWN, error)
    return replace(_judge(path.name, path, OWN, trace), interventions=applied, structure=structure)


def _foreign(path: Path, format: str, fa_per_10k: float, named: bool) -> list[RunReport]:
    try:
        importer = importers.find(path, format)
        if importer is not None and not named and importer.superseded(path):
            return []
        if importer is not None:
            return [_imported(run, fa_per_10k) for run in importer.read(path)]
    except UnknownPlugin:
        raise  # the chat format asked for, not the file
    except Exception as error:  # whatever a foreign file makes an importer do, the other files are still read
        return [_broken(path, path.stem, "", error)]
    if named:
        raise ReportError(f"analyze: got {path}, expected a log of one of {', '.join(importers.IMPORTERS)}")
    return []


def _broken(path: Path, name: str, source: str, error: Exception) -> RunReport:
    return RunReport(name, str(path), source, not_judged=(("", f"broken: {error}"),))


def _imported(run: Imported, fa_per_10k: float) -> RunReport:
    report = _judge(run.name, run.path, run.source, replay(run.records, (), fa_per_10k)) if run.dated else _undated(run)
    missed = (*report.not_judged, *(("", fault) for fault in run.faults))
    return replace(report, not_judged=missed, unmapped=run.unmapped, structure=run.structure)


def _judge(name: str, path: Path, source: str, trace: Trace) -> RunReport:
    verdict, kind, alarm, reward = decide(trace)
    drivers = alarm.drivers if alarm else ()
    mover = trace.movers.get(alarm.step, "") if alarm else ""
    mover = mover or (drivers[0].stream if drivers else "")
    named = [mover, *(d.stream for d in drivers)] if mover else []
    return RunReport(
        name=name,
        path=str(path),
        source=source,
        steps=(trace.steps[0], trace.steps[-1], len(trace.steps)) if trace.steps else (None, None, 0),
        verdict=verdict,
        kind=kind,
        onset_step=alarm.onset_step if alarm else None,
        detected_step=alarm.step if alarm else None,
        first_mover=mover,
        token=next((token for s in named if (token := spec(s).token)), ""),
        evidence=drivers,
        alarms=tuple(trace.alarms),
        not_judged=not_judged(trace),
        reward=reward,
    )


def _undated(run: Imported) -> RunReport:
    """A log without step numbers has shares and no course: no onset, no alarm."""
    verdict, kind, shares = shares_verdict(run.records[0])
    return RunReport(
        name=run.name,
        path=str(run.path),
        source=run.source,
        verdict=verdict,
        kind=kind,
        evidence=shares,
        not_judged=(("", "no step numbers: judged by its shares alone, no onset"),),
    )
