"""The figures of a run: small panels over the same steps, the onset and the alarms marked in each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from math import ceil, floor, isfinite, log10
from statistics import median
from typing import Any, NamedTuple

from ..curves import Curve, is_score
from ..detectors import spec
from ..detectors.streams import BAD_OUTCOMES
from ..records import Structure, Tier
from ..report import RunReport
from ..shares import Part
from ..theme import (
    ALARM,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    STRUCTURE_COLOURS,
    VERMILLION,
    base_layout,
    line_styles,
)
from ..words import escape, token_of

HEIGHT = 170  # pixels
SHOWN = 7  # lines of one panel: more are not told apart
_MARKED = 30  # alarms marked in a panel
_PARTS = 400  # steps of an area chart; more are joined
_FLOOR = 1e-6  # what is drawn of a logarithmic axis at most
_SPREAD = 30.0  # of the largest value to the median, from which on an axis is logarithmic
_CYCLE = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY, GREY)
_RATE = {"range": [-0.02, 1.04], "tickformat": ".0%"}
_HAZARD = {"type": "log"}


class Line(NamedTuple):
    """One line of a chart: its name and Plotly's line style."""

    name: str
    style: dict[str, Any]


_KEYS = (Line("broken", {"color": VERMILLION}), Line("not broken", {"color": BLUE}))


class Chart(NamedTuple):
    """A figure with its title and what tells its lines apart. `over` is what its x axis counts."""

    title: str
    hint: str
    lines: list[Line]
    figure: dict[str, Any]
    over: str = "step"


class Panel(NamedTuple):
    """A kind of chart, and which curves of a run belong into it."""

    title: str
    hint: str
    picks: Callable[[RunReport], Iterable[str]]
    yaxis: Mapping[str, Any] = {}


def _named(*names: str) -> Callable[[RunReport], Iterable[str]]:
    return lambda report: (name for name in names if name in report.curves)


def _hazards(report: RunReport) -> list[str]:
    """The sum, what drove the verdict, and the control tokens, the highest first."""
    driving = [d.stream for d in report.evidence if d.stream.startswith("hazard")]
    groups = {name: spec(name).weight_group for name in report.curves if name.startswith("hazard")}
    tokens = [name for name, group in groups.items() if group == "token"]
    tokens.sort(key=lambda name: -max(report.curves[name].values))
    return list(dict.fromkeys(name for name in ("hazard", *driving, *tokens) if name in groups))


def _failures(report: RunReport) -> list[str]:
    told = {"parse_failure"} if "parse_rate" in report.curves else set()
    return [name for name in (*sorted(BAD_OUTCOMES - told), "no_call") if name in report.curves]


PANELS = (
    Panel("Reward", "mean of the rollouts", _named("reward", "accuracy")),
    Panel("Parse rate", "share of attempted calls", _named("parse_rate", "lenient_parse_rate"), _RATE),
    Panel("Failures", "share of turns, calls or rollouts", _failures, _RATE),
    Panel("Control-token hazard", "illegal emissions expected per turn", _hazards, _HAZARD),
    Panel(
        "Where control tokens are legal",
        "probability of the wrong choice",
        _named("no_end", "reopen", "no_call_start", "call_in_text"),
        _RATE,
    ),
    Panel("Entropy", "nats per token", _named("entropy")),
    Panel("KL", "to the reference", _named("kl")),
    Panel("Gradient norm", "", _named("grad_norm")),
    Panel("Completion length", "tokens, mean", _named("completions/mean_length")),
    Panel("Tool calls and turns", "per rollout", _named("tools/call_frequency", "turns")),
    Panel("Groups of equal reward", "share: they give no gradient", _named("frac_reward_zero_std"), _RATE),
    Panel("Evaluation", "apart from training", lambda report: sorted(filter(is_score, report.curves))),
)


