"""`CollapseCallback`: the whole monitor in a TRL script, by one line, `callbacks=[CollapseCallback()]`.

At the start of training it finds its trainer, hooks the probe into the model and wraps three methods of the
trainer object: generation (which rows a batch holds), rewards, and the loss (what the probe saw of which rows).
TRL's own results pass through untouched, so the weights are those of the unmonitored run.
"""

from __future__ import annotations

import atexit
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .checkpoints import checkpoint_of, go_on, settings_of
from .detectors import FA_PER_10K
from .fixed import FixedProbe, scored
from .formats.base import BoundFormat
from .formats.detect import AUTO, bind, check_name
from .head import Partitioned
from .interventions.base import Expert, Intervention, Training
from .ledger import UID, Ledger, Seen
from .loop import ClosedLoop
from .monitor import Monitor
from .probe import ControlProbe
from .records import Alarm, Applied, StepRecord, Tier
from .schedules import Schedule
from .steps import StepMeasure
from .supervisor import Supervisor, supervise
from .trainers import calling_trainer, watchable, wrap

_log = logging.getLogger(__name__)


class CollapseCallback(TrainerCallback):  # type: ignore[misc]  # transformers carries no types
    """Measures every training step of a `GRPOTrainer`, raises alarms and, if asked, intervenes.

    Args:
        logdir: folder that holds runs.
        name: the run's folder; by default the output folder's name and the time. A training that is resumed under
            the name it had goes on in the same record, with detection as it stood.
        chat_format: the format the model is trained in; by default the one its chat template writes;
            `pkg.mod:Class` for an outside one.
        fa_per_10k: false-alarm budget of the detector, per 10,000 steps.
        intervention: what may be done for the run: a listed name, or an `Intervention`.
        schedule: when: a listed name, or a `Schedule`; by default the usual one of the intervention, which for most
            is `triggered`, by an alarm.
        expert: for supervised interventions: dataset rows -> expert dialogues as `TokenRow`s.
        probes: expert dialogues of tasks that are not trained on, scored at the first and the last step and every
            `probe_every` steps: whether format or capability is lost, if one of the two is.
        keep_text: rollouts per step whose text is kept, the most hazardous first.
        keep_tokens: share of the prompts of which one rollout is kept token by token, at most 4 a step and rank; the
            most hazardous ones around an alarm are kept besides.
        config: the run's configuration as TOML, kept beside its data.
        on_record: called with every step's record and alarms (a progress bar, for one).

    Raises:
        UnknownPlugin: a chat format, intervention or schedule that is neither listed nor importable.
        ValueError: `probe_every` is below 1; a schedule that the intervention makes no sense under.
    """

    def __init__(
        self,
        logdir: Path | str = "logs",
        name: str | None = None,
        *,
        chat_format: str = AUTO,
        fa_per_10k: float = FA_PER_10K,
        intervention: str | Intervention | None = None,
        schedule: str | Schedule | None = None,
        expert: Expert | None = None,
        probes: Sequence[FixedProbe] = (),
        probe_every: int = 25,
        keep_text: int = 8,
        keep_tokens: float = 0.125,
        config: str = "",
        on_record: Callable[[StepRecord, Sequence[Alarm], Sequence[Applied]], None] | None = None,
    ) -> None:
        self._logdir, self._name, self._config = Path(logdir), name, config
        check_name(chat_format)
        self._chat_format = chat_format
        self._fa_per_10k, self._on_record = fa_per_10k, on_record
        self._keep_text, self._keep_tokens = keep_text, keep_tokens
        if probe_every < 1:
            raise ValueError(f"probe_every: got {probe_every}, expected at least 1")
        self._probes, self._probe_every = probes, probe_every
        self._supervisor = supervise(intervention, schedule)
        self._loop: ClosedLoop | None = None
        self._expert = expert
        self._trainer: Any = None
        self._undo: list[Callable[[], None]] = []
        self._seen: list[Seen] = []
        self.monitor: Monitor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach; whatever is misconfigured fails here, before step 1."""
        trainer = calling_trainer(self)
        if trainer is not self._trainer:  # one whose training raised, and was caught, never said its end
            self.close("interrupted")
        self._seen.clear()  # of a step that a first try (`auto_find_batch_size`) did not finish
        self.attach(trainer)

    def attach(self, trainer: Any) -> None:
        """Hook into a live `GRPOTrainer` (done by itself when training starts)."""
        if self._undo:
            return
        if not watchable(trainer):
            raise TypeError(f"CollapseCallback: got {type(trainer).__name__}, expected a GRPOTrainer")
        self._trainer = trainer
        accelerator, args = trainer.accelerator, trainer.args
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        template = getattr(trainer, "chat_template_kwargs", None) or {}
        self._bound: BoundFormat = bind(self._chat_format, tokenizer, **template)
        for note in self._bound.notes:
            _log.warning("%s", note)
        names = [self._name or f"{Path(args.output_dir).name}-{time.strftime('%Y%m%d-%H%M%S')}"]
        if accelerator.num_processes > 1:  # the ranks' clocks may stand in different seconds
            broadcast_object_list(names)
        self._training = Training(trainer, self._expert, accelerator.process_index, accelerator.num_processes)
        self._probe, blind = self._hook(trainer)
        self._ledger = Ledger(self._training, len(self._bound.probe_ids), tokenizer.pad_token_id)
        rank, steps = accelerator.process_index, max(trainer.state.max_steps, args.max_steps, 0) or None
        try:
            if (before := self._supervisor) is not None:  # what it knows is of an earlier training
                self._supervisor = Supervisor(before.intervention, before.schedule)
                self._loop = ClosedLoop(self._supervisor, self._training, self._bound, self._probe)
            self.monitor = Monitor(self._logdir / names[0], rank, self._fa_per_10k, self._config, steps)
        except BaseException:
            if self._probe is not None:
                self._probe.close()
            raise
        if self._probe is not None:
            self._undo.append(self._probe.close)
        if blind:
            _log.warning("collapsewatch: %s", blind)
            self.monitor.event("notice", blind)
        self._steps = StepMeasure(
            self._training,
            self._bound,
            self._ledger,
            tokenizer,
            self.monitor,
            keep_text=self._keep_text,
            keep_tokens=self._keep_tokens,
            failures=self._loop is not None,
            with_text=self._loop is not None and self._loop.wants_text,
        )
        if self._loop is not None:
            self._loop.watch(self.monitor)
            self._undo.append(self._loop.close)
        if trainer.state.global_step:
            self._go_on(trainer.state.global_step)
        self._after("_generate_single_turn", self._ledger.take_sample)
        self._after("_calculate_rewards", self._ledger.take_rewards)
        if self._loop is not None:
            self._after("_generate_and_score_completions", self._loop.weigh)
        self._after("_generate_and_score_completions", self._ledger.number_rows)
        self._undo.append(wrap(trainer, "compute_loss", self._loss))
        atexit.register(self._at_exit)
        if self._loop is not None:
            self._loop.start(trainer.state.global_step)

    def _hook(self, trainer: Any) -> tuple[ControlProbe | None, str]:
        """The probe in the trainer's model; where its head cannot be read, none, and what that means."""
        ids, fp32_head = self._bound.probe_ids.tolist(), bool(getattr(trainer.args, "cast_lm_head_to_fp32", False))
        try:
            return ControlProbe(trainer.model, ids, trainer.temperature, fp32_head, lambda: self._guard("probe")), ""
        except Partitioned as error:
            return None, f"{error}; without probabilities, structure and outcomes are watched"

    def _go_on(self, step: int) -> None:
        """A resumed training: detection as it stood at `step`, on every rank alike."""
        assert self.monitor is not None
        standing: Alarm | None = None
        if self._training.rank == 0:  # the only one that is sure to see the folder
            with self._guard("resume"):
                standing = go_on(self.monitor, self._trainer, step)
        if self._training.ranks > 1:
            told: list[Any] = [self.monitor.state_dict(), standing]
            broadcast_object_list(told)
            state, standing = told
            self.monitor.load_state_dict(state)
        if self._loop is not None:
            self._loop.go_on(checkpoint_of(self._trainer, step), standing)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put detection's state beside the weights that were just saved."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.monitor is not None:
            self.monitor.save(folder, state.global_step)
        if self._loop is not None:
            self._loop.save(folder)

    def mark(self, name: str) -> None:
        """Announce a change that gives the run a new normal (a curriculum's next stage, other data or prompts)."""
        if self.monitor is not None:
            self.monitor.mark(name)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the trainer and close the run."""
        self.close("finished")

    def close(self, status: str = "finished", detail: str = "") -> None:
        """Take every hook back and end the run as `finished`, `interrupted` or `failed`."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        if self.monitor is not None:
            self.monitor.close(status, detail)
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        """The script ended without the end of training: say how."""
        error = getattr(sys, "last_value", None)
        status = "interrupted" if error is None or isinstance(error, KeyboardInterrupt) else "failed"
        self.close(status, "" if error is None else f"{type(error).__name__}: {error}")

    def _guard(self, stage: str) -> AbstractContextManager[None]:
        assert self.monitor is not None  # nothing of ours runs before attach()
        return self.monitor.guard(stage)

    def _after(self, method: str, read: Callable[..., None]) -> None:
        """Call `read(result, *args)` after each call of a trainer's method; its failures are ours alone."""

        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            with self._guard(method.strip("_")):
                read(result, *args, **kwargs)
            return result

        self._undo.append(wrap(self._trainer, method, call))

    def _loss(self, original: Callable[..., Any], model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """A micro-batch's loss, with an intervention's term; what the probe saw is kept beside the rows it is of."""
        if self._loop is not None:
            self._loop.before_loss(model.training)
        result = original(model, inputs, *args, **kwargs)
        with self._guard("compute_loss"):
            batches = self._probe.drain() if self._probe is not None else []
            if model.training and UID in inputs:
                self._seen.append((inputs, batches[-1] if batches else None))
        return result if self._loop is None else self._loop.with_term(result, inputs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, log, judge and, if an alarm stands, intervene."""
        assert self.monitor is not None
        seen, self._seen = self._seen, []
        record, failed = self._steps.record(state.global_step, seen)
        if record is None:
            return
        step, last = state.global_step, state.max_steps
        if self._probe is not None and self._probes and (step in (1, last) or step % self._probe_every == 0):
            with self.monitor.guard("probes"):
                record = scored(record, self._probes, self._probe)
        alarms = self.monitor.log(record)
        with self.monitor.guard("views"):
            self._steps.logged(record, any(alarm.tier is Tier.ALARM for alarm in alarms))
        self.monitor.settings(record.step, settings_of(self._trainer))
        applied: list[Applied] = []
        if self._loop is not None:
            applied = self._loop.step(record, alarms, failed)
        if self._on_record is not None:
            with self.monitor.guard("on_record"):
                self._on_record(record, alarms, applied)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep TRL's own scalars of the step, but for those measured here already."""
        if self.monitor is None or not logs or "train_runtime" in logs:
            return
        values = {k: float(v) for k, v in logs.items() if isinstance(v, int | float) and k not in _MEASURED}
        self.monitor.log_metrics(state.global_step, values)


_MEASURED = frozenset(
    {"reward", "reward_std", "frac_reward_zero_std", "entropy", "epoch"}
    | {"tools/call_frequency", "completions/mean_length", "completions/clipped_ratio"}
)
