"""The panels that more than one page shows."""

from __future__ import annotations

from collapsewatch.theme import ALARM, BLUE, GREEN, GREY, ORANGE, PURPLE, STRUCTURE_COLOURS, line_styles
from collapsewatch.words import token_of

from .figures import Curve, Panel, compared, line
from .lines import EXCESS_RANGE, HAZARD_FLOOR, HELD
from .views import View

HAZARD_AXIS = {
    "type": "log",
    "range": [-6.2, 1.2],
    "tickvals": [1e-6, 1e-4, 1e-2, 1],
    "ticktext": ["1e-6", "1e-4", "0.01", "1"],
}
EVIDENCE_AXIS = {
    "range": [EXCESS_RANGE[0] - 0.5, EXCESS_RANGE[1] + 1],
    "zeroline": True,
    "zerolinecolor": ALARM,
    "zerolinewidth": 1.5,
}
SHARE_AXIS = {"range": [-0.02, 1.04], "tickformat": ".0%"}


def _structure(key: str, view: View) -> list[Curve]:
    area = {"mode": "lines", "stackgroup": "turns", "stackgaps": "interpolate"}
    return [
        Curve(
            key,
            f"structure/{state}",
            state,
            {
                **area,
                "line": {"width": 0.5, "color": colour},
                "fillcolor": colour,
                "hovertemplate": f"{state}: %{{text}}<extra></extra>",
            },
        )
        for state, colour in STRUCTURE_COLOURS.items()
        if view.has(key, f"structure/{state}")
    ]


def _hazard(key: str, view: View) -> list[Curve]:
    styles = line_styles(token for run in view.runs for name in view.names(run) if (token := token_of(name)))
    tokens = [token for name in view.names(key) if (token := token_of(name))]
    total = [line(key, "hazard", "all", color=GREY, width=1)] if view.has(key, "hazard") else []
    return total + [line(key, f"hazard:{token}", token, **styles[token]) for token in tokens]


def _evidence(key: str, view: View) -> list[Curve]:
    names = [name for name in view.names(key) if name.startswith("evidence:")]
    colours = (PURPLE, BLUE, GREEN, ORANGE)
    return [line(key, n, n.partition(":")[2], color=colours[i % 4]) for i, n in enumerate(names)]


def _held_out(key: str, view: View) -> list[Curve]:
    colours = dict(zip(HELD, (BLUE, ORANGE, GREEN, PURPLE, GREY), strict=True))
    drawn = [line(key, name, said, color=colours[name]) for name, said in HELD.items() if view.has(key, name)]
    return [curve._replace(style={**curve.style, "mode": "lines+markers"}) for curve in drawn]


REWARD = Panel("reward", "Reward", "Other runs in grey.", "the metric reward", 150, compared("reward", BLUE))
PARSE_RATE = Panel(
    "parse_rate",
    "Parse rate",
    "Of attempted calls.",
    "the metric parse_rate",
    150,
    compared("parse_rate", GREEN),
    SHARE_AXIS,
)
STRUCTURE = Panel(
    "structure",
    "Structure",
    "Share of turns in each state; blue is healthy, orange is not.",
    "the metrics structure/tool_call, structure/response, structure/polluted, structure/collapsed",
    160,
    _structure,
    {"range": [0, 1], "tickformat": ".0%"},
    aloud=True,
)
HELD_OUT = Panel(
    "held_out",
    "Held out",
    "Turns of fixed dialogues that come out right, and rewards of tasks, none of them trained on.",
    "the metrics fixed/turn, alternate/turn, or eval/reward",
    160,
    _held_out,
    SHARE_AXIS,
    aloud=True,
)
HAZARD = Panel(
    "hazard",
    "Control-token hazard",
    f"Illegal emissions expected per turn; below {HAZARD_FLOOR:g} drawn at {HAZARD_FLOOR:g}.",
    "observations of the streams hazard:<token>",
    190,
    _hazard,
    HAZARD_AXIS,
    (HAZARD_FLOOR, float("inf")),
    aloud=True,
)
EVIDENCE = Panel(
    "evidence",
    "Evidence",
    "Log evidence less the detector's bound; an alarm at 0.",
    "evidence of a detector",
    160,
    _evidence,
    EVIDENCE_AXIS,
    EXCESS_RANGE,
    aloud=True,
)