def charts(report: RunReport, points: int) -> Iterator[Chart]:
    """The charts for which the run has data, with `points` steps of each line at most."""
    marks = _marks(report)
    if report.structure and report.structure.by_step:
        yield _areas(
            "Structure", "share of turns: blue is healthy, orange is not", "step", report.structure.by_step, marks
        )
    for panel in PANELS:
        names = list(panel.picks(report))[:SHOWN]
        if names:
            yield _panel(panel, {name: report.curves[name].thinned(points) for name in names}, report, marks)
    if report.structure and report.structure.by_turn and len(report.structure.by_turn) > 1:
        yield _areas("Structure by turn", "index of the turn in its dialogue", "turn", report.structure.by_turn, [])


def compared(reports: Sequence[RunReport], broken: Callable[[RunReport], bool]) -> Chart | None:
    """The reward of several runs in one chart; None where fewer than two have one."""
    told = [r for r in reports if "reward" in r.curves]
    if len(told) < 2:
        return None
    lines = [Line(r.name, {"color": VERMILLION if broken(r) else BLUE, "width": 1.2}) for r in told]
    traces = [_trace(line, r.curves["reward"].thinned(200)) for line, r in zip(lines, told, strict=True)]
    layout = base_layout(240) | {"hovermode": "closest"}
    return Chart("Reward of all runs", "", list(_KEYS), {"data": traces, "layout": layout})


def _panel(panel: Panel, curves: Mapping[str, Curve], report: RunReport, marks: list[dict[str, Any]]) -> Chart:
    tokens = line_styles(token for name in curves if (token := token_of(name)))
    others = iter(_CYCLE * 2)
    lines = [Line(_label(name), _style(name, tokens) or {"color": next(others)}) for name in curves]
    layout = base_layout(HEIGHT) | {"shapes": marks}
    layout["xaxis"] |= {"range": _around(report.steps)}
    logarithmic = panel.yaxis is _HAZARD or (not panel.yaxis and all(map(_spreads, curves.values())))
    layout["yaxis"] |= _decades(curves.values()) if logarithmic else panel.yaxis
    told = ".1%" if panel.yaxis is _RATE else ".3~g"
    traces = [_trace(line, curve, told) for line, curve in zip(lines, curves.values(), strict=True)]
    return Chart(panel.title, panel.hint, lines, {"data": traces, "layout": layout})


def _label(name: str) -> str:
    """What a line is called in its panel: of a hazard the token and the slot, which the title does not say."""
    if not name.startswith("hazard"):
        return name
    known = spec(name)
    return " in ".join(filter(None, (known.token or ("" if known.slot else "all"), known.slot)))


