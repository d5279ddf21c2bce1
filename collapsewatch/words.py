"""What a run says in words: streams, alarms, numbers; and foreign text, made plain."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence

from .records import NOT_FINITE, SLOTS, Driver

_PLACES = {
    "start": "at the start of a turn",
    "open": "right after an opened call",
    "body": "inside call arguments",
    "close": "after a closed call",
    "text": "in text",
    "think": "in a reasoning block",
    "end": "after the end of the turn",
}
_STREAMS = {
    "hazard": "control tokens where the format forbids them",
    "no_end": "no end of turn after a closed call",
    "reopen": "another call opened right after a closed one",
    "no_call_start": "no call at the start of a turn",
    "call_in_text": "a call opened in text",
    "polluted": "polluted turns",
    "collapsed": "collapsed turns",
    "parse_failure": "calls that do not parse",
    "empty": "empty turns",
    "truncated": "turns cut at the length limit",
    "repeated": "repetition loops",
    "no_call": "rollouts without a call",
    NOT_FINITE: "updates without finite numbers",
}

_METRICS = {
    "reward": "reward",
    "reward_std": "spread of the rewards",
    "accuracy": "accuracy",
    "entropy": "entropy",
    "kl": "KL to the reference",
    "grad_norm": "gradient norm",
    "completions/mean_length": "completion length",
    "tools/call_frequency": "tool calls per rollout",
}

TEXT_LIMIT = 300
"""Characters of foreign text shown in one place; a longer one is cut, with an ellipsis."""


def plain(text: object, limit: int = TEXT_LIMIT) -> str:
    """`text` on one line: control and direction-changing characters become spaces, at most `limit`
    characters.
    """
    line = str(text)[: limit + 1]
    if not line.isprintable():  # of what is printable no character is of such a category
        line = "".join(" " if unicodedata.category(c).startswith("C") else c for c in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def escape(text: object) -> str:
    """`plain(text)` for a figure, whose labels and hover texts would read `<b>` and `<a href>` as markup."""
    return html.escape(plain(text), quote=False)


def token_of(stream: str) -> str:
    """The control token a hazard stream is about, or '' for every other stream.

    >>> token_of("hazard:<tool_call>@text"), token_of("hazard@text"), token_of("polluted")
    ('<tool_call>', '', '')
    """
    head, _, place = stream.rpartition("@")
    name = head if head and place in SLOTS else stream
    return name.removeprefix("hazard:") if name.startswith("hazard:") else ""


def stream_words(stream: str) -> str:
    """A stream, said for a reader; a name outside the vocabulary is shown as it is.

    >>> stream_words("hazard:<tool_call>@text")
    '<tool_call> in text'
    >>> stream_words("hazard:<|im_end|>")
    '<|im_end|> where the format forbids it'
    """
    token = token_of(stream)
    place = _PLACES.get(stream.rpartition("@")[2], "") if "@" in stream else ""
    if token:
        return plain(f"{token} {place or 'where the format forbids it'}")
    if stream.startswith("hazard@") and place:
        return f"control tokens {place}"
    return plain(_STREAMS.get(stream) or _METRICS.get(stream, stream))


def amount(stream: str, value: float) -> str:
    """A level of a stream: a share of turns, calls or rollouts in percent, a metric of the trainer as it is.

    >>> amount("truncated", 0.954), amount("hazard:<tool_call>", 0.00004), amount("grad_norm", 31.25)
    ('95%', '<0.01%', '31.2')
    """
    return percent(value) if stream in _STREAMS or stream.startswith("hazard") else number(value)


def cause(drivers: Sequence[Driver]) -> str:
    """What to name in a headline: the driver with the largest share, and the control token that is over its tolerance.

    A sum over tokens gives way to the token; an outcome (collapsed turns) is named beside it.
    """
    if not drivers:
        return "no driver recorded"
    top = max(drivers, key=lambda d: d.share)
    over = [d for d in drivers if token_of(d.stream) and d.level > d.tolerance]
    if not over or token_of(top.stream):
        return stream_words(top.stream)
    token = stream_words(max(over, key=lambda d: (d.share, len(d.stream))).stream)
    return token if top.stream.startswith("hazard") else f"{stream_words(top.stream)}, {token}"


def percent(share: float) -> str:
    """A share as a person reads it.

    >>> percent(0.954), percent(0.0312), percent(0.00004), percent(0.0)
    ('95%', '3.1%', '<0.01%', '0%')
    """
    if share >= 0.1:
        return f"{share:.0%}"
    return "<0.01%" if 0 < share < 1e-4 else f"{100 * share:.2g}%"


def number(value: float) -> str:
    """A value as a person reads it: three significant digits or whole, and said so when it is not a number.

    >>> number(0.000012), number(0.98765), number(1234.5), number(float("nan"))
    ('1.2e-05', '0.988', '1234', 'not a number')
    """
    if math.isnan(value):
        return "not a number"
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"
