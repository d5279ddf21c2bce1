"""Post-hoc: what happened to a run, since when, and what moved first. Replays what the monitor does live."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import importers, queries
from .capability import Capability, capability
from .curves import Curve
from .detectors import FA_PER_10K
from .formats import format_named
from .importers import Imported, Unreadable
from .importers.base import Options
from .marks import switched
from .offenders import Offender, offenders
from .records import Alarm, Driver, Event, Verdict
from .replay import Trace, replay
from .samples import Sample, rollouts
from .shares import Shares, tabulate
from .verdict import decide, not_judged, shares_verdict
from .words import token_of

OWN = "collapsewatch"
"""The source of our own runs, beside the importers'."""


class ReportError(ValueError):
    """There is nothing to analyze at the path."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """What is to say of one run. `steps` is (first, last, count), with None for a log without step numbers.

    `reward` is the mean over the first, the best and the last window, or None without rewards; `structure` is
    None without turns, `capability` without fixed probes. `notices` are what the watching itself told while the run
    went on, its own faults among it, with the step. `applied` are the steps of interventions, `offenders` the
    rollouts behind the alarm that the verdict rests on; these, `curves` and `samples` are for drawing and reading,
    and no part of the JSON.
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
    notices: tuple[tuple[int, str], ...] = ()
    reward: tuple[float, float, float] | None = None
    applied: tuple[int, ...] = ()
    structure: Shares | None = None
    capability: Capability | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict, repr=False)
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    offenders: tuple[Offender, ...] = field(default=(), repr=False)

    @property
    def interventions(self) -> int:
        """How many were applied."""
        return len(self.applied)

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
            "notices": [{"step": step, "text": text} for step, text in self.notices],
            "reward": None if self.reward is None else dict(zip(("first", "best", "last"), self.reward, strict=True)),
            "interventions": self.interventions,
            "capability": None if self.capability is None else self.capability.to_dict(),
        } | ({} if self.structure is None else {"structure": self.structure.to_dict()})


def analyze(
    path: str | Path,
    *,
    format: str = "hermes",
    names: Mapping[str, str] | None = None,
    fa_per_10k: float | None = None,
) -> list[RunReport]:
    """Judge the run at `path`, or every run and readable foreign log below a folder, seeds of one arm together.

    `format` is the chat format of transcripts; `names` says what columns mean, on top of what is known here.
    `fa_per_10k` is the false-alarm budget; without it a run of ours is judged by the one it was watched with. A
    broken file becomes a report with verdict `unjudged` and its reason; it never stops the rest.

    Raises:
        ReportError: no such path, or nothing there that can be read.
    """
    root = Path(path)
    if not root.exists():
        raise ReportError(f"analyze: got {root}, expected a run, a log file or a folder of them; no such path")
    format_named(format)  # a wrong name is the user's mistake, not that of the first file with texts
    if root.name == "run.duckdb":
        root = root.parent
    own = list(queries.find_runs(root)) if root.is_dir() else []
    reports = [_own_run(p, fa_per_10k) for p in own]
    for found in importers.runs(root, Options(format, dict(names or {})), skip=own):
        reports.append(_foreign(found, fa_per_10k or FA_PER_10K))
    if not reports:
        kinds = ", ".join(importers.IMPORTERS)
        if root.is_file():
            raise ReportError(f"analyze: got {root}, expected a log of one of {kinds}")
        raise ReportError(
            f"analyze: got {root} with no run in it, expected folders with run.duckdb, or logs of {kinds}"
        )
    return sorted(reports, key=_order)


def analyze_all(
    paths: Iterable[str | Path], *, format: str = "hermes", names: Mapping[str, str] | None = None
) -> list[RunReport]:
    """As `analyze`, of several paths; what two of them hold is told once."""
    found: list[RunReport] = []
    for path in paths:
        known = {(Path(r.path).resolve(), r.name) for r in found}
        reports = analyze(path, format=format, names=names)
        found += [r for r in reports if (Path(r.path).resolve(), r.name) not in known]
    return found


def to_json(reports: Sequence[RunReport]) -> dict[str, Any]:
    """The contract of `analyze --json`: `{"runs": [...]}` of plain values."""
    return {"runs": [r.to_dict() for r in reports]}


