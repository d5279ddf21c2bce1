"""The trainer's knobs: one flat TOML table, every key checked, an unknown key an error that lists the choices."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints


class ConfigError(ValueError):
    """A knob that is unknown, of the wrong type, or out of range: what, got, expected."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run is made of. The string under a field says what it does."""

    name: str = "run"
    """Name of the run's folder below `logdir`."""
    logdir: str = "logs"
    """Folder that holds runs."""
    seed: int = 0
    """Seeds tasks, sampling and the tiny model."""
    model: str = "tiny"
    """`tiny`, a model folder, a hub name, or a `.gguf` file."""
    warm_start: int = 420
    """Supervised batches the tiny model starts from (cached); other models start as they are."""
    environment: str = "chain"
    """A listed environment, or `pkg.mod:Class`."""
    chat_format: str = "hermes"
    """The chat format the model is trained in; `auto` takes the one its chat template writes."""
    template_knobs: dict[str, Any] = field(default_factory=dict)
    """What the chat template is told besides, as an inline table: `{enable_thinking = false}` for Qwen3."""
    steps: int = 100
    """Optimizer steps."""
    learning_rate: float = 1e-3
    """Constant after `warmup_steps`."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    prompts: int = 8
    """Prompt groups a step."""
    rollouts: int = 8
    """Rollouts a prompt group."""
    max_turns: int = 8
    """Assistant turns an episode may have."""
    max_turn_tokens: int = 40
    """Tokens one turn may have; a turn cut here counts as truncated."""
    temperature: float = 1.0
    """Of sampling, and of the log-probs that are trained."""
    beta: float = 0.0
    """Weight of the KL term against the starting policy."""
    micro_batches: int = 1
    """Parts that a step's rollouts are trained in, one after another, to save memory."""
    num_iterations: int = 1
    """Passes over each batch of rollouts."""
    loss_type: str = "dapo"
    """TRL's name of the policy loss."""
    vllm: bool = False
    """Sample with vLLM, in the same process, where it is installed."""
    bf16: bool = False
    """Train in bfloat16 autocast."""
    intervention: str = "none"
    """What the supervisor does for the run: `none`, or a listed intervention."""
    schedule: str = ""
    """When: a listed schedule; by default the usual one of the intervention, for most `triggered`, by an alarm."""
    sft_learning_rate: float = 1e-3
    """Learning rate of an intervention's supervised updates."""
    sft_updates: int = 8
    """Supervised updates one application makes."""
    cooldown: int = 5
    """Steps between two applications while the alarm holds, where `triggered`."""
    intervention_knobs: dict[str, Any] = field(default_factory=dict)
    """More knobs of the intervention, as an inline table."""
    schedule_knobs: dict[str, Any] = field(default_factory=dict)
    """Knobs of the schedule, as an inline table: `{segments = [50, 100, 150]}` where `interleaved`."""
    force_end: bool = False
    """Mistake to try: a turn that was cut off is trained with an end of turn that it never sampled."""
    reencode: str = ""
    """Mistake to try: `cut` turns, or `all`, are decoded, stripped of special tokens and encoded again."""
    lenient_replies: bool = False
    """Mistake to try: a turn without a call counts as the final reply, however broken."""
    sampling_only: str = ""
    """Mistake to try: turns are sampled behind a `hint` or an empty `think` block that is not trained on."""
    fa_per_10k: float = 10.0
    """False-alarm budget of the detector, per 10,000 steps."""
    probe_every: int = 25
    """Steps between two scorings of a fixed set of expert dialogues; 0 for never."""
    probe_tasks: int = 8
    """Dialogues in that set, of tasks that are not trained on."""
    alternate_format: str = ""
    """A second chat format the set is scored in; half of the tiny model's warm start is in it, too."""
    eval_every: int = 0
    """Steps between two evaluations, the first before training, the last at its end; 0 for none."""
    eval_tasks: int = 32
    """Held-out tasks an evaluation plays, and as many in the alternate format and in `content_ood`."""
    content_ood: str = ""
    """An environment with other tools that is evaluated, too; a third of the tiny model's warm start is in it."""
    save_every: int = 0
    """Steps between two checkpoints that `--resume` goes on from; 0 for none."""
    save_model: bool = False
    """Keep the trained model in the run's folder, as `model/`."""

    def __post_init__(self) -> None:
        for knob, low in _AT_LEAST.items():
            if not low <= getattr(self, knob) < math.inf:
                raise ConfigError(f"{knob}: got {getattr(self, knob)!r}, expected at least {low}")
        if self.loss_type not in LOSS_TYPES:
            raise ConfigError(f"loss_type: got {self.loss_type!r}, expected one of {', '.join(LOSS_TYPES)}")
        for knob, choices in (("reencode", REENCODE), ("sampling_only", SAMPLING_ONLY)):
            if getattr(self, knob) not in choices:
                told = ", ".join(filter(None, choices))
                raise ConfigError(f"{knob}: got {getattr(self, knob)!r}, expected one of {told}, or ''")
        if self.prompts * self.rollouts % self.micro_batches:
            raise ConfigError(
                f"micro_batches: got {self.micro_batches}, expected a divisor of prompts * rollouts, "
                f"{self.prompts * self.rollouts}"
            )
        if self.save_every % self.num_iterations:
            raise ConfigError(
                f"save_every: got {self.save_every}, expected a multiple of num_iterations, {self.num_iterations}: "
                "rollouts that wait for their second pass are in no checkpoint"
            )
        if self.alternate_format and self.alternate_format == self.chat_format:
            raise ConfigError(f"alternate_format: got {self.alternate_format!r}, expected another than chat_format")
        if self.content_ood and self.content_ood == self.environment:
            raise ConfigError(f"content_ood: got {self.content_ood!r}, expected another than environment")
        if not self.name or "/" in self.name or self.name.startswith(".") or not self.name.isprintable():
            raise ConfigError(f"name: got {self.name!r}, expected a plain folder name")

    def to_toml(self) -> str:
        """The config as TOML, every knob written out."""
        return "".join(f"{key} = {_toml(value)}\n" for key, value in asdict(self).items())


