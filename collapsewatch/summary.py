"""Reports on the terminal: a row per run, then a paragraph for each run that is worth one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import findings
from .records import Verdict
from .report import OWN, RunReport
from .tables import print_structure, printable
from .words import percent, stream_words

_WIDE = 110  # columns from which on the table has room for what moved first
_LINE = 100  # columns of a paragraph at most: longer lines are hard to read, and a pipe has no width
_PARAGRAPHS, _UNMAPPED, _NAMED = 10, 8, 3
STYLES: dict[Verdict, str] = {
    Verdict.HEALTHY: "green",
    Verdict.RECOVERED: "green",
    Verdict.DEGRADED: "yellow",
    Verdict.SILENT: "red",
    Verdict.COLLAPSED: "red",
    Verdict.DEAD: "red",
    Verdict.UNJUDGED: "dim",
}


def print_summary(reports: Sequence[RunReport], console: Console) -> None:
    """Of several runs a table, then of each broken one what happened, since when, what moved first and what to try.

    Of one run the paragraph alone. What could not be read or is unknown stands at the end; transcripts get their
    shares.
    """
    names = dict(zip(map(id, reports), findings.labels(reports), strict=True))
    read = [r for r in reports if not findings.unreadable(r)]
    if len(read) > 1:
        _print_comparison(read, names, console)
    told = [r for r in read if len(read) == 1 or r.verdict not in (Verdict.HEALTHY, Verdict.UNJUDGED)]
    for i, r in enumerate(told[:_PARAGRAPHS]):
        if i or len(read) > 1:
            console.print()
        _print_run(r, names[id(r)], console)
    if len(told) > _PARAGRAPHS:
        _line(f"\n{len(told) - _PARAGRAPHS} more runs to look at: --html FILE and --json tell of all", console)
    texts = [(r, r.structure) for r in read if r.structure and r.source != OWN]
    for r, structure in texts[:_PARAGRAPHS]:
        print_structure(names[id(r)], structure, console)
    _print_notes(reports, read, names, console)


def _print_comparison(reports: Sequence[RunReport], names: Mapping[int, str], console: Console) -> None:
    """Which run broke, when and how."""
    wide = console.width >= _WIDE
    rows = [_row(r, names[id(r)], wide) for r in reports]
    table = Table(box=None, header_style="bold", pad_edge=False)
    kept = [name for name in rows[0] if any(row[name] for row in rows)]
    for name in kept:
        left = name in ("run", "verdict", "how")
        table.add_column(name, no_wrap=name != "run", overflow="fold", justify="left" if left else "right")
    for r, row in zip(reports, rows, strict=True):
        table.add_row(*(Text(row[name], style=STYLES[r.verdict] if name == "verdict" else "") for name in kept))
    console.print(table)
    counted = ", ".join(f"{count} {verdict}" for verdict, count in findings.counts(reports))
    _line(f"\n{len(reports)} runs: {counted}", console, "bold")
    for arm in findings.arms(reports):
        _line(f"  {arm}", console)


def _row(r: RunReport, name: str, wide: bool) -> dict[str, str]:
    """The cells of a run by column; of a narrow table, those that matter most."""
    reward = [] if r.reward is None else [findings.short(value) for value in r.reward]
    cells: dict[str, Any] = {"run": name, "verdict": r.verdict, "since": r.onset_step}
    if wide:
        how = r.kind + (f", {stream_words(r.first_mover)} first" if r.first_mover else "")
        cells |= {"alarm": r.detected_step, "steps": r.steps[2] or None, "how": how}
        cells["reward first / best / last"] = " / ".join(reward)
    else:
        cells |= {"how": r.kind, "reward best / last": " / ".join(reward[1:])}
    return {column: printable(cell) for column, cell in cells.items()}


def _print_run(r: RunReport, name: str, console: Console) -> None:
    title = Text(printable(name), style="bold")
    title.append(f"  {r.verdict}", style=f"bold {STYLES[r.verdict]}")
    title.append(f" {findings.when(r)}".rstrip(), style="not bold")
    console.print(title, soft_wrap=True)
    facts = {
        "what": findings.what(r) + (f" ({r.kind})" if r.kind else ""),
        "moved first": stream_words(r.first_mover) if r.first_mover else "",
        "evidence": findings.evidence(r),
        "rollouts": ", ".join(map(str, r.offenders[:_NAMED])),
        "reward": findings.reward(r),
        "probes": findings.capability(r),
        "supervised": f"{len(r.applied)} interventions, steps {min(r.applied)} to {max(r.applied)}"
        if r.applied
        else "",
        "turns": _turns(r),
        "try next": " ".join(a.what for a in findings.advice(r)[:1]),
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in facts.items():
        if value:
            grid.add_row(key, Text(printable(value)))
    console.print(Padding(grid, (0, 0, 0, 2)), width=min(console.width, _LINE))


def _turns(r: RunReport) -> str:
    """The shares of the structures of a run of ours; those of transcripts have tables of their own."""
    if not r.structure or r.source != OWN:
        return ""
    return ", ".join(f"{percent(share)} {name}" for name, share in r.structure.shares.items() if share)


def _print_notes(
    reports: Sequence[RunReport], read: Sequence[RunReport], names: Mapping[int, str], console: Console
) -> None:
    """What was not judged or not understood, each thing once, with the runs it holds for."""
    notes: dict[str, list[str]] = defaultdict(list)
    unmapped: dict[str, None] = {}
    for r in read:
        unmapped |= dict.fromkeys(r.unmapped)
        for note in findings.not_judged(r):
            notes[note].append(names[id(r)])
    broken = [r for r in reports if findings.unreadable(r)]
    if read and (notes or unmapped or broken or any(r.notices for r in read)):
        console.print()
    for r in read:
        for step, text in r.notices:
            whom = f" in {names[id(r)]}" if len(read) > 1 else ""
            _line(f"told at step {step}{whom}: {text}", console)
    for note, runs in notes.items():
        whom = ", ".join(runs) if len(runs) <= _NAMED else f"{len(runs)} runs"
        _line(f"not judged in {whom}: {note}" if len(read) > 1 else f"not judged: {note}", console)
    if unmapped:
        more = f" and {len(unmapped) - _UNMAPPED} more" if len(unmapped) > _UNMAPPED else ""
        listed = ", ".join(list(unmapped)[:_UNMAPPED])
        _line(f"columns without a known meaning: {listed}{more} (--map COLUMN=NAME gives one)", console)
    for r in broken:
        console.print(Text(printable(f"not read: {r.path}: {findings.unreadable(r)}")), soft_wrap=True)


def _line(text: str, console: Console, style: str = "") -> None:
    start = "\n" if text.startswith("\n") else ""
    body = printable(text.removeprefix("\n"))
    console.print(Text(start + body, style=style), width=min(console.width, _LINE), overflow="fold")
