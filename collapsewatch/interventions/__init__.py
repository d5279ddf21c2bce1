"""Interventions: what the supervisor does for a run, under a schedule.

To add one: a file with a subclass of `interventions.base.Intervention`, and its line in the table. Outside
code is named `pkg.mod:Class`.
"""

from __future__ import annotations

INTERVENTIONS: dict[str, str] = {
    "sft_first": "collapsewatch.interventions.sft_first:SFTFirst",
    "off_policy": "collapsewatch.interventions.off_policy:OffPolicy",
    "hint": "collapsewatch.interventions.hint:Hint",
    "erroneous": "collapsewatch.interventions.erroneous:Erroneous",
    "reflection": "collapsewatch.interventions.reflection:Reflection",
    "lr_cut": "collapsewatch.interventions.lr_cut:LRCut",
    "kl_anchor": "collapsewatch.interventions.kl_anchor:KLAnchor",
    "rollback": "collapsewatch.interventions.rollback:Rollback",
    "advantage_penalty": "collapsewatch.interventions.advantage_penalty:AdvantagePenalty",
    "control_clamp": "collapsewatch.interventions.control_clamp:ControlClamp",
    "stop": "collapsewatch.interventions.stop:Stop",
}
