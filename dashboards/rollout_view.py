"""One rollout to read: its facts, its turns, the same prompt at other steps, and every token in colour."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from collapsewatch.queries import RunError
from collapsewatch.reading import replays, rollout
from collapsewatch.records import SLOTS, Structure
from collapsewatch.words import number, plain

from .parts import fact, table
from .views import View
from .words import aria

Key = tuple[int, int, int]
"""Step, rank and number of a rollout."""

_MARKER = re.compile(r"(<\|?/?[A-Za-z_][\w:]{0,30}\|?>)")
_PROMPT = 1500  # characters shown


def key_of(view: View) -> Key | None:
    """The rollout that the address names; None when it names none."""
    asked = [view.place.more.get(name, "") for name in ("step", "rank", "rollout")]
    if not asked[0].isdecimal() or not asked[2].isdecimal():
        return None
    return int(asked[0]), int(asked[1] or 0) if (asked[1] or "0").isdecimal() else 0, int(asked[2])


def reader(view: View, run: str, key: Key | None) -> list[Component]:
    """What is shown of a rollout; where none is chosen, how to choose one."""
    if key is None:
        return [html.P("Choose a rollout above to read it, token by token where that was kept.", className="cw-empty")]
    try:
        found = view.runs[run].memo(("rollout", key), lambda opened: rollout(opened, *key))
        again = view.runs[run].memo(("replays", key), lambda opened: replays(opened, *key))
    except RunError as error:
        return [html.P(f"Cannot be read: {plain(error)}", className="cw-empty")]
    if found is None:
        return [html.P(f"There is no rollout {key[2]} at step {key[0]}.", className="cw-empty")]
    return [
        html.H2(f"Step {key[0]}, rollout {key[2]}" + (f" of rank {key[1]}" if key[1] else "")),
        html.Dl([*_facts(found)], className="cw-facts cw-facts-wide"),
        *_prompt(found["prompt"]),
        *_again(view, run, key, again),
        *(_tokens(found) if found["view"] else _text(found)),
        _turns(found["parts"]),
    ]


def _facts(row: dict[str, Any]) -> list[Component]:
    return [
        fact("Structure", row["structure"] or "–", "of its worst turn"),
        fact("Reward", number(row["reward"]), f"advantage {number(row['advantage'])}"),
        fact("Turns", str(row["turns"]), f"{row['tokens']} tokens sampled"),
        fact("Calls", str(row["calls"]), f"{row['env_errors']} environment errors"),
        fact("Hazard", number(row["hazard"]), "illegal emissions expected"),
    ]


def _prompt(prompt: str | None) -> list[Component]:
    try:
        messages = [(m["role"], m["content"]) for m in json.loads(prompt or "")]
    except (ValueError, LookupError, TypeError, RecursionError):
        messages = [("prompt", prompt)] if prompt else []
    if not messages:
        return [html.P("The prompt was not kept.", className="cw-action")]
    shown = [html.Div([html.B(plain(role, 20)), html.Pre(_clean(text, _PROMPT))]) for role, text in messages]
    return [html.Details([html.Summary("Prompt"), *shown], className="cw-fold")]


def _again(view: View, run: str, key: Key, found: Sequence[dict[str, Any]]) -> list[Component]:
    if len(found) < 2:
        return []
    links = []
    for row in found:
        here = (row["step"], row["rank"], row["rollout"]) == key
        more = {name: str(row[name]) for name in ("step", "rank", "rollout")}
        links.append(
            dcc.Link(
                [html.I(className=f"cw-dot cw-of-{row['structure']}"), f"{row['step']}"],
                href=view.place.at(runs=(run,), **more).href,
                className="cw-chip cw-here" if here else "cw-chip",
                title=f"rollout {row['rollout']}: {row['structure']}, reward {number(row['reward'])}",
            )
        )
    said = html.Span("The same prompt at step", className="cw-hint")
    return [html.Nav([said, *links], className="cw-chips cw-again", **aria("The same prompt at other steps"))]


def _tokens(row: dict[str, Any]) -> list[Component]:
    view = row["view"]
    modes = [("logp", "log-probability"), ("entropy", "entropy"), ("gap", "trained less sampled")]
    modes += [(f"p{i}", f"probability of {name}") for i, name in enumerate(view["names"])]
    choice = dmc.Select(
        id="token-mode",
        data=[{"value": value, "label": plain(label, 60)} for value, label in modes],
        value="logp",
        allowDeselect=False,
        size="xs",
        className="cw-pick",
        **aria("Colour tokens by"),
    )
    slots = [html.Li([html.I(className=f"cw-slot cw-slot-{slot}"), str(slot)]) for slot in SLOTS]
    return [
        dcc.Store(id="tokens", data=token_data(row)),
        html.Div(
            [
                html.Span("Colour by", className="cw-hint"),
                choice,
                html.Div(id="token-scale"),
                html.Ul(slots, className="cw-legend", **aria("Slots, by underline")),
            ],
            className="cw-tools",
        ),
        html.Div(
            [
                html.Div(id="token-view", className="cw-tokens"),
                html.Div(
                    "Choose a token; arrow keys go on from there.",
                    id="token-facts",
                    className="cw-token-facts",
                    **{"aria-live": "polite"},
                ),
            ],
            className="cw-reading",
        ),
    ]


def token_data(row: dict[str, Any]) -> dict[str, Any]:
    """What the browser colours a rollout by: lists with one entry per token; None where a number is unknown."""
    view, k = row["view"], len(row["view"]["names"])
    control = view["control"]
    values = {
        "logp": _rounded(view["logp"]),
        "entropy": _rounded(view["entropy"]),
        "gap": _rounded(a - b for a, b in zip(view["logp"], view["sampler_logp"], strict=True)),
    }
    for i in range(k):
        values[f"p{i}"] = [None if math.isnan(v) else float(f"{math.exp(v):.3g}") for v in control[i::k]]
    turns = {str(part["turn"]): [part["structure"], part["reason"]] for part in row["parts"]}
    return {
        "pieces": view["piece"],
        "turn": view["turn"],
        "slot": view["slot"],
        "names": view["names"],
        "values": values,
        "turns": turns,
        "sound": [str(state) for state in Structure if state.healthy],
    }


def _rounded(values: Any) -> list[float | None]:
    return [round(v, 4) if math.isfinite(v) else None for v in values]


def _text(row: dict[str, Any]) -> list[Component]:
    if not row["text"]:
        return [
            html.P(
                "Neither text nor tokens of this rollout were kept; of others they were (column kept).",
                className="cw-action",
            )
        ]
    pieces = _MARKER.split(_clean(row["text"], 20_000))
    marked = [html.Mark(piece) if i % 2 else piece for i, piece in enumerate(pieces) if piece]
    return [
        html.P("Its text was kept, without its tokens.", className="cw-action"),
        html.Pre(marked, className="cw-text", tabIndex="0"),
    ]


def _turns(parts: Sequence[dict[str, Any]]) -> Component:
    rows = [
        [p["turn"] + 1, p["structure"], p["reason"].replace("_", " "), p["stop"], p["tokens"], p["calls"], p["hazard"]]
        for p in parts
    ]
    heads = ("turn", "structure", "reason", "stop", "tokens", "calls", "hazard")
    return table(heads, rows, "Turns of the rollout")


def _clean(text: Any, limit: int) -> str:
    """Foreign text of several lines: control and direction-changing characters become visible spaces."""
    whole = text if isinstance(text, str) else json.dumps(text)
    lines = (plain(line, limit) for line in whole[:limit].split("\n"))
    return "\n".join(lines) + ("…" if len(whole) > limit else "")
