"""Small runs that a dashboard is tested on: what a monitor logs, in little, healthy or broken."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

from collapsewatch.dashboards.feed import Feed
from collapsewatch.dashboards.lines import LINES
from collapsewatch.records import (
    Alarm,
    Applied,
    ControlRow,
    Driver,
    Event,
    Evidence,
    Observation,
    RolloutRow,
    StepRecord,
    Tier,
    TokenView,
    TurnRow,
)
from collapsewatch.store import Store

EVIL = "<img src=x onerror=window.__xss=1><script>window.__xss=1</script>"
TOKENS = ("<tool_call>", "</tool_call>", "<|im_end|>", EVIL)
CELLS = [(token, slot, (token, slot) == ("<tool_call>", "start")) for token in TOKENS for slot in ("start", "text")]
ONSET, ALARM, HEALED = 11, 14, 22
"""Steps at which a broken run breaks, is alarmed and, if it heals, is sound again."""


def sickness(step: int, broken: bool, heals: bool = False) -> float:
    """From 0, sound, to 1, lost."""
    return min(1.0, (step - ONSET) / 5) if broken and step > ONSET and not (heals and step > HEALED) else 0.0


def record(step: int, broken: bool = False, heals: bool = False, at: float | None = None) -> StepRecord:
    """One step of a run; every number can be told from its step."""
    sick = sickness(step, broken, heals)
    hazard = {token: 10 ** (-5 + i * 0.3 + (4.5 * sick if i == 0 else 0)) for i, token in enumerate(TOKENS)}
    states = {
        "tool_call": 0.6 * (1 - sick),
        "response": 0.4 * (1 - sick),
        "polluted": 0.3 * sick,
        "collapsed": 0.7 * sick,
    }
    metrics = {"reward": 0.5 + step / 1000 - 0.4 * sick, "parse_rate": 1 - 0.9 * sick, "entropy": 0.3 + sick}
    metrics |= {f"structure/{name}": share for name, share in states.items()}
    if step % 10 == 0:
        metrics |= {"fixed/turn": 0.9 * (1 - sick), "alternate/turn": 0.8, "eval/reward": 0.7 * (1 - sick)}
    metrics |= {f"logit_pressure/{who}/{token}": 1e-4 * step for who in ("self", "other") for token in TOKENS}
    streams = {"hazard": sum(hazard.values()), "hazard@text": 0.1, "polluted": states["polluted"]}
    streams |= {f"hazard:{token}": value for token, value in hazard.items()}
    worst = "collapsed" if sick > 0.5 else "tool_call"
    turns = [
        TurnRow(r, t, worst if t else "tool_call", "symbols_only" if t and sick > 0.5 else "ok", "eos", 6, 1, sick)
        for r in (0, 1)
        for t in (0, 1)
    ]
    rows = [
        RolloutRow(r, 0, 1 - sick, 0.5 - r, 2, 12, 1, 0, worst, sick + r, f"prompt {step % 4}", f"{EVIL} text {r}")
        for r in (0, 1)
    ]
    return StepRecord(
        step,
        1000.0 + 2 * step if at is None else at,
        metrics,
        tuple(Observation(stream, value, 8) for stream, value in streams.items()),
        tuple(ControlRow(t, s, legal, 9, 0.2, 0.1, 0.9, 0.95, hazard[t], 1.0, 1) for t, s, legal in CELLS),
        tuple(turns),
        tuple(rows),
    )


def view(rollout: int, sick: float) -> TokenView:
    """A rollout of a call, an answer of the environment and a second turn."""
    pieces = ("<tool_call>", "{", EVIL, "</tool_call>", "<|im_end|>", "9", "\n", "it", " is", "\u202e9")
    turn = (0, 0, 0, 0, 0, -1, -1, 1, 1, 1)
    slot = ("start", "open", "body", "body", "close", "", "", "start", "text", "text")
    logp = tuple(math.nan if t < 0 else -0.5 * (1 + sick) * (i % 3) for i, t in enumerate(turn))
    control = tuple(-0.1 - k - i / 10 for i in range(len(pieces)) for k in range(2))
    unknown = (math.nan,) * len(pieces)
    return TokenView(rollout, 0.5, tuple(range(10)), pieces, turn, slot, logp, unknown, logp, TOKENS[:2], control)


def log(store: Store, first: int, last: int, broken: bool = False, heals: bool = False, live: bool = False) -> None:
    """Steps `first` to `last` with their evidence, and every fourth step's rollout 0 token by token."""
    for step in range(first, last + 1):
        store.log_step(record(step, broken, heals, time.time() if live else None))
        level = -2.0 + 1.5 * max(0, step - ONSET) if broken and not (heals and step > HEALED) else -2.0
        store.log_evidence(Evidence(step, "e_detector", level + 5.3, 5.3))
        if step % 4 == 0:
            store.log_views([(step, view(0, sickness(step, broken, heals)))])
        if broken and step == ALARM:
            store.log_alarm(alarm(step))
        if heals and ALARM < step <= HEALED:
            store.log_applied(Applied(step, "replay", "triggered", ALARM, "applied"))
        if heals and step == HEALED + 2:
            store.log_alarm(alarm(step, Tier.CLEARED))


def alarm(step: int, tier: Tier = Tier.ALARM, stream: str = "hazard:<tool_call>@text") -> Alarm:
    drivers = (Driver("hazard", 0.6, 0.4, 0.01, 0.1), Driver(stream, 0.4, 0.3, 0.01, 0.1))
    return Alarm(step, tier, "e_detector", drivers, step - 3, 6.0, 5.3, "control_token_spike")


def write_run(path: Path, steps: int = 30, broken: bool = False, heals: bool = False) -> None:
    """A finished run."""
    store = Store(path)
    store.log_event(Event(0, 1000.0, "started", json.dumps({"max_steps": 40})))
    log(store, 1, steps, broken, heals)
    store.log_event(Event(steps, 1000.0 + 2 * steps, "finished"))
    store.close()


def look(feed: Feed) -> Feed:
    """Everything of every run, read now."""
    feed._looked = feed._searched = float("-inf")
    feed.refresh()
    for run in feed.runs.values():
        run.refresh(LINES)
    return feed


def until_step(feed: Feed, key: str, step: int) -> None:
    """Looks until the writer has merged everything up to a step's evidence."""
    for _ in range(1000):
        look(feed)
        if key in feed.runs and any(dot.x == step for dot in feed.runs[key].lines.get("evidence:e_detector", ())):
            look(feed)  # tables are read in turn: the merge may have come in between
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} of {key} never came")
