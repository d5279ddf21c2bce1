"""The closed loop in a TRL training: a supervisor's hooks, fed from the trainer, and its state beside checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from .database import first_line
from .formats.bound import BoundFormat
from .interventions.base import Forward, Generation, Guide, Intervention, PromptRow, Training
from .monitor import Monitor
from .probe import ControlProbe, Live
from .records import Alarm, Applied, StepRecord
from .supervisor import Supervisor

_log = logging.getLogger(__name__)
STATE_FILE = "collapsewatch_supervisor.pt"
"""The supervisor's state in a checkpoint's folder."""


class ClosedLoop:
    """One supervisor at work on one training.

    Raises:
        ValueError: the intervention cannot help this training; before step 1.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        training: Training,
        chat_format: BoundFormat,
        probe: ControlProbe | None,
    ) -> None:
        self.supervisor = supervisor
        self._bound, self._probe = chat_format, probe
        act = type(supervisor.intervention)
        self._weighs = act.advantages is not Intervention.advantages
        self._adds = act.loss is not Intervention.loss
        if self._adds and probe is None:
            raise ValueError(f"intervention {act.name}: got an LM head that cannot be read, expected one that is whole")
        self._guides: bool = act.guides_rollouts
        self.wants_text: bool = act.wants_text
        if self._guides and not getattr(training.trainer, "serves_guides", False):
            raise ValueError(
                f"intervention {act.name}: got {type(training.trainer).__name__}, whose rollouts nobody can guide, "
                "expected the built-in trainer, or one with `serves_guides`"
            )
        self.training = replace(training, schedule=supervisor.schedule.name)
        supervisor.intervention.check(self.training)
        if self._guides:
            training.trainer.guide = self._guide

    def watch(self, monitor: Monitor) -> None:
        """Log to a monitor, and let the intervention ask it."""
        self._monitor, self.training = monitor, replace(self.training, monitor=monitor)

    def close(self) -> None:
        """Let go of the trainer's rollouts."""
        if self._guides:
            self.training.trainer.guide = None

    def start(self, step: int) -> None:
        """What is to be done before the next step of a training that stands at `step`."""
        with self._acting():
            self._log(list(self.supervisor.start(step, self.training)))

    def step(self, record: StepRecord, alarms: Sequence[Alarm], failed: Sequence[PromptRow]) -> list[Applied]:
        """One step; the rows of what was done, which are logged here."""
        done: list[Applied] = []
        with self._acting():
            done = list(self.supervisor.step(record, alarms, self._monitor.state, failed, self.training))
        self._log(done)
        self._monitor.log_metrics(record.step, self.supervisor.metrics())
        return done

    def weigh(self, result: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Let a standing intervention change the advantages of what was just generated."""
        trainer = self.training.trainer
        if not (self._weighs and self.supervisor.on and trainer.model.training):
            return
        malformed = self._malformed(result["completion_ids"], _own(result)).to(result["advantages"].device)
        self.supervisor.intervention.advantages(
            Generation(result["advantages"], malformed, trainer.num_generations), self.training
        )

    def before_loss(self, training: bool) -> None:
        """Have the next forward kept with its gradient if a term is to be added to its loss."""
        if self._adds and self._probe is not None:
            self._probe.keep_live = self.supervisor.on and training

    def with_term(self, loss: Any, inputs: Mapping[str, Any]) -> Any:
        """A micro-batch's loss, with the intervention's term where it has one; as it was where that fails."""
        if self._probe is None or (live := self._probe.live) is None:
            return loss
        self._probe.live = None
        with self._monitor.guard("loss term"), self._probe.disarmed():
            term = self.supervisor.intervention.loss(self._forward(inputs, live, self._probe), self.training)
            if term is not None:
                return loss + term / self.training.trainer.current_gradient_accumulation_steps
        return loss

    def save(self, folder: Path) -> None:
        """Put the supervisor's state into a checkpoint's folder; rank 0 does."""
        if self.training.rank:
            return
        with self._monitor.guard("checkpoint"):
            part = folder / f"{STATE_FILE}.part"
            torch.save(self.supervisor.state_dict(), part)
            part.replace(folder / STATE_FILE)

    def go_on(self, folder: Path, standing: Alarm | None) -> None:
        """Continue as the checkpoint has it; where any rank cannot read it, anew, with the alarm that stands."""
        state: dict[str, Any] | None = None
        try:
            state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            pass
        except Exception as error:  # a file that is broken, or holds rows that nobody may unpickle
            _log.warning("collapsewatch: the supervisor's state in %s is left out: %s", folder, first_line(error))
        found = [state is not None]
        if all(gather_object(found) if self.training.ranks > 1 else found) and state is not None:
            self.supervisor.load_state_dict(state, self.training)
        else:
            self.supervisor.alarm = standing

    def _guide(self, rows: Sequence[PromptRow], generations: int) -> list[Guide]:
        found = [Guide()] * len(rows)
        with self._monitor.guard("guide"):
            found = self.supervisor.guides(rows, generations, self.training.rank * len(rows))
        return found

    def _forward(self, inputs: Mapping[str, Any], live: Live, probe: ControlProbe) -> Forward:
        ids, mask = inputs["completion_ids"], _own(inputs)  # (B, C)
        width = ids.size(1)
        row, column = mask.nonzero(as_tuple=True)  # (n,)
        places = (row, column + live.labels.size(1) - width)

        def legal() -> torch.Tensor:
            found = self._bound.slots(ids.cpu().numpy(), mask.cpu().numpy()).legal  # (B, C, K)
            return torch.from_numpy(found).to(mask.device)[row, column]

        def turns() -> int:
            return sum(map(len, self._bound.turns_by_row(mask.cpu().numpy(), ids.cpu().numpy())))

        return Forward(inputs, mask, live.log_probs[:, -width:], lambda: probe.control(live, places), legal, turns)

    def _malformed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The share (B,) of each rollout's turns that are polluted or collapsed."""
        judged: dict[tuple[int, ...], bool] = {}
        shares = np.zeros(len(ids), np.float32)
        whole, own = ids.cpu().numpy(), mask.cpu().numpy()
        for i, spans in enumerate(self._bound.turns_by_row(own, whole)):
            turns = [tuple(whole[i, begin:end].tolist()) for begin, end in spans]
            for turn in turns:
                if turn not in judged:
                    judged[turn] = not self._bound.classify_ids(turn).structure.healthy
            shares[i] = np.mean([judged[turn] for turn in turns]) if turns else 0.0
        return torch.from_numpy(shares)

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """The probe looks away; alone, a failure of ours is counted, on several ranks it ends the training."""
        unseen = nullcontext() if self._probe is None else self._probe.disarmed()
        with unseen, self._monitor.guard("supervisor") if self.training.ranks == 1 else nullcontext():
            yield

    def _log(self, rows: Sequence[Applied]) -> None:
        for row in rows:
            self._monitor.log_applied(row)


def _own(inputs: Mapping[str, Any]) -> torch.Tensor:
    """The model's own tokens (B, C) among the completion's."""
    mask = inputs["completion_mask"].bool()
    own: torch.Tensor = mask & inputs["tool_mask"].bool() if "tool_mask" in inputs else mask
    return own
