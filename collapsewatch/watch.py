"""`Watch`: a `CollapseCallback` for whatever GRPO trainer a script makes, configured by the environment.

Importing this module makes `report_to="collapsewatch"` known to transformers; `collapsewatch run` puts `Watch` into
every trainer. A trainer of another kind (an SFT stage in the same script) is left alone, and so is one that has a
`CollapseCallback` already.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from .callback import CollapseCallback
from .detectors import FA_PER_10K
from .formats.detect import AUTO
from .trainers import calling_trainer, watchable

_trainings: Counter[str | None] = Counter()  # begun in this process, by the name asked for


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers carries no types
    """Gives its trainer a `CollapseCallback` when training starts, if it is a GRPO trainer without one."""

    def __init__(self) -> None:
        self._own: CollapseCallback | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the training that begins, say where, or say why not."""
        trainer = calling_trainer(self)
        handler = trainer.callback_handler
        if self._own in handler.callbacks:  # of this trainer's previous training, which had another run
            handler.remove_callback(self._own)
        if any(isinstance(callback, CollapseCallback) for callback in handler.callbacks):
            return  # the script's own, or that of a second `Watch`
        if not watchable(trainer):
            _tell(trainer, f"collapsewatch: {type(trainer).__name__} is not watched, for it is no GRPO trainer")
            return
        self._own = callback_from_environment()
        self._own.attach(trainer)
        # Behind this one in the handler's list, so that it hears of the training's start, too.
        trainer.add_callback(self._own)
        assert self._own.monitor is not None
        _tell(trainer, f"collapsewatch: {type(trainer).__name__} is watched, run {self._own.monitor.store.run_dir}")


def callback_from_environment() -> CollapseCallback:
    """A `CollapseCallback` with the settings of COLLAPSEWATCH_LOGDIR, _NAME, _FORMAT and _FA_PER_10K.

    The second training of one name in this process is NAME-2, and so on.

    Raises:
        UnknownPlugin: a chat format that is neither listed nor importable.
        ValueError: a false-alarm budget that is no number.
    """
    setting = {name: os.environ.get(f"COLLAPSEWATCH_{name}") for name in ("LOGDIR", "NAME", "FORMAT", "FA_PER_10K")}
    try:
        budget = float(setting["FA_PER_10K"] or FA_PER_10K)
    except ValueError:
        raise ValueError(f"COLLAPSEWATCH_FA_PER_10K: got {setting['FA_PER_10K']!r}, expected a number") from None
    name = setting["NAME"] or None
    _trainings[name] += 1
    if name and _trainings[name] > 1:
        name = f"{name}-{_trainings[name]}"
    return CollapseCallback(setting["LOGDIR"] or "logs", name, chat_format=setting["FORMAT"] or AUTO, fa_per_10k=budget)


def trainings() -> int:
    """How many trainings `Watch` has watched in this process."""
    return _trainings.total()


def _tell(trainer: Any, line: str) -> None:
    if trainer.is_world_process_zero():
        print(line, file=sys.stderr, flush=True)


INTEGRATION_TO_CALLBACK["collapsewatch"] = Watch
