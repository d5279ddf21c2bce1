"""What detection says of the runs, beside when they broke: one row a run, and the sums."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from runs import Plan
from truth import broken_step, signs

from collapsewatch.queries import open_run
from collapsewatch.records import Alarm, Event, StepRecord, Tier
from collapsewatch.replay import replay


@dataclass(frozen=True)
class Row:
    """One run: when it broke, and the alarm that stood then or came next."""

    mechanism: str
    architecture: str
    chat_format: str
    environment: str
    seed: int
    sick: bool
    steps: int
    broken: int | None
    alarm: int | None
    onset: int | None
    kind: str
    mover: str
    alarms: int

    @property
    def lead(self) -> int | None:
        """Steps from the alarm to the break; negative for an alarm that came after."""
        return None if self.alarm is None or self.broken is None else self.broken - self.alarm


def read(folder: Path) -> tuple[list[StepRecord], list[Event]]:
    """What a run left."""
    with closing(open_run(folder)) as run:
        return list(run.records()), run.events()


def row(plan: Plan, records: Sequence[StepRecord], events: Sequence[Event] = ()) -> Row:
    """Judge one run as `analyze` would, by a replay with the detectors as they are now."""
    trace = replay(records, events)
    at = broken_step([signs(record) for record in records])
    broken = None if at is None else records[at].step
    alarm = standing(trace.alarms, broken)
    world = plan.world
    return Row(
        mechanism=plan.mechanism,
        architecture=world.architecture,
        chat_format=world.chat_format,
        environment=world.environment.partition(":")[0],
        seed=plan.seed,
        sick=plan.sick,
        steps=len(records),
        broken=broken,
        alarm=alarm and alarm.step,
        onset=alarm and alarm.onset_step,
        kind=alarm.kind if alarm else "",
        mover=trace.movers[alarm.step] if alarm else "",
        alarms=sum(a.tier is Tier.ALARM for a in trace.alarms),
    )


def standing(alarms: Sequence[Alarm], broken: int | None) -> Alarm | None:
    """The alarm that stands when the run breaks, else the first one after; of a run that never broke, its first.

    One that was cleared before the run broke warned of something else.
    """
    found: Alarm | None = None
    for alarm in alarms:
        if alarm.tier is Tier.ALARM:
            found = found or alarm
        elif alarm.tier in (Tier.CLEARED, Tier.REBASELINED) and broken is not None and alarm.step < broken:
            found = None
    return found


def sums(rows: Sequence[Row]) -> dict[str, Any]:
    """Recall and lead over the runs that broke, alarms over those that are healthy, and what fits neither."""
    collapsed = [r for r in rows if r.sick and r.broken is not None]
    healthy = [r for r in rows if not r.sick and r.broken is None]
    leads = sorted(r.lead for r in collapsed if r.lead is not None)
    return {
        "collapsed": len(collapsed),
        "recall": len(leads) / max(len(collapsed), 1),
        "early_recall": sum(lead > 0 for lead in leads) / max(len(collapsed), 1),
        "lead_median": median(leads) if leads else None,
        "lead_min": min(leads, default=None),
        "lead_max": max(leads, default=None),
        "healthy": len(healthy),
        "healthy_steps": sum(r.steps for r in healthy),
        "false_alarms": sum(r.alarms for r in healthy),
        "sick_never_broken": sum(r.sick and r.broken is None for r in rows),
        "sane_but_broken": sum(not r.sick and r.broken is not None for r in rows),
    }


COLUMNS = ("mechanism", "arch", "format", "task", "seed", "steps", "broken", "alarm", "lead", "kind", "first mover")


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for r in rows:
        values = (r.mechanism, r.architecture, r.chat_format, r.environment, r.seed, r.steps)
        values += (r.broken, r.alarm, r.lead, r.kind, f"`{r.mover}`" if r.mover else "")
        shown = ("" if value is None else str(value).replace("|", "\\|") for value in values)
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(r) | {"lead": r.lead} for r in rows]