def seed_of(name: str) -> tuple[str, int | None]:
    """What runs that differ in nothing but their seed have in common, and the seed.

    >>> seed_of("rho0.50_seed42"), seed_of("s3-kl"), seed_of("plain")
    (('rho0.50', 42), ('kl', 3), ('plain', None))
    """
    found = _SEED.search(name)
    if not found:
        return name, None
    left, right = name[: found.start()], name[found.end() :]
    return f"{left}-{right}".strip("-") if left and right else (left or right), int(found[1])


_SEED = re.compile(r"(?:^|[-_. ])(?:seed|s)[-_=]?(\d{1,9})(?:$|[-_. ])")


def _order(report: RunReport) -> tuple[Any, ...]:
    """Runs by folder and name, numbers in them as numbers; the seeds of one arm follow each other."""
    folder = Path(report.path).parent
    arms = [seed_of(part) for part in (*folder.parts, report.name)]
    words = tuple(tuple((len(n), n, w) for n, w in re.findall(r"0*(\d*)(\D*)", arm)) for arm, _ in arms)
    return words, tuple(-1 if seed is None else seed for _, seed in arms)


def _budget(events: Sequence[Event]) -> float:
    """The false-alarm budget the run was watched with, so that the replay raises the alarms it raised live."""
    for event in reversed(events):
        if event.name == "started" and event.detail:
            return float(json.loads(event.detail).get("fa_per_10k", FA_PER_10K))
    return FA_PER_10K


def _own_run(path: Path, fa_per_10k: float | None) -> RunReport:
    try:
        with closing(queries.open_run(path)) as run:
            applied = tuple(a.step for a in run.applied() if a.status in ("applied", "begin"))
            events = run.events()
            trace = replay(run.records(), events, fa_per_10k or _budget(events))
            structure = tabulate(run.turn_counts())
            report = _judge(path.name, path, OWN, trace)
            samples = rollouts(run, report.onset_step)
            decisive = next((a for a in report.alarms if a.step == report.detected_step), None)
            guilty = tuple(offenders(run, decisive)) if decisive else ()
    except Exception as error:  # whatever is wrong with one run, the others are still judged
        return _broken(path, path.name, OWN, error)
    notices = tuple((e.step, f"{e.name}: {e.detail}") for e in events if e.name in ("fault", "notice"))
    return replace(report, applied=applied, structure=structure, samples=samples, notices=notices, offenders=guilty)


def _foreign(found: Imported | Unreadable, fa_per_10k: float) -> RunReport:
    if isinstance(found, Unreadable):
        return _broken(found.path, found.path.stem, "", found.reason)
    try:
        return _imported(found, fa_per_10k)
    except Exception as error:  # whatever foreign values make the replay do, the other runs are still judged
        return _broken(found.path, found.name, found.source, error)


def _broken(path: Path, name: str, source: str, error: Exception | str) -> RunReport:
    return RunReport(name, str(path), source, not_judged=(("", f"broken: {error}"),))


def _imported(run: Imported, fa_per_10k: float) -> RunReport:
    if run.dated:
        report = _judge(run.name, run.path, run.source, replay(run.records, switched(run.records), fa_per_10k))
    else:
        report = _undated(run)
    missed = (*report.not_judged, *(("", fault) for fault in run.faults))
    return replace(report, not_judged=missed, unmapped=run.unmapped, structure=run.structure)


def _judge(name: str, path: Path, source: str, trace: Trace) -> RunReport:
    found = decide(trace)
    alarm, finding = found.alarm, found.finding
    drivers = alarm.drivers if alarm else finding.drivers if finding else ()
    named = [found.mover, *(d.stream for d in drivers)]
    curves = trace.curves.done()
    return RunReport(
        name=name,
        path=str(path),
        source=source,
        steps=(trace.steps[0], trace.steps[-1], len(trace.steps)) if trace.steps else (None, None, 0),
        verdict=found.verdict,
        kind=found.kind,
        onset_step=found.onset,
        detected_step=alarm.step if alarm else finding.seen if finding else None,
        first_mover=found.mover,
        token=next((token for stream in named if (token := token_of(stream))), ""),
        evidence=drivers,
        alarms=tuple(trace.alarms),
        not_judged=not_judged(trace),
        reward=found.reward,
        capability=capability(curves),
        curves=curves,
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
