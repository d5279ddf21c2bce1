"""False alarms on a user's own healthy runs, beside the bound that was promised for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.text import Text
from scipy.special import gammaincinv

from . import importers, queries
from .detectors import Detection, build
from .detectors.policy import CULPRIT
from .importers import Unreadable
from .importers.base import Options
from .levels import WINDOW
from .marks import switched
from .records import Alarm, Event, StepRecord, Tier, Verdict
from .replay import judged, replay
from .tables import print_table, printable
from .verdict import decide

BUDGETS = (1.0, 10.0, 50.0, 200.0, 1000.0)
"""False alarms per 10,000 steps that are tried; the default is among them."""
BROKEN = frozenset({Verdict.COLLAPSED, Verdict.DEAD, Verdict.SILENT})
"""Verdicts of a run that cannot have been healthy: its alarms are not false."""
PLATEAU = 0.5  # of the alarms at the widest budget: that many at the tightest are no noise, which would shrink with it
_PROMISED = "e_detector"
_COVERAGE = 0.95


class CalibrateError(ValueError):
    """There is nothing to calibrate on."""


@dataclass(frozen=True, slots=True)
class Bound:
    """One budget: alarms of the detector that promises it, their rate per 10,000 steps with its 95 % interval.

    `others` are the alarms of the hard limit, which promises nothing and knows no budget.
    """

    fa_per_10k: float
    steps: int
    alarms: int
    per_10k: float
    low: float
    high: float
    others: int


@dataclass(frozen=True, slots=True)
class Culprit:
    """A stream behind the alarms of the tightest budget that has any.

    `reached` is its highest mean over a window of ten steps in all runs, `tolerated` what was granted at the alarm.
    """

    stream: str
    alarms: int
    reached: float
    tolerated: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the runs say of the budget. `curve` is `none`, `falling` or `flat`; `left_out` are runs and reasons."""

    runs: int
    bounds: tuple[Bound, ...]
    curve: str
    culprits: tuple[Culprit, ...]
    left_out: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """The object of `calibrate --json`."""
        return asdict(self) | {"advice": advice(self)}


def calibrate(path: str | Path, budgets: Sequence[float] = BUDGETS) -> Calibration:
    """Replay every run that `analyze` reads at `path` with each budget; the runs are taken to be healthy.

    Raises:
        CalibrateError: no run there can be read, or none of them is healthy.
        ValueError: a budget that makes no sense.
    """
    alarms, steps, others = Counter[float](), Counter[float](), 0
    raised: dict[float, list[tuple[str, float]]] = {budget: [] for budget in budgets}
    reached: dict[str, float] = {}
    left_out, runs = list[tuple[str, str]](), 0
    for name, found, events in _runs(Path(path)):
        if isinstance(found, str):
            left_out.append((name, found))
            continue
        verdict = decide(replay(found, events)).verdict
        if verdict in BROKEN:
            left_out.append((name, f"{verdict}, not healthy"))
            continue
        runs += 1
        for stream, level in _highest(found).items():
            reached[stream] = max(level, reached.get(stream, 0.0))
        others += len(_alarms(Detection(build(["hard_limit"])), found, events)[0])
        for budget in budgets:  # the promise is the e-detector's own: none may speak before it
            rows, quiet = _alarms(Detection(build([_PROMISED], budget)), found, events)
            steps[budget] += quiet
            alarms[budget] += len(rows)
            raised[budget] += [(d.stream, d.tolerance) for a in rows for d in a.drivers if d.share >= CULPRIT]
    if not runs:
        why = f": {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise CalibrateError(f"calibrate: got {path} with no healthy run in it{why}, expected runs that went well")
    bounds = tuple(_bound(b, steps[b], alarms[b], others) for b in sorted(budgets))
    first = next((b.fa_per_10k for b in bounds if b.alarms), None)
    culprits = _culprits(raised[first], reached) if first is not None else ()
    return Calibration(runs, bounds, _curve(bounds), culprits, tuple(left_out))


def _alarms(detection: Detection, records: Sequence[StepRecord], events: Sequence[Event]) -> tuple[list[Alarm], int]:
    """The alarms of a run, and the steps on which none stood."""
    alarms, quiet, standing = list[Alarm](), 0, False
    for _, rows in judged(detection, records, events):
        quiet += not standing
        standing = detection.state != "ok"
        alarms += [alarm for alarm in rows if alarm.tier is Tier.ALARM]
    return alarms, quiet


