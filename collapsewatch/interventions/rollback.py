"""`rollback`: the last healthy policy again, with its optimizer and with detection as it then stood.

The step, the data and the random numbers go on: the same steps do not come again. The newest snapshot from before the
alarm's onset is taken, not the newest: an alarm comes steps after what it tells of.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from .base import Intervention, NotApplicable, Training
from .rates import scale_rate
from .reference import drop_buffered
from .snapshots import Snapshots, put_weights, weights_of


class Rollback(Intervention):
    """Goes back to a snapshot in memory; where weights are sharded, stops and names the checkpoint to resume from.

    Args:
        every: healthy steps between two snapshots: weights and optimizer, on the CPU of every rank.
        count: snapshots kept.
        factor: on the learning rate from then on; the same rate broke the run once.
    """

    name: ClassVar[str] = "rollback"
    schedules: ClassVar[tuple[str, ...]] = ("triggered",)

    def __init__(self, every: int = 10, count: int = 3, factor: float = 0.5) -> None:
        if not 0 < factor <= 1:
            raise ValueError(f"intervention {self.name}: factor: got {factor}, expected above 0, at most 1")
        self._snapshots, self._factor = Snapshots(self.name, every, count), factor

    def check(self, training: Training) -> None:
        self._snapshots.kept.clear()
        args = training.trainer.args
        if training.sharded and str(getattr(args.save_strategy, "value", args.save_strategy)) == "no":
            raise ValueError(
                f"intervention rollback: got {training.sharded}, whose weights no rank holds whole, and "
                "no save_strategy, expected checkpoints to go back to"
            )

    def healthy(self, step: int, training: Training) -> None:
        if training.sharded or not self._snapshots.due(step):
            return
        assert training.monitor is not None
        snapshot = {"step": step, "weights": weights_of(training.trainer.model)}
        state = training.trainer.optimizer.state_dict()["state"]
        snapshot["optimizer"] = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda value: value.detach().to("cpu", copy=True), copy.copy(state)
        )
        snapshot["detection"] = training.monitor.snapshot()
        self._snapshots.keep(snapshot)

    def apply(self, step: int, training: Training) -> dict[str, Any]:
        if training.sharded:
            return self._stopped(training)
        snapshot = self._snapshots.before(training.onset)
        if snapshot is None:
            raise NotApplicable(f"no snapshot is from before the onset at step {training.onset}")
        trainer = training.trainer
        put_weights(trainer.model, snapshot["weights"])
        # The rates stay the present step's: the schedule goes on.
        groups = trainer.optimizer.state_dict()["param_groups"]
        trainer.optimizer.load_state_dict({"state": copy.deepcopy(snapshot["optimizer"]), "param_groups": groups})
        rate = scale_rate(trainer, self._factor)[0]
        drop_buffered(trainer)
        assert training.monitor is not None
        training.monitor.go_on(step, snapshot["detection"])
        return {"to_step": snapshot["step"], "learning_rate": rate}

    def state_dict(self) -> dict[str, Any]:
        return self._snapshots.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], training: Training) -> None:
        self._snapshots.load_state_dict(state)

    def _stopped(self, training: Training) -> dict[str, Any]:
        """End the training, with the name of the newest checkpoint from before the onset."""
        onset = training.onset
        folders = Path(training.trainer.args.output_dir).glob("checkpoint-*")
        steps = [int(folder.name[11:]) for folder in folders if folder.name[11:].isdecimal()]
        found = [step for step in steps if onset is None or step < onset]
        if not found:
            raise NotApplicable(f"no checkpoint is from before the onset at step {onset}")
        training.trainer.control.should_training_stop = True
        return {"resume_from": f"checkpoint-{max(found)}"}
