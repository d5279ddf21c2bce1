"""What an inspection says: the verdict, as JSON, and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from collapsewatch.capability import LOST, Part, State
from collapsewatch.records import ControlRow

from .inspection import View

SHOWN = 1e-3
"""Probability from which on a control token is shown that no expert writes at its slot."""


class Judged(NamedTuple):
    """What is left of format and capability, and the sentence that says so."""

    format: State
    capability: Literal["intact", "lost", "unknown"]
    sentence: str


def judge(views: Sequence[View], reference: Sequence[View] | None = None) -> Judged:
    """The verdict on a checkpoint's views, against those of a reference where there is one.

    The format is judged by the healthy turns in the trained view, the capability by the reward of the view that keeps
    most of it. Without a reference nobody knows what there was to lose: then a capability that shows in most tasks is
    intact, and any other unknown.
    """
    trained = views[0]
    start = reference[0].healthy if reference else 1.0
    frame = Part("trained", start, trained.healthy)
    if reference is None:
        best = max(views, key=lambda view: view.reward)
        capability: Literal["intact", "lost", "unknown"] = "intact" if best.reward >= LOST else "unknown"
        solved = ", ".join(f"{view.reward:.2f} {_where(view)}" for view in views)
        beside = "" if capability == "intact" else " (a --reference tells what is lost from what never was)"
        turns = f"{trained.healthy:.2f} of turns sound in {trained.format}"
        sentence = f"capability {capability}, format {frame.state}: {turns}, tasks solved {solved}{beside}"
        return Judged(frame.state, capability, sentence)
    parts = [Part(view.name, known.reward, view.reward) for view, known in zip(views, reference, strict=True)]
    held = max(parts, key=lambda part: part.kept)
    verdicts: dict[State, Literal["intact", "lost", "unknown"]] = {"held": "intact", "worn": "unknown", "lost": "lost"}
    capability = verdicts[held.state]
    solved = ", ".join(
        f"{part.start:.2f} -> {part.end:.2f} {_where(view)}" for part, view in zip(parts, views, strict=True)
    )
    turns = f"{frame.start:.2f} -> {frame.end:.2f} of turns sound in {trained.format}"
    said = "worn" if capability == "unknown" else capability
    return Judged(frame.state, capability, f"capability {said}, format {frame.state}: {turns}, tasks solved {solved}")


def _where(view: View) -> str:
    return "with repaired calls" if view.name == "repaired" else f"in {view.format}"


Looked = tuple[str, Sequence[View]]
"""A model's name and its views."""


def to_json(judged: Judged, environment: str, looked: Looked, reference: Looked | None) -> dict[str, Any]:
    """The object of `inspect --json`."""
    of, known = ({"model": name, "views": list(map(_view, views))} for name, views in (looked, reference or ("", ())))
    return {
        "model": of["model"],
        "environment": environment,
        "format": judged.format,
        "capability": judged.capability,
        "said": judged.sentence,
        "views": of["views"],
        "reference": known if reference else None,
    }


def _view(view: View) -> dict[str, Any]:
    fields = ("name", "format", "tasks", "reward", "parse_rate", "structures", "reasons", "probes")
    control = ("token", "slot", "legal", "n", "mean", "p50", "p99", "max", "hazard")
    rows = [{name: getattr(row, name) for name in control} for row in view.control]
    return {name: getattr(view, name) for name in fields} | {"control": rows}


def print_views(views: Sequence[View], reference: Sequence[View] | None, judged: Judged, console: Console) -> None:
    """A row per view, then the control tokens of the trained one by slot, then the verdict."""
    table = _table(console, "view", "format", "reward", "parse rate", "tool_call", "response", "polluted", "collapsed")
    table.add_column("mostly", overflow="fold")
    for i, view in enumerate(views):
        known = reference[i] if reference else None
        cells = [_pair(view.reward, known and known.reward), _pair(view.parse_rate, known and known.parse_rate)]
        cells += [_pair(share, known and known.structures[name]) for name, share in view.structures.items()]
        table.add_row(view.name, view.format, *cells, next(iter(view.reasons), ""))
    console.print(table)
    console.print()
    table = _table(console, "slot", "control token", "", "probability", "highest")
    before = {(row.token, row.slot, row.legal): row for row in reference[0].control} if reference else {}
    for row in views[0].control:
        known_row = before.get((row.token, row.slot, row.legal))
        if row.sampled or max(row.mean, known_row.mean if known_row else 0.0) >= SHOWN:
            table.add_row(*_control(row, known_row))
    console.print(table)
    console.print()
    console.print(Text(judged.sentence, style="bold"), soft_wrap=True)


def _table(console: Console, *columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=console.width > 100, justify="left" if name in ("view", "format") else "right")
    return table


def _control(row: ControlRow, known: ControlRow | None) -> tuple[str, ...]:
    legal = "" if row.legal else "illegal"
    cells = (_pair(row.mean, known and known.mean), _pair(row.max, known and known.max))
    return row.slot, row.token, legal, *cells


def _pair(value: float | None, known: float | None) -> str:
    """A value, behind that of the reference."""
    told = ["-" if v is None else f"{v:.3f}" for v in (known, value)]
    return told[1] if known is None else " -> ".join(told)
