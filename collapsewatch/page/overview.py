"""The top of the page: how many runs broke, which, when and how; and what could not be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .. import findings
from ..records import Verdict
from ..report import RunReport
from ..theme import ALARM, BLUE, VERMILLION
from ..words import stream_words
from .charts import Chart, compared
from .markup import Html, escaped, table, tag

Named = tuple[str, str, RunReport]
"""A run's anchor in the page, its name there, and its report."""
_WIDTH, _HEIGHT, _POINTS = 120, 26, 60  # of a sparkline, in pixels and points


def overview(runs: Sequence[Named], unread: Sequence[RunReport], plot: Callable[[Chart], Html]) -> Html:
    """Title, verdicts counted, comparison, reward of all runs. Of one run the title alone."""
    reports = [r for _, _, r in runs]
    parts: list[Html | None] = []
    if len(runs) > 1:
        counted = [tag("li", pill(verdict), f" {count}") for verdict, count in findings.counts(reports)]
        lost = sum(r.verdict in findings.BROKEN for r in reports)
        title = f"{lost} of {len(runs)} runs broke" if lost else f"{len(runs)} runs, none broke"
        parts += [tag("h1", title), tag("ul", counted, class_="counts")]
        parts += [tag("p", arm) for arm in findings.arms(reports)]
        parts.append(_comparison(runs))
        chart = compared(reports, lambda r: r.verdict in findings.BROKEN)
        parts.append(plot(chart) if chart else None)
    elif not runs:
        parts.append(tag("h1", "Nothing could be read"))
    if unread:
        rows = [[r.path, findings.unreadable(r)] for r in unread]
        title = tag("summary", f"{len(unread)} file{'s' * (len(unread) > 1)} could not be read")
        parts.append(tag("details", title, table(["file", "reason"], rows), open=not runs))
    return tag("section", parts, id="top", class_="overview") if any(parts) else Html('<span id="top"></span>')


def pill(verdict: Verdict) -> Html:
    """The verdict as a coloured label."""
    return tag("span", verdict, class_=f"pill {verdict}")


def _comparison(runs: Sequence[Named]) -> Html:
    head = ["run", "verdict", "reward", "since", "how", "moved first", "alarm", "steps", "first", "best", "last"]
    rows = []
    for anchor, name, r in runs:
        told = [None] * 3 if r.reward is None else [findings.short(value) for value in r.reward]
        since, alarm, steps = (
            None if n is None else str(n) for n in (r.onset_step, r.detected_step, r.steps[2] or None)
        )
        mover = stream_words(r.first_mover) if r.first_mover else None
        link = tag("a", name, href=f"#{anchor}")
        how = r.kind.replace("_", " ")
        rows.append([link, pill(r.verdict), sparkline(r), since, how, mover, alarm, steps, *told])
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    cells = [[row[i] for i in kept] for row in rows]
    numbers = [at for at, i in enumerate(kept) if i == 3 or i >= 6]
    return table([head[i] for i in kept], cells, numbers)


def sparkline(report: RunReport) -> Html | None:
    """The reward in the size of a word, the onset marked; None without rewards."""
    curve = report.curves.get("reward")
    if curve is None:
        return None
    curve = curve.thinned(_POINTS)
    first, last = curve.steps[0], curve.steps[-1]
    low, high = min(0.0, *curve.values), max(*curve.values, 1e-9)

    def x(step: int) -> float:
        return 1 + (_WIDTH - 2) * (step - first) / max(last - first, 1)

    def y(value: float) -> float:
        return 1 + (_HEIGHT - 2) * ((high / 2 - value / 2) / (high / 2 - low / 2))  # halves: no overflow

    points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(curve.steps, curve.values, strict=True))
    onset = ""
    if report.onset_step is not None:
        at = f"{min(max(x(report.onset_step), 1), _WIDTH - 1):.1f}"
        onset = f'<path d="M{at} 0V{_HEIGHT}" stroke="{ALARM}" stroke-dasharray="3 2"/>'
    colour = VERMILLION if report.verdict in findings.BROKEN else BLUE
    said = escaped(f"reward {findings.reward(report)}")
    return Html(
        f'<svg class="spark" width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{said}">{onset}'
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/></svg>'
    )
