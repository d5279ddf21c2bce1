"""The policy as it was while it was healthy: a few snapshots in memory, the newest of them last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Weights = dict[str, torch.Tensor]


def weights_of(model: Any) -> Weights:
    """The trainable weights of a model, copied to the CPU."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def put_weights(model: Any, weights: Weights) -> None:
    """Give a model its trainable weights back, bit for bit."""
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)


class Snapshots:
    """Keeps one snapshot every `every` healthy steps, `count` of them."""

    def __init__(self, name: str, every: int, count: int) -> None:
        if every < 1 or count < 1:
            raise ValueError(f"intervention {name}: every, count: got {every}, {count}, expected at least 1")
        self._every, self._count = every, count
        self.kept: list[dict[str, Any]] = []

    def due(self, step: int) -> bool:
        """Whether it is time for another one."""
        return not self.kept or step - self.kept[-1]["step"] >= self._every

    def keep(self, snapshot: dict[str, Any]) -> None:
        """Keep a snapshot, of the `step` in it; the oldest goes."""
        self.kept = [*self.kept, snapshot][-self._count :]

    def before(self, onset: int | None) -> dict[str, Any] | None:
        """The newest snapshot from before an alarm's onset, None where there is none; later ones are dropped."""
        if onset is not None:
            self.kept = [kept for kept in self.kept if kept["step"] < onset]
        return self.kept[-1] if self.kept else None

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept = list(state["kept"])
