"""`kl_anchor`: a KL term against the policy as it was while it was healthy.

TRL's own KL term needs a reference model from the start, and pulls towards the policy of step 0. This one needs a copy
of the trainable weights, and is against the newest healthy one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.func import functional_call

from .base import Forward, Intervention, NotApplicable, Training
from .snapshots import Snapshots, Weights, weights_of

_IMAGES = tuple(
    "pixel_values image_grid_thw num_images pixel_attention_mask spatial_shapes num_tiles image_sizes "  # noqa: SIM905
    "token_type_ids mm_token_type_ids image_position_ids".split()
)


class KLAnchor(Intervention):
    """Adds `weight` times the KL divergence from the anchor to the loss (k3, mean over the model's own tokens).

    The anchor is the policy as the term is switched on; on an alarm, the newest snapshot from before its onset.

    Args:
        weight: of the term; the paper's own, against step 0, was 1e-4 and did not keep the runs from collapsing.
        every: healthy steps between two snapshots of the trainable weights, on the CPU of every rank.
        count: snapshots kept.
    """

    name: ClassVar[str] = "kl_anchor"
    standing: ClassVar[bool] = True

    def __init__(self, weight: float = 0.1, every: int = 10, count: int = 3) -> None:
        if not weight > 0:
            raise ValueError(f"intervention {self.name}: weight: got {weight}, expected above 0")
        self._weight, self._snapshots = weight, Snapshots(self.name, every, count)
        self._anchor: Weights | None = None

    def check(self, training: Training) -> None:
        self._snapshots.kept.clear()
        self._anchor = None
        if training.sharded:
            raise ValueError(
                f"intervention kl_anchor: got {training.sharded}, whose weights no rank holds whole, expected plain or "
                "DDP training; TRL's own `beta` works there"
            )

    def healthy(self, step: int, training: Training) -> None:
        if training.schedule == "triggered" and self._snapshots.due(step):
            self._snapshots.keep({"step": step, "weights": weights_of(training.trainer.model)})

    def begin(self, step: int, training: Training) -> dict[str, Any]:
        model = training.trainer.model
        snapshot = self._snapshots.before(training.onset)
        if training.schedule != "triggered":
            snapshot = {"step": step, "weights": weights_of(model)}
        elif snapshot is None:
            raise NotApplicable(f"no snapshot is from before the onset at step {training.onset}")
        self._anchor = {name: value.to(model.device) for name, value in snapshot["weights"].items()}
        return {"weight": self._weight, "anchor_step": snapshot["step"]}

    def end(self, step: int, training: Training) -> dict[str, Any]:
        self._anchor = None
        return {}

    def loss(self, batch: Forward, training: Training) -> torch.Tensor | None:
        anchor, trainer, inputs = self._anchor, training.trainer, batch.inputs
        tokens = batch.mask.sum()
        if anchor is None or not tokens:
            return None
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        whole = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        images = {key: inputs[key] for key in _IMAGES if inputs.get(key) is not None}

        def anchored(**given: Any) -> Any:
            return functional_call(trainer.model, anchor, (), given)

        with torch.no_grad():
            kept = batch.mask.size(1)
            before = trainer._get_per_token_logps_and_entropies(anchored, ids, whole, kept, **images)[0]  # (B, C)
        apart = (before - batch.logp).masked_fill(~batch.mask, 0.0)
        term: torch.Tensor = self._weight * (torch.exp(apart) - apart - 1).sum() / tokens
        return term

    def state_dict(self) -> dict[str, Any]:
        return {**self._snapshots.state_dict(), "anchor": self._anchor}

    def load_state_dict(self, state: Mapping[str, Any], training: Training) -> None:
        self._snapshots.load_state_dict(state)
        device, anchor = training.trainer.model.device, state["anchor"]
        self._anchor = None if anchor is None else {name: value.to(device) for name, value in anchor.items()}