def advice(found: Calibration) -> list[str]:
    """What the figures mean, in sentences."""
    said = [
        f"bound {b.fa_per_10k:g}: broken, {b.per_10k:.2g} measured (95 %: {b.low:.2g} to {b.high:.2g})"
        for b in found.bounds
        if b.low > b.fa_per_10k
    ]
    if found.curve == "flat":
        said.append(
            "The curve is flat: what alarms are real shifts beyond tolerance, which no budget takes away. Announce "
            "changes of data, prompts or settings (`mark`), or these streams' tolerances are too tight for your runs."
        )
    elif found.curve == "falling":
        said.append("The curve falls with the budget: what alarms is noise, and a smaller budget has less of it.")
    else:
        said.append("No budget raised an alarm: the interval's upper end is all that these steps can promise.")
    return said


def print_calibration(found: Calibration, console: Console) -> None:
    """The table of budgets, the streams behind the alarms, what was left out, and what it means."""
    bounds = [
        (b.fa_per_10k, b.alarms, f"{b.per_10k:.2g}", f"{b.low:.2g} to {b.high:.2g}", b.others) for b in found.bounds
    ]
    steps = max(b.steps for b in found.bounds)
    console.print(
        f"{found.runs} healthy runs, {steps} steps; alarms per 10,000 steps beside their bound", highlight=False
    )
    print_table(["bound", "alarms", "per 10k", "95 %", "hard limit"], bounds, console)
    if found.culprits:
        rows = [(c.stream, c.alarms, f"{c.reached:.2g}", f"{c.tolerated:.2g}") for c in found.culprits]
        print_table(["stream behind them", "alarms", "highest mean of 10 steps", "tolerated"], rows, console)
    for line in (*advice(found), *(f"left out: {name}: {why}" for name, why in found.left_out)):
        console.print(Text(printable(line)))


def interval(count: int, steps: int) -> tuple[float, float]:
    """The exact 95 % interval of a Poisson rate per 10,000 steps.

    >>> [round(end, 2) for end in interval(0, 10_000)], [round(end, 2) for end in interval(3, 10_000)]
    ([0.0, 3.69], [0.62, 8.77])
    """
    tail = (1.0 - _COVERAGE) / 2
    low = float(gammaincinv(count, tail)) if count else 0.0
    return low * 10_000 / steps, float(gammaincinv(count + 1, 1.0 - tail)) * 10_000 / steps


def _bound(budget: float, steps: int, alarms: int, others: int) -> Bound:
    low, high = interval(alarms, max(steps, 1))
    return Bound(budget, steps, alarms, alarms * 10_000 / max(steps, 1), low, high, others)


def _curve(bounds: Sequence[Bound]) -> str:
    """Noise shrinks with the budget; shifts beyond tolerance alarm whatever it is. One alarm makes no curve."""
    tight, wide = bounds[0].alarms, bounds[-1].alarms
    if not wide:
        return "none"
    return "flat" if tight >= 2 and tight >= PLATEAU * wide else "falling"


def _culprits(drivers: Sequence[tuple[str, float]], reached: dict[str, float]) -> tuple[Culprit, ...]:
    times = Counter(stream for stream, _ in drivers)
    granted = {stream: fmean(t for s, t in drivers if s == stream) for stream in times}
    return tuple(Culprit(s, n, reached[s], granted[s]) for s, n in times.most_common())


def _highest(records: Sequence[StepRecord]) -> dict[str, float]:
    """Of each stream the highest mean over a window of steps, as the detector reads its levels."""
    detection, levels = Detection(build(["e_detector"])), dict[str, list[float]]()
    for record in records:
        for driver in detection.update(record)[1][0].drivers:
            levels.setdefault(driver.stream, []).append(driver.level)
    return {
        stream: max(fmean(v[i : i + WINDOW]) for i in range(max(1, len(v) - WINDOW + 1)))
        for stream, v in levels.items()
    }


def _runs(root: Path) -> Iterator[tuple[str, Sequence[StepRecord] | str, Sequence[Event]]]:
    """Every run at a path: its name, its records or why it has none, and the events that act on detection."""
    if not root.exists():
        raise CalibrateError(f"calibrate: got {root}, expected a folder of runs or logs; no such path")
    own = queries.find_runs(root) if root.is_dir() else []
    for path in own:
        try:
            with closing(queries.open_run(path)) as run:
                yield path.name, list(run.records()), run.events()
        except queries.RunError as error:
            yield path.name, str(error), ()
    for found in importers.runs(root, Options(), skip=own):
        if isinstance(found, Unreadable):
            yield found.path.name, found.reason, ()
        elif not found.dated:
            yield found.name, "no step numbers", ()
        else:
            yield found.name, found.records, switched(found.records)
