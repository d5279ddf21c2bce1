"""Train one run from a config: model, environment, TRL trainer and monitor, put together."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

# TRL reports each trainer that is constructed to its makers, and warns that `rollout_func` may change.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import transformers
from transformers.trainer_callback import PrinterCallback

from collapsewatch.callback import CollapseCallback
from collapsewatch.database import first_line
from collapsewatch.fixed import FixedProbe, Name
from collapsewatch.formats import writer_named
from collapsewatch.formats.base import BoundFormat, ChatFormat
from collapsewatch.formats.detect import bind, check_name
from collapsewatch.interventions.base import PromptRow
from collapsewatch.interventions.sft import TokenRow
from collapsewatch.records import Alarm, Applied, StepRecord

from .config import ConfigError, TrainConfig
from .dialogues import Renderer
from .environments import Environment, load_environment
from .evaluation import Evaluation, Held
from .grpo import ToolTrainer, grpo_args
from .models import load_model
from .resuming import CHECKPOINTS, last_checkpoint
from .supervision import supervision

OnRecord = Callable[[StepRecord, Sequence[Alarm], Sequence[Applied]], None]
TASK_SEED = 1_000_003  # keeps a run's tasks apart from the warm start's
EVALUATION_SEED = 999_961  # below the probes'
PROBE_SEED = 999_983  # below it: no run's tasks are the probes'


def prepare(config: TrainConfig, progress: Callable[[int, int], None] | None = None, resume: bool = False) -> None:
    """Build and cache what several runs of one seed share: the warm-started tiny model.

    Raises:
        ConfigError, UnknownPlugin: a knob names nothing, or the run cannot be written; before any work.
    """
    check(config, resume)
    _settle(config)
    environment = load_environment(config.environment)
    load_model(config.model, environment, config.seed, config.warm_start, progress, _alternate(config), _other(config))


def check(config: TrainConfig, resume: bool = False) -> None:
    """Refuse what can be known to fail later.

    Raises:
        ConfigError: the run exists already, or cannot be resumed; `logdir` cannot be written; a knob of an intervention
            or schedule that does not fit.
        UnknownPlugin: an environment, chat format or intervention that is neither listed nor importable.
        CannotWrite: an alternate format that only reads.
    """
    load_environment(config.environment)
    check_name(config.chat_format)
    _alternate(config)
    _other(config)
    supervision(config)
    if resume:
        last_checkpoint(config)
        return
    run_dir = Path(config.logdir) / config.name
    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        used = run_dir.exists() and any(run_dir.iterdir())
    except OSError as error:
        raise ConfigError(f"logdir: got {config.logdir!r} ({error.strerror}), expected a folder to write to") from error
    if used:
        raise ConfigError(f"name: got {config.name!r}, which exists in {config.logdir!r}, expected a new name")


def train(config: TrainConfig, on_record: OnRecord | None = None, resume: bool = False) -> Path:
    """Train to the end, or until interrupted; returns the run's folder. `resume`: from the run's last checkpoint.

    Whatever ends it, what was recorded is kept and the run says how it ended.

    Raises:
        ConfigError: the run exists already, or cannot be resumed, or TRL refuses the knobs.
        ModelError, UnknownPlugin, CannotWrite: a knob names nothing that fits.
        KeyboardInterrupt: passed on, after the run was closed as `interrupted`.
    """
    check(config, resume)
    run_dir = Path(config.logdir) / config.name
    checkpoint = str(last_checkpoint(config)) if resume else None
    _settle(config)
    environment = load_environment(config.environment)
    taught = _alternate(config), _other(config)
    model, tokenizer = load_model(config.model, environment, config.seed, config.warm_start, None, *taught)
    renderer = Renderer(tokenizer, environment, template=config.template_knobs)
    tasks = environment.tasks(config.prompts * config.steps, TASK_SEED + config.seed)
    bound = bind(config.chat_format, tokenizer, **config.template_knobs)

    def expert(rows: Sequence[PromptRow]) -> list[TokenRow]:
        return [renderer.expert_row(environment, tasks[row["task"]]) for row in rows]

    act, schedule = supervision(config)
    callback = CollapseCallback(
        config.logdir,
        config.name,
        chat_format=config.chat_format,
        fa_per_10k=config.fa_per_10k,
        intervention=act,
        expert=expert,
        schedule=schedule,
        probes=_probes(config, environment, renderer, bound) if config.probe_every else (),
        probe_every=max(config.probe_every, 1),
        config=config.to_toml(),
        on_record=on_record,
    )
    try:
        args = grpo_args(config, str(run_dir / CHECKPOINTS), use_cpu=not torch.cuda.is_available())
        trainer = ToolTrainer(config, model, environment, renderer, bound, tasks, args, callbacks=[callback])
    except (ValueError, ImportError) as error:  # bf16 without hardware for it, vLLM that is not installed
        with contextlib.suppress(OSError):  # TRL has made it; the name stays free
            (run_dir / CHECKPOINTS).rmdir()
        raise ConfigError(f"config: got what TRL refuses ({first_line(error)}), expected other knobs") from error
    trainer.remove_callback(PrinterCallback)
    if config.eval_every:
        held = held_out(config, environment, renderer, bound)
        trainer.add_callback(Evaluation(trainer, callback, held, config.eval_every, config.max_turns))
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        callback.close("interrupted")
        raise
    except BaseException as error:
        callback.close("failed", f"{type(error).__name__}: {error}")
        raise
    if config.save_model:
        trainer.save_model(str(run_dir / "model"))
    return run_dir


def _alternate(config: TrainConfig) -> ChatFormat | None:
    """The second chat format, if there is to be one."""
    return writer_named(config.alternate_format) if config.alternate_format else None


def _other(config: TrainConfig) -> Environment | None:
    """The environment with other tools, if there is to be one."""
    return load_environment(config.content_ood) if config.content_ood else None


def held_out(config: TrainConfig, environment: Environment, renderer: Renderer, bound: BoundFormat) -> list[Held]:
    """What is evaluated, the same in every run: as trained, in the alternate format, with other tools."""
    tokenizer, other, writer = renderer.tokenizer, _other(config), _alternate(config)
    tasks = environment.held_out(config.eval_tasks, EVALUATION_SEED)
    held = [Held("eval", tasks, renderer, bound)]
    if writer is not None:
        written = Renderer(tokenizer, environment, writer, config.template_knobs)
        held.append(Held("eval/format_ood", tasks, written, writer.bind(tokenizer)))
    if other is not None:
        tasks = other.held_out(config.eval_tasks, EVALUATION_SEED)
        held.append(Held("eval/content_ood", tasks, Renderer(tokenizer, other, template=config.template_knobs), bound))
    return held


def _probes(config: TrainConfig, environment: Environment, renderer: Renderer, bound: BoundFormat) -> list[FixedProbe]:
    """The same tasks in every run, in the trained format and in the alternate one."""
    tasks = environment.held_out(config.probe_tasks, PROBE_SEED)

    def probe(name: Name, of: Renderer, chat_format: BoundFormat) -> FixedProbe:
        return FixedProbe(name, [of.expert_row(environment, task) for task in tasks], chat_format, of.pad_id)

    other = _alternate(config)
    if other is None:
        return [probe("fixed", renderer, bound)]
    if other.name == bound.name:
        raise ConfigError(f"alternate_format: got {other.name!r}, which the model is trained in, expected another")
    written = Renderer(renderer.tokenizer, environment, other, config.template_knobs)
    return [probe("fixed", renderer, bound), probe("alternate", written, other.bind(renderer.tokenizer))]


def _settle(config: TrainConfig) -> None:
    """Quiet libraries; one thread for the tiny model, whose matrices are so small that a second gets in the way."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # TRL 1.16 says `gradient_checkpointing`, which transformers 5.23 has renamed.
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing.*` is deprecated", FutureWarning)
    if config.model == "tiny":
        torch.set_num_threads(1)