REENCODE = ("", "cut", "all")
SAMPLING_ONLY = ("", "hint", "think")
LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "vespo")
"""TRL's policy losses, but for `luspo`, which wants sequence-level importance sampling."""
_AT_LEAST: dict[str, float] = {
    "seed": 0, "warm_start": 0, "steps": 1, "learning_rate": 0.0, "warmup_steps": 0, "prompts": 1, "rollouts": 2,
    "max_turns": 1, "max_turn_tokens": 1, "temperature": 1e-3, "beta": 0.0, "num_iterations": 1,
    "micro_batches": 1, "save_every": 0,
    "sft_learning_rate": 0.0, "sft_updates": 1, "probe_every": 0, "probe_tasks": 1, "cooldown": 1, "fa_per_10k": 1e-6,
    "eval_every": 0, "eval_tasks": 1,
}  # fmt: skip


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's escapes are JSON's
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return repr(value)


def from_mapping(values: Mapping[str, Any], where: str) -> TrainConfig:
    """A config from plain values; `where` names their source in errors.

    >>> from_mapping({"steps": 3}, "here").steps
    3
    >>> from_mapping({"step": 3}, "here")
    Traceback (most recent call last):
    ...
    trainer.config.ConfigError: here: got unknown key 'step' (did you mean 'steps'?), expected one of ...

    Raises:
        ConfigError: an unknown key, or a value of the wrong type or range.
    """
    types = get_type_hints(TrainConfig)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(f"{where}: got unknown key {key!r}{hint}, expected one of {', '.join(types)}")
        wanted = types[key]
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not (get_origin(wanted) or wanted):
            raise ConfigError(f"{where}: {key}: got {value!r} ({type(value).__name__}), expected {wanted.__name__}")
        checked[key] = value
    return TrainConfig(**checked)


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> TrainConfig:
    """Read a TOML file, then apply `key=value` overrides (values as TOML; a bare word is a string).

    Raises:
        ConfigError: an unreadable file, or a value that does not fit.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"config: got {str(path)!r} ({error.strerror}), expected a readable TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: got {str(path)!r} ({error}), expected valid TOML") from error
    from_mapping(values, str(path))
    for override in overrides:
        key, found, text = override.partition("=")
        if not found:
            raise ConfigError(f"--set: got {override!r}, expected key=value")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text.strip()
    return from_mapping(values, "--set")
