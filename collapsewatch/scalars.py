"""Sums behind the metrics of a step: means over rollouts, turns or tokens. `METRICS` names them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .cells import pressure
from .formats.bound import BoundFormat, SlotArrays
from .records import SLOTS, Classified, Slot, Structure
from .rollouts import Bools, Floats, GroupSums, Rollouts

REGIONS: dict[str, tuple[Slot, ...]] = {
    "call": (Slot.OPEN, Slot.BODY),
    "think": (Slot.THINK,),
    "text": (Slot.START, Slot.TEXT, Slot.CLOSE, Slot.END),
}
"""Where a token that is no control token stands; mean entropy hides what happens in one of them."""
LEAST_VARIANCE = 1e-6
"""Of a position, in the calibration: what is certain up to rounding must not weigh without end."""


def reward_sums(sums: GroupSums, rollouts: Rollouts) -> None:
    """Reward, its square and environment errors, by rollout."""
    known = np.isfinite(rollouts.reward)
    reward = np.where(known, rollouts.reward, 0.0)
    sums.add("reward", reward, known)
    sums.add("reward_square", reward**2, known)
    sums.add("env_errors", rollouts.env_errors, np.ones(len(reward)))
    if rollouts.altered is not None:
        known = np.isfinite(rollouts.altered)
        sums.add("sampling/altered", np.where(known, rollouts.altered, 0.0), known)


def turn_sums(
    sums: GroupSums,
    rollouts: Rollouts,
    classified: Sequence[Sequence[Classified]],
    cut: Sequence[bool],
) -> None:
    """Turns and calls per rollout, void turns, lengths; `cut` (N,) says which rollouts did not end by themselves."""
    ones = np.ones(len(classified))
    turns = [len(row) for row in classified]
    void = [sum(not turn.calls and turn.structure is not Structure.RESPONSE for turn in row) for row in classified]
    sums.add("tools/call_frequency", [sum(len(turn.calls) for turn in row) for row in classified], ones)
    sums.add("turns", turns, ones)
    sums.add("turns/void", void, turns)
    sums.add("completions/mean_length", rollouts.mask.sum(axis=1), ones)
    sums.add("completions/clipped_ratio", cut, ones)


def token_sums(sums: GroupSums, rollouts: Rollouts, arrays: SlotArrays, control: Bools) -> None:
    """Entropy by region, log-probs by the sign of the advantage, and how far the sampler's lie from them.

    `control` (N, T): where control tokens stand.
    """
    if rollouts.entropy is not None:
        held = rollouts.mask & np.isfinite(rollouts.entropy)
        sums.add_mean("entropy", rollouts.entropy, held)
        sums.add_mean("entropy/control", rollouts.entropy, held & control)
        for region, slots in REGIONS.items():
            inside = np.isin(arrays.slot, [SLOTS.index(slot) for slot in slots])
            sums.add_mean(f"entropy/{region}", rollouts.entropy, held & ~control & inside)
    if rollouts.label_logp is None:
        return
    held = rollouts.mask & np.isfinite(rollouts.label_logp)
    sums.add_mean("logp/rewarded", rollouts.label_logp, held & (rollouts.advantage > 0)[:, None])
    sums.add_mean("logp/punished", rollouts.label_logp, held & (rollouts.advantage < 0)[:, None])
    if rollouts.sampler_logp is not None:
        gap = np.abs(rollouts.label_logp - rollouts.sampler_logp)
        held &= np.isfinite(gap)
        sums.add_mean("sampling/logp_gap", gap, held)
        sums.add_mean("sampling/logp_gap_control", gap, held & control)


def control_sums(
    sums: GroupSums, rollouts: Rollouts, chat_format: BoundFormat, p: Floats, known: Bools, scored: Bools
) -> None:
    """Logit pressure per control token, and whether as many control tokens are drawn as their probabilities say.

    The latter are drawn - expected and its variance over all that the policy drew by itself, for
    `selftest.deviations`.
    """
    trained = known.sum(axis=1)
    for side, push in zip(("self", "other"), pressure(chat_format, rollouts, p, known), strict=True):
        for k, token in enumerate(chat_format.probe_tokens):
            sums.add(f"logit_pressure/{side}/{token}", push[:, k], trained)
    if rollouts.guided is not None:
        scored = scored & ~rollouts.guided[:, None]
    mass = np.where(scored, np.minimum(np.where(scored[..., None], p, 0.0).sum(axis=2), 1.0), 0.0)  # (N, T)
    drawn = scored & np.isin(rollouts.ids, chat_format.probe_ids)
    variance = np.where(scored, np.maximum(mass * (1 - mass), LEAST_VARIANCE), 0.0)
    sums.add("probe/calibration", (drawn - mass).sum(axis=1), variance.sum(axis=1))
