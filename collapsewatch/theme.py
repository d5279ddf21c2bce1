"""What all figures share, those of the dashboard and of the page of `analyze --html`: colours, layout, toolbar.

Text and grid colours of a figure come from each page's style sheet, so that dark and light switch in the
browser without drawing a figure again; the colours here are readable on both backgrounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Okabe and Ito's palette, told apart with any common colour blindness; its yellow and black are left out,
# because they vanish on a white or a dark page.
BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILLION, PURPLE = "#E69F00", "#D55E00", "#CC79A7"
GREY = "#8A9099"
ALARM = "#E5197F"  # in no other use, and visible on every structure colour

# Healthy states are the two blues, failing ones the two oranges: the split reads before the legend does.
STRUCTURE_COLOURS = {"tool_call": BLUE, "response": SKY, "polluted": ORANGE, "collapsed": VERMILLION}

# The markers of the common families keep one colour in every run and on every page.
TOKEN_COLOURS = {
    "<tool_call>": VERMILLION,
    "</tool_call>": BLUE,
    "<|im_end|>": GREEN,
    "<|im_start|>": PURPLE,
    "<tool_response>": ORANGE,
    "</tool_response>": SKY,
}
_CYCLE = (VERMILLION, BLUE, GREEN, PURPLE, ORANGE, SKY)
_DASHES = ("solid", "dot", "dash", "dashdot")

# Plotly's modebar can upload a figure to a hosted service; nothing may leave the machine.
GRAPH_CONFIG: Any = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"],
}


def line_styles(tokens: Iterable[str]) -> dict[str, dict[str, Any]]:
    """One fixed line style (colour, dash) per control token; tokens outside the table share the cycle by
    name.
    """
    named = set(tokens)
    styles: dict[str, dict[str, Any]] = {
        token: {"color": TOKEN_COLOURS[token], "dash": "solid"} for token in named & TOKEN_COLOURS.keys()
    }
    for index, token in enumerate(sorted(named - TOKEN_COLOURS.keys())):
        # Dashed from the first one on, so that they differ from the tabled tokens of the same colour.
        dash = _DASHES[1 + index // len(_CYCLE) % (len(_DASHES) - 1)]
        styles[token] = {"color": _CYCLE[index % len(_CYCLE)], "dash": dash}
    return styles


def base_layout(height: int) -> dict[str, Any]:
    """The layout every panel starts from; `height` in pixels."""
    axis = {"showline": False, "zeroline": False, "gridcolor": "rgba(138,144,153,.25)", "automargin": False}
    return {
        "height": height,
        "margin": {"l": 46, "r": 12, "t": 8, "b": 26},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 11, "color": GREY},
        "showlegend": False,
        "hovermode": "x unified",
        "hoverlabel": {"namelength": -1},
        "dragmode": "zoom",
        "xaxis": {
            **axis,
            "tickformat": "~r",
            "showgrid": False,
            "tickprefix": "step ",
            "showtickprefix": "first",
            "spikecolor": GREY,
            "spikethickness": 1,
            "spikedash": "solid",
            "hoverformat": "d",
            "unifiedhovertitle": {"text": "step %{x}"},
        },
        "yaxis": {**axis, "fixedrange": False},
        # The marks live on an axis of their own from 0 to 1, so that they span the panel whatever it shows.
        "yaxis2": {"overlaying": "y", "range": [0, 1], "fixedrange": True, "visible": False},
    }