def _style(name: str, tokens: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The style of a hazard: each token has its colour, in one slot alone it is dotted, sums over tokens are grey."""
    if name == "hazard":
        return {"color": GREY, "width": 2.5}
    token = token_of(name)
    if not token:
        return {"color": GREY, "dash": "dot"} if name.startswith("hazard") else {}
    return {**tokens[token], "width": 1.5} | ({"dash": "dot"} if spec(name).slot else {})


def _trace(line: Line, curve: Curve, told: str = ".3~g") -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": escape(line.name),
        "mode": "lines" if len(curve.steps) > 1 else "markers",
        "x": curve.steps,
        "y": [_short(value) for value in curve.values],
        "line": {"width": 1.5} | line.style,
        "hovertemplate": f"{escape(line.name)}: %{{y:{told}}}<extra></extra>",
    }


def _areas(title: str, hint: str, over: str, parts: Sequence[Part], marks: list[dict[str, Any]]) -> Chart:
    """Shares of the four structures, stacked."""
    joined = _joined(parts)
    layout = base_layout(HEIGHT) | {"shapes": marks}
    layout["yaxis"] |= {"range": [0, 1], "tickformat": ".0%"}
    layout["xaxis"] |= {"tickprefix": f"{over} ", "unifiedhovertitle": {"text": f"{over} %{{x}}"}}
    traces = [
        {
            "type": "scatter",
            "name": structure,
            "mode": "lines",
            "stackgroup": "turns",
            "x": [part.at for part in joined],
            "y": [_short(part.shares[structure]) for part in joined],
            "line": {"width": 0.5, "color": colour},
            "fillcolor": colour,
            "hovertemplate": f"{structure}: %{{y:.1%}}<extra></extra>",
        }
        for structure, colour in STRUCTURE_COLOURS.items()
    ]
    lines = [Line(structure, {"color": colour}) for structure, colour in STRUCTURE_COLOURS.items()]
    return Chart(title, hint, lines, {"data": traces, "layout": layout}, over)


def _joined(parts: Sequence[Part]) -> list[Part]:
    """At most `_PARTS` parts: neighbours become one, weighted by their turns."""
    size = -(-len(parts) // _PARTS)
    found = []
    for group in (parts[i : i + size] for i in range(0, len(parts), size)):
        turns = sum(part.turns for part in group)
        shares = {str(s): sum(part.shares[s] * part.turns for part in group) / turns for s in Structure}
        found.append(Part(group[0].at, turns, shares))
    return found


def _marks(report: RunReport) -> list[dict[str, Any]]:
    """Shapes: for each alarm its onset dashed, its step solid, its time shaded; interventions from below."""
    shapes = []
    last = report.steps[1] or 0
    for onset, step, end in episodes(report)[:_MARKED]:
        shapes += [
            _shape("rect", step, last if end is None else end, fillcolor=ALARM, opacity=0.07, line={"width": 0}),
            _shape("line", onset, onset, line={"color": ALARM, "width": 1.2, "dash": "dash"}),
            _shape("line", step, step, line={"color": ALARM, "width": 1.6}),
        ]
    steps = sorted(set(report.applied))
    # Applications at successive steps are one action.
    for _, group in groupby(enumerate(steps), lambda pair: pair[1] - pair[0]):
        span = [step for _, step in group]
        shapes.append(_shape("line", span[0], span[-1], y1=0.0, line={"color": GREEN, "width": 7}))
    return shapes


def episodes(report: RunReport) -> list[tuple[int, int, int | None]]:
    """Onset, alarm and end of each alarm; the end is None where it lasts. A loss without an alarm is one too.

    The alarm that the verdict rests on begins where the verdict says.
    """
    found: list[tuple[int, int, int | None]] = []
    for alarm in report.alarms:
        if alarm.tier is Tier.ALARM:
            own = alarm.step == report.detected_step and report.onset_step is not None
            found.append((report.onset_step or 0 if own else alarm.onset_step, alarm.step, None))
        elif alarm.tier in (Tier.CLEARED, Tier.REBASELINED) and found:
            found[-1] = (*found[-1][:2], alarm.step)
    if not found and report.onset_step is not None and report.detected_step is not None:
        found.append((report.onset_step, report.detected_step, None))
    return found


def _shape(kind: str, x0: int, x1: int, y1: float = 1.0, **style: Any) -> dict[str, Any]:
    return {"type": kind, "x0": x0, "x1": x1, "y0": 0, "y1": y1, "yref": "paper", "layer": "below", **style}


def _spreads(curve: Curve) -> bool:
    return 0 < _SPREAD * median(curve.values) < max(curve.values)


def _decades(curves: Iterable[Curve]) -> dict[str, Any]:
    """A logarithmic axis over all positive values, down to `_FLOOR` at most; zeros leave a gap."""
    values = [value for curve in curves for value in curve.values if value > 0] or [1.0]
    low, high = floor(log10(max(min(values), _FLOOR))), ceil(log10(max(*values, _FLOOR)) + 0.05)
    step = max(1, ceil((high - low) / 4))
    return {"type": "log", "range": [low, max(high, low + 1)], "dtick": step, "exponentformat": "power"}


def _around(steps: tuple[int | None, int | None, int]) -> list[float]:
    first, last = steps[0] or 0, steps[1] or 0
    room = max(last - first, 1) / 80
    return [first - room, last + room]


def _short(value: float) -> float:
    """Five digits: more are not seen, and take their place in the file."""
    rounded = float(f"{value:.5g}")
    return rounded if isfinite(rounded) else value  # the largest number there is would be rounded up
