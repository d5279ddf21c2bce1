"""The grid of all runs: arms, schedules, learning rates, seeds, and the sweep of the supervised learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

STEPS = 100
COMMON: dict[str, Any] = {
    "steps": STEPS,
    "warmup_steps": 20,
    "prompts": 6,
    "rollouts": 4,
    "warm_start": 1200,  # 500 left a held-out reward of 0.21: three kinds of dialogue share them
    "alternate_format": "bracket",
    "content_ood": "quiz",
    "probe_every": 20,
    "eval_every": 20,
    "eval_tasks": 24,
    "save_every": 10,
    "cooldown": 10,
    "sft_updates": 1,
    "sft_learning_rate": 1e-3,
}
"""Knobs of every run. A tiny model learns a thousand times faster than one of 1.5 B, so rates are scaled by that."""
DIALOGUES = COMMON["prompts"] * COMMON["rollouts"]
"""In a supervised update: as many as there are rollouts in a step of RL."""
RATES = (1e-3, 1.5e-3)
"""Learning rates of RL: one that wears the tiny model, and one that breaks it, in the two runs that were looked at."""
SEEDS = (0, 1, 2, 3, 4)
SFT_RATES = (1e-4, 3e-4, 3e-3, 1e-2)
"""The sweep, of the interleaved `erroneous` arm. The paper's are 1e-6 and 1e-5, beside an RL rate of 1e-6."""
CLAMP, SOFT_CLAMP = 0.1, 0.01
"""Weights of `control_clamp`: one that acts, and its default, which was chosen after this had been seen."""
SEGMENTS = (17, 33, 50)
"""The paper's 50, 100 and 150 steps, in a third."""
PHASE = 4
"""Supervised updates, or steps with a standing signal on, between two segments: two phases stay below 10 % of a run."""
WINDOW = STEPS // 6
"""Steps at the end over which a run must still be alive: the paper's runs have 300 and the bar 50."""
SCHEDULED: dict[str, dict[str, Any]] = {
    "synchronous": {},
    "interleaved": {"segments": list(SEGMENTS), "hold": PHASE},
    "triggered": {},
}
ACTS = {"erroneous", "reflection"}
"""Supervised arms that act: synchronously with one update at every tenth step, so that steps stay comparable."""
ARMS: Mapping[str, tuple[str, ...]] = {
    "none": ("",),
    "sft_first": ("first",),
    "off_policy": ("synchronous", "interleaved", "triggered"),
    "hint": ("synchronous", "interleaved", "triggered"),
    "erroneous": ("synchronous", "interleaved", "triggered"),
    "reflection": ("synchronous", "interleaved", "triggered"),
    "control_clamp": ("synchronous", "interleaved", "triggered"),
    "lr_cut": ("interleaved", "triggered"),
}
"""Arms of the paper, two gentler ones, and the schedules that make sense for each."""


@dataclass(frozen=True)
class Cell:
    """One arm under one schedule, at one learning rate of RL; `changes` are knobs beside the arm's own."""

    arm: str
    schedule: str
    rate: float
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    label: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.arm, self.schedule, f"{self.rate:g}", self.label)))

    def knobs(self, seed: int) -> dict[str, Any]:
        """The run's knobs, but for where it is kept."""
        own: dict[str, Any] = {"learning_rate": self.rate, "seed": seed}
        if self.arm != "none":
            table = SCHEDULED.get(self.schedule, {})
            if self.arm in ACTS:
                table = {"every": 10} if self.schedule == "synchronous" else table
                table = {key: value for key, value in table.items() if key != "hold"}
                own["sft_updates"] = PHASE if self.schedule == "interleaved" else COMMON["sft_updates"]
            if self.arm == "sft_first":
                own["sft_updates"] = 2 * PHASE  # as many as two phases of the interleaved arms
            if self.arm in {*ACTS, "sft_first"}:
                own["intervention_knobs"] = {"batch": DIALOGUES}
            if self.arm == "control_clamp":
                own["intervention_knobs"] = {"weight": CLAMP}
            own |= {"intervention": self.arm, "schedule": self.schedule, "schedule_knobs": dict(table)}
        return {**COMMON, **own, **self.changes}


def cells() -> Iterator[Cell]:
    """Every cell of the grid, then the sweeps."""
    for rate in RATES:
        for arm, schedules in ARMS.items():
            yield from (Cell(arm, schedule, rate) for schedule in schedules)
    yield from sweep()


def sweep() -> Iterator[Cell]:
    """The interleaved `erroneous` arm by the rate of its supervised updates, and the clamp at its default weight."""
    for rate in SFT_RATES:  # the grid has the one that is usual
        yield Cell("erroneous", "interleaved", RATES[-1], {"sft_learning_rate": rate}, f"sft{rate:g}")
    for rate in RATES:
        knobs = {"intervention_knobs": {"weight": SOFT_CLAMP}}
        yield Cell("control_clamp", "triggered", rate, knobs, f"weight{SOFT_CLAMP:g}")
