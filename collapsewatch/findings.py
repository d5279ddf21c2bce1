"""What a report says in words, for the terminal and for the page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from .advice import Advice, failure
from .capability import sentence
from .records import Driver, Verdict
from .report import RunReport, seed_of
from .words import amount, number, plain, stream_words

BROKEN = frozenset({Verdict.DEGRADED, Verdict.SILENT, Verdict.COLLAPSED, Verdict.DEAD})
"""Verdicts after which there is something to try."""
_WORST = (Verdict.COLLAPSED, Verdict.DEAD, Verdict.SILENT, Verdict.DEGRADED, Verdict.RECOVERED, Verdict.HEALTHY)
ORDER = (*_WORST, Verdict.UNJUDGED)
"""All verdicts, the worst first."""
_SAID = {
    Verdict.DEGRADED: "worse than it was: ",
    Verdict.RECOVERED: "broke and came back: ",
    Verdict.SILENT: "structure is lost and the reward does not show it: ",
    Verdict.COLLAPSED: "collapsed: ",
    Verdict.DEAD: "never alive: ",
}
_LISTED = 3  # drivers named in one line


def what(report: RunReport) -> str:
    """What happened, without the verdict's own name."""
    if report.verdict is Verdict.UNJUDGED:
        return f"too little to say: {unreadable(report) or why_unjudged(report)}"
    if report.verdict is Verdict.HEALTHY:
        turns = report.structure.turns if report.structure else 0
        over = f"{report.steps[2]} steps" if report.steps[2] else f"{turns} turns"
        return f"no sign of a collapse in {over}"
    return failure(report.kind).words


def headline(report: RunReport) -> str:
    """The same as one sentence that stands alone, without its full stop."""
    before = _SAID.get(report.verdict, "")
    return before + what(report)


def when(report: RunReport) -> str:
    """Since when, and when that could be known; '' without an onset."""
    if report.onset_step is None:
        return ""
    last = "" if report.steps[1] is None else f" of {report.steps[1]}"
    found = "alarm at" if alarmed(report) else "beyond noise by"
    return f"since step {report.onset_step}, {found} step {report.detected_step}{last}"


def alarmed(report: RunReport) -> bool:
    """Does the verdict rest on an alarm, which is raised live? A lasting loss of a metric is told afterwards."""
    return any(a.step == report.detected_step for a in report.alarms)


def evidence(report: RunReport) -> str:
    """What the verdict rests on, the largest part first; '' when there is nothing to name."""
    return "; ".join(driver(d, dated=report.onset_step is not None) for d in report.evidence[:_LISTED])


def driver(d: Driver, dated: bool = True) -> str:
    """One stream with its level, and what it is compared with."""
    usual = f"usual {amount(d.stream, d.baseline)}, " if dated else ""
    return f"{stream_words(d.stream)} {amount(d.stream, d.level)} ({usual}limit {amount(d.stream, d.tolerance)})"


def reward(report: RunReport) -> str:
    """The mean reward of the first, the best and the last window; '' without rewards."""
    if report.reward is None:
        return ""
    named = zip(("first", "best", "last"), report.reward, strict=True)
    return ", ".join(f"{short(value)} {name}" for name, value in named)


def capability(report: RunReport) -> str:
    """What is left of format and capability; '' where no probe scored them."""
    return sentence(report.capability) if report.capability else ""


def advice(report: RunReport) -> tuple[Advice, ...]:
    """What to try next; nothing for a run that is not broken."""
    return failure(report.kind).advice if report.verdict in BROKEN else ()


def unreadable(report: RunReport) -> str:
    """Why nothing of a file could be read; '' for a run that was."""
    return next((why.removeprefix("broken: ") for _, why in report.not_judged if why.startswith("broken: ")), "")


def why_unjudged(report: RunReport) -> str:
    """The first reason among what could not be judged: of the whole run before that of a stream."""
    reasons = sorted(report.not_judged, key=lambda row: bool(row[0]))
    return plain(reasons[0][1]) if reasons else "nothing that could be judged"


def not_judged(report: RunReport) -> list[str]:
    """What could not be judged: first what holds for the whole run, then the streams of each reason together."""
    streams: dict[str, list[str]] = defaultdict(list)
    for stream, reason in report.not_judged:
        streams[reason] += [stream_words(stream)] if stream else []
    whole = [reason for reason, named in streams.items() if not named]
    return whole + [f"{', '.join(named)} ({reason})" for reason, named in streams.items() if named]


def labels(reports: Sequence[RunReport]) -> list[str]:
    """A name for each report that no other has: the run's own, with as many folders before it as that takes."""
    found = [plain(r.name) for r in reports]
    for depth in range(1, 8):
        twice = {name for name, count in Counter(found).items() if count > 1}
        if not twice:
            return found
        for i, r in enumerate(reports):
            if found[i] in twice:
                found[i] = plain(Path(*Path(r.path).parent.parts[-depth:], r.name))
    seen = Counter[str]()
    for i, name in enumerate(found):
        seen[name] += 1
        found[i] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return found


def arms(reports: Sequence[RunReport]) -> list[str]:
    """Of runs that differ in their seed only: how many of them got which verdict, and which seeds."""
    groups: dict[tuple[Path, str], list[tuple[int, Verdict]]] = defaultdict(list)
    for r in reports:
        arm, seed = seed_of(r.name)
        if seed is not None:
            groups[Path(r.path).parent, arm].append((seed, r.verdict))
    return [f"{plain(arm)}, {len(runs)} seeds: {_tally(runs)}" for (_, arm), runs in groups.items() if len(runs) > 1]


def counts(reports: Iterable[RunReport]) -> list[tuple[Verdict, int]]:
    """How many runs got each verdict, the worst first; files that could not be read are left out."""
    found = Counter(r.verdict for r in reports if not unreadable(r))
    return [(verdict, found[verdict]) for verdict in ORDER if found[verdict]]


def short(value: float) -> str:
    """A reward in a column of rewards."""
    return f"{value:.2f}" if abs(value) < 100 else number(value)


def _tally(runs: Sequence[tuple[int, Verdict]]) -> str:
    parts = []
    for verdict in ORDER:
        seeds = [str(seed) for seed, own in runs if own is verdict]
        if seeds:
            parts.append(f"{len(seeds)} {verdict} (seed {', '.join(seeds)})")
    return ", ".join(parts)
