"""What is said of one run: verdict, evidence, charts, rollouts to read, what to try next, what is not known."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .. import findings
from ..advice import PAPER, Advice
from ..formats import format_named
from ..records import Alarm, Driver, Verdict
from ..report import OWN, RunReport
from ..samples import Sample
from ..theme import ALARM, GREEN
from ..words import amount, number, percent, stream_words, token_of
from .charts import Chart, charts, episodes
from .markup import Html, coded, escaped, marked, table, tag
from .overview import pill

_ALARMS, _REASONS = 40, 8  # rows of the lists of alarms, and of reasons
_BASES = {True: "the paper", False: "our reading"}


def section(anchor: str, name: str, report: RunReport, points: int, format: str, plot: Callable[[Chart], Html]) -> Html:
    """One run, from the verdict to what is not known."""
    drawn = [plot(chart) for chart in charts(report, points)]
    known = [_block("Evidence", _evidence(report)), _block("Turns", _turns(report))]
    known.append(_block("Not judged", _not_judged(report)))
    known.append(_block("Told while it ran", _notices(report)))
    read = [tag("div", part) for part in (list(filter(None, known)), _block("Try next", _advice(report))) if part]
    return tag(
        "section",
        _title(name, report),
        tag("div", read, class_="pair") if read else None,
        _marks(report) if drawn else None,
        tag("div", drawn, class_="charts") if drawn else None,
        _block("Rollouts", _samples(report, format)),
        _more(report),
        id=anchor,
        class_=f"run {report.verdict}",
    )


def _title(name: str, r: RunReport) -> Html:
    facts = {
        "onset": None if r.onset_step is None else f"step {r.onset_step}",
        _found(r): None if r.detected_step is None else f"step {r.detected_step}",
        "steps": _steps(*r.steps),
        "turns": str(r.structure.turns) if r.structure else None,
        "moved first": stream_words(r.first_mover) if r.first_mover else None,
        "reward first / best / last": None if r.reward is None else " / ".join(map(findings.short, r.reward)),
        "interventions": str(len(r.applied)) if r.applied else None,
    }
    told = [tag("div", tag("dt", key), tag("dd", value)) for key, value in facts.items() if value]
    sentence, left = findings.headline(r), findings.capability(r)
    return tag(
        "div",
        tag("h2", name, " ", pill(r.verdict)),
        tag("p", sentence[:1].upper() + sentence[1:], ".", class_="headline"),
        tag("p", left[:1].upper() + left[1:], ".") if left else None,
        tag("dl", told, class_="facts"),
        class_="title",
    )


def _found(r: RunReport) -> str:
    """What happened at the step `detected_step`."""
    return "alarm" if findings.alarmed(r) or not r.detected_step else "beyond noise"


def _steps(first: int | None, last: int | None, count: int) -> str | None:
    if first is None or last is None:
        return None
    gaps = count < last - first + 1
    return f"{first} to {last}" + (f", {count} logged" if gaps else "")


def _block(title: str, inside: Html | None) -> Html | None:
    return tag("div", tag("h3", title), inside, class_="block") if inside else None


def _evidence(r: RunReport) -> Html | None:
    """Streams by their share of the evidence; of a log without steps by their level."""
    if not r.evidence:
        return None
    dated = r.onset_step is not None
    head = ["stream", "share", "", "level", "usual", "limit"]
    rows = [_driver(d) for d in r.evidence]
    kept = range(6) if dated else (0, 3, 5)
    cells = [[row[i] for i in kept] for row in rows]
    at = f"At step {r.detected_step}, when the alarm was raised."
    if not findings.alarmed(r):
        at = "Before and after the onset; no alarm tells of this, the run's own curves do."
    said = at if dated else "Over all turns."
    numbers = [at for at, i in enumerate(kept) if i in (1, 3, 4, 5)]
    return escaped([tag("p", said, class_="soft"), table([head[i] for i in kept], cells, numbers)])


def _driver(d: Driver) -> list[Html | str]:
    width = f"{100 * min(max(d.share, 0.0), 1.0):.0f}"
    bar = Html(f'<svg class="bar" width="60" height="8" aria-hidden="true"><rect width="{width}%" height="8"/></svg>')
    return [
        tag("span", stream_words(d.stream), title=d.stream, class_="token" if token_of(d.stream) else None),
        *(percent(d.share), bar, *(amount(d.stream, value) for value in (d.level, d.baseline, d.tolerance))),
    ]


def _advice(r: RunReport) -> Html | None:
    found = findings.advice(r)
    return tag("ol", map(_tip, found), class_="advice") if found else None


def _tip(a: Advice) -> Html:
    if a.place:
        basis = escaped([_BASES[a.tested], ", ", a.place])
        source = tag("a", basis, href=PAPER, rel="noreferrer", class_="basis" if a.tested else "basis guess")
    else:
        source = tag("span", "general", class_="basis guess")
    return tag("li", tag("b", coded(a.what)), " ", tag("span", coded(a.why), class_="soft"), " ", source)


def _turns(r: RunReport) -> Html | None:
    """The shares of the structures, and why turns are not healthy, the most frequent reason first."""
    if r.structure is None:
        return None
    rates = {"strictly": r.structure.parse_rate, "leniently": r.structure.lenient_parse_rate}
    parsed = ", ".join(f"{percent(rate)} {how}" for how, rate in rates.items() if rate is not None)
    shares = ", ".join(f"{percent(share)} {name}" for name, share in r.structure.shares.items() if share)
    said = [tag("p", shares), tag("p", f"Calls that parse: {parsed}", class_="soft") if parsed else Html()]
    rows = [(x.reason, x.family, str(x.count), percent(x.share)) for x in r.structure.reasons[:_REASONS]]
    reasons = table(["reason", "family", "turns", "share"], rows, (2, 3)) if rows else Html()
    return escaped([*said, reasons])


def _notices(r: RunReport) -> Html | None:
    return tag("ul", [tag("li", f"step {step}: {text}") for step, text in r.notices]) if r.notices else None


def _not_judged(r: RunReport) -> Html | None:
    found = findings.not_judged(r) if r.verdict is not Verdict.UNJUDGED else []
    return tag("ul", [tag("li", line) for line in found], class_="unknown") if found else None


def _marks(r: RunReport) -> Html | None:
    """What the lines and areas across all charts of a run are."""
    line, area = (
        '<path d="M9 0v14" stroke="{}" stroke-width="{}"{}/>',
        '<path d="M0 7h18" stroke="{}" stroke-width="{}"{}/>',
    )
    said = []
    if episodes(r):
        said += [("onset", line.format(ALARM, 1.5, ' stroke-dasharray="3 2"')), (_found(r), line.format(ALARM, 2, ""))]
        said += [("while it lasts", area.format(ALARM, 14, ' opacity=".15"'))]
    if r.applied:
        said.append(("intervention", area.format(GREEN, 5, "")))
    keys = [tag("li", Html(f'<svg width="18" height="14" aria-hidden="true">{d}</svg>'), name) for name, d in said]
    return tag("ul", keys, class_="legend") if keys else None


def _samples(r: RunReport, format: str) -> Html | None:
    """A sound rollout and the worst ones, control tokens marked; of transcripts an example of each reason."""
    shown = r.samples or tuple(_examples(r))
    if not shown:
        return None
    tokens = {token for name in r.curves if (token := token_of(name))} | format_named(format).role.keys()
    main = r.token or token_of(r.first_mover)
    return tag("div", [_sample(s, tokens, main) for s in shown], class_="samples")


def _examples(r: RunReport) -> Iterator[Sample]:
    for reason in r.structure.reasons if r.structure else ():
        for example in reason.examples:
            share = f"{reason.reason}, {percent(reason.share)} of turns"
            yield Sample(f"line {example.line}", share, example.text)


def _sample(s: Sample, tokens: set[str], main: str) -> Html:
    reward = None if s.reward is None else f"reward {number(s.reward)}"
    told = [tag("span", s.place), tag("span", s.reason or "sound", class_="bad" if s.reason else "good")]
    prompt = tag("pre", marked(s.prompt, tokens), class_="prompt") if s.prompt else None
    head = tag("figcaption", told, tag("span", reward) if reward else None)
    text = marked(s.text, tokens, main) if s.text.strip() else tag("span", "(empty)", class_="soft")
    return tag("figure", head, prompt, tag("pre", text, tabindex="0"), class_="sample")


def _more(r: RunReport) -> Html:
    """What is looked up: alarms, unknown columns, where the run came from."""
    facts = [
        tag("h4", "Alarms") if r.alarms else None,
        _alarms(r),
        tag("h4", "Columns without a known meaning") if r.unmapped else None,
        tag("p", ", ".join(r.unmapped), " (--map COLUMN=NAME gives one)") if r.unmapped else None,
        tag("h4", "Read from"),
        tag("p", f"{r.path} ", tag("span", "" if r.source == OWN else f"({r.source})", class_="soft")),
    ]
    return tag("details", tag("summary", "Alarms and origin" if r.alarms else "Origin"), facts)


def _alarms(r: RunReport) -> Html | None:
    if not r.alarms:
        return None
    rows = [
        (str(a.step), a.tier, a.detector, a.kind.replace("_", " "), str(a.onset_step), _drivers(a))
        for a in r.alarms[:_ALARMS]
    ]
    left = len(r.alarms) - _ALARMS
    more = tag("p", f"and {left} more", class_="soft") if left > 0 else None
    return escaped([table(["step", "tier", "detector", "kind", "onset", "driven by"], rows, (0, 4)), more or Html()])


def _drivers(alarm: Alarm) -> str:
    return ", ".join(stream_words(d.stream) for d in alarm.drivers[:3])
