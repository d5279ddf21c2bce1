"""What a step's own measurements say of the measuring, and of a training that is not what it seems."""

from __future__ import annotations

import math
from collections.abc import Mapping

HEAD_ERROR = 0.05
"""Nats between the probe's normaliser and the whole LM head's: 3e-6 where the probe is right, 0.05 and more where
temperature, scale or cap are wrong (docs/measurements.md, "Probe against brute force")."""
CALIBRATION = 6.0
"""Standard deviations between control tokens drawn and expected; one in 10^9 steps by chance."""
LOGP_GAP = 0.2
"""Nats between sampler and trainer at control tokens, on average; a bfloat16 sampler stays far below."""


def deviations(excess: float, variance: float) -> float:
    """How many standard deviations more control tokens were drawn than their probabilities say.

    N(0, 1) or narrower as long as what is trained is what was sampled from: on the first pass over a batch, with the
    sampler's own probabilities. Where next to nothing is expected, one draw is no normal deviate: a third of the
    excess is Freedman's allowance ("On tail probabilities for martingales", 1975).
    """
    return excess / math.sqrt(variance + abs(excess) / 3)


def complaints(metrics: Mapping[str, float], on_policy: bool) -> dict[str, str]:
    """What is wrong with a step, by metric, in a sentence; empty when nothing is.

    `on_policy`: the step trains what the present weights have just sampled, so drawn and expected must agree.

    >>> complaints({"sampling/altered": 0.25}, True)["sampling/altered"]
    '25 % of the rollouts are trained on other ids than were sampled'
    """
    found = {}
    error = metrics.get("probe/max_error", 0.0)
    if error > HEAD_ERROR:
        found["probe/max_error"] = f"probabilities are off by {error:.2g} nats from the LM head's own"
    altered = metrics.get("sampling/altered", 0.0)
    if altered > 0:
        found["sampling/altered"] = f"{altered:.0%}".replace("%", " %") + (
            " of the rollouts are trained on other ids than were sampled"
        )
    z = metrics.get("probe/calibration", 0.0)
    if on_policy and abs(z) > CALIBRATION:
        found["probe/calibration"] = (
            f"control tokens are drawn {'more' if z > 0 else 'less'} often than their probabilities say ({z:+.1f} "
            "standard deviations): what samples is not what is trained"
        )
    gap = metrics.get("sampling/logp_gap_control", 0.0)
    if gap > LOGP_GAP:
        found["sampling/logp_gap_control"] = f"sampler and trainer differ by {gap:.2g} nats at control tokens"
    return found
