"""The closed loop: when the supervisor acts, and what `erroneous` does to a model that broke."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from collapsewatch.callback import CollapseCallback
from collapsewatch.interventions.base import Intervention, NotApplicable, PromptRow, Training
from collapsewatch.interventions.erroneous import LEAST_WARMUP, Erroneous
from collapsewatch.interventions.sft import TokenRow, collate, sft_update
from collapsewatch.queries import find_runs, open_run
from collapsewatch.records import Alarm, Applied, Driver, Observation, StepRecord, Tier
from collapsewatch.schedules import Triggered
from collapsewatch.supervisor import Supervisor

pytestmark = pytest.mark.usefixtures("one_path")

PROMPTS = ["say hi", "what now?", "call me", "look up"]
ANSWER = "ok<|im_end|>"
BREAK_AT = 12


# -- the supervisor alone ----------------------------------------------------------------------------------


class Tally(Intervention):
    """Remembers when it acted; can do nothing while `idle`."""

    name = "tally"

    def __init__(self) -> None:
        self.acted: list[int] = []
        self.observed: list[tuple[int, list[PromptRow]]] = []
        self.idle = False

    def observe(self, step: int, failed: Sequence[PromptRow], training: Training) -> None:
        self.observed.append((step, list(failed)))

    def apply(self, step: int, training: Training) -> dict[str, Any]:
        if self.idle:
            raise NotApplicable("idle")
        self.acted.append(step)
        return {"updates": 1}


def record(step: int, polluted: float = 0.5) -> StepRecord:
    observations = (Observation("polluted", polluted, 4), Observation("no_call", 0.1, 4))
    return StepRecord(step, 0.0, {"reward": 1 - polluted}, observations)


def alarm(step: int, tier: Tier = Tier.ALARM) -> Alarm:
    return Alarm(step, tier, "hard_limit", (Driver("polluted", 1.0, 0.5, 0.0, 0.1),), step, 1.0, 0.0)


def drive(supervisor: Supervisor, states: str) -> list[Applied]:
    """One step per letter: `.` ok, `A` an alarm begins, `h` it holds, `w` only a watch notice."""
    rows = []
    for step, letter in enumerate(states, 1):
        alarms = {"A": [alarm(step)], "w": [alarm(step, Tier.WATCH)]}.get(letter, [])
        state = {"A": "alarm", "h": "hold"}.get(letter, "ok")
        rows += supervisor.step(record(step, step / 100), alarms, state, [{"task": step}], Training(None, None))
    return rows


def test_it_acts_at_once_and_again_while_the_alarm_holds() -> None:
    tally = Tally()
    rows = drive(Supervisor(tally, Triggered(3)), "..w.Ahhhhhhh....Ah..")
    assert tally.acted == [5, 8, 11, 17]
    assert tally.observed == [(step, [{"task": step}]) for step in range(1, 21)]
    assert [(r.step, r.status, r.trigger_step) for r in rows] == [
        *(
            (5, "applied", 5),
            (6, "effect", 5),
            (8, "applied", 5),
            (9, "effect", 5),
            (11, "applied", 5),
            (12, "effect", 5),
        ),
        *((17, "applied", 17), (18, "effect", 17)),
    ]
    assert {(r.name, r.schedule) for r in rows} == {("tally", "triggered")}


def test_a_new_alarm_within_the_cooldown_waits_for_its_end() -> None:
    tally = Tally()
    drive(Supervisor(tally, Triggered(5)), "Ah.Ahhhh..")
    assert tally.acted == [1, 6]


def test_the_effect_tells_before_from_after() -> None:
    applied, effect = drive(Supervisor(Tally(), Triggered(9)), "..A..")
    assert applied.detail == {"updates": 1, "before": {"polluted": 0.03, "reward": 0.97}}
    streams = {"polluted": {"before": 0.03, "after": 0.04}, "reward": {"before": 0.97, "after": 0.96}}
    assert effect.detail == {"applied_step": 3, "streams": streams}


def test_what_cannot_act_is_skipped_with_the_reason() -> None:
    tally = Tally()
    tally.idle = True
    rows = drive(Supervisor(tally, Triggered(2)), "Ahhh")
    assert [(r.step, r.status, r.detail) for r in rows] == [
        (1, "skipped", {"reason": "idle"}),
        (3, "skipped", {"reason": "idle"}),
    ]
    with pytest.raises(ValueError, match="cooldown: got 0"):
        Triggered(0)


# -- supervised updates ------------------------------------------------------------------------------------


def token_row(tokenizer: Any, prompt: str) -> TokenRow:
    asked, answer = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, ANSWER))
    return TokenRow(asked + answer, [0] * len(asked) + [1] * len(answer))


def test_collate_learns_only_where_the_mask_says() -> None:
    batch = collate([TokenRow([5, 6, 7], [0, 1, 1]), TokenRow([8], [1])], pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]


@pytest.mark.parametrize("max_grad_norm", [1e-3, 0.0, None])
def test_sft_update_returns_the_token_mean_loss_and_clips(model_path: Path, tokenizer: Any, max_grad_norm: Any) -> None:
    model = Qwen2ForCausalLM.from_pretrained(model_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rows = [token_row(tokenizer, prompt) for prompt in PROMPTS]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for row in rows:
        logp = model(torch.tensor([row.ids])).logits[0, :-1].log_softmax(-1)
        losses += [-logp[t - 1, row.ids[t]].item() for t in range(1, len(row.ids)) if row.mask[t]]
    assert sft_update(model, optimizer, rows, 0, max_grad_norm=max_grad_norm) == pytest.approx(
        sum(losses) / len(losses), rel=1e-4
    )
    moved = sum(float((p.detach() - before[name]).square().sum()) for name, p in model.named_parameters()) ** 0.5
    # As in transformers, no limit means none.
    assert moved == pytest.approx(1e-3, rel=0.01) if max_grad_norm else moved > 0.1
    assert all(p.grad is None for p in model.parameters())


# -- the whole loop in a training --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def answering(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that answers `ok` to every prompt."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [token_row(tokenizer, prompt) for prompt in PROMPTS]
    losses = [sft_update(model, optimizer, rows, tokenizer.pad_token_id) for _ in range(60)]
    assert losses[-1] < 0.05 < losses[0]
    path = tmp_path_factory.mktemp("answering")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


class Sabotage(TrainerCallback):
    """After step `BREAK_AT`, says `</tool_call>` where it said `o`; notes learning rates and Adam's state."""

    def __init__(self, tokenizer: Any) -> None:
        self.swap = tokenizer.convert_tokens_to_ids(["o", "</tool_call>"])
        self.trainer: Any = None
        self.rates: dict[int, float] = {}
        self.moments: dict[int, int] = {}
        self.faults: dict[str, int] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        self.rates[step] = self.trainer.optimizer.param_groups[0]["lr"] / self.trainer.lr_scheduler.get_last_lr()[0]
        self.moments[step] = len(self.trainer.optimizer.optimizer.state)
        if step == BREAK_AT:
            with torch.no_grad():
                weight = self.trainer.model.lm_head.weight
                weight[self.swap] = weight[self.swap[::-1]].clone()


def closed_loop(
    tmp_path: Path,
    answering: Path,
    intervention: Intervention | None,
    name: str | None = "run",
    **overrides: Any,
) -> Sabotage:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(answering)
    sabotage = Sabotage(tokenizer)

    def expert(rows: Sequence[PromptRow]) -> list[TokenRow]:
        return [token_row(tokenizer, row["prompt"]) for row in rows]

    def plain(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(ids == tokenizer.encode(ANSWER, add_special_tokens=False)) for ids in completion_ids]

    settings = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 24,
        "learning_rate": 1e-7,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 32,
        "num_generations": 4,
        "max_completion_length": 4,
        "seed": 3,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    callback = CollapseCallback(tmp_path, name, intervention=intervention, schedule=Triggered(20), expert=expert)
    trainer = GRPOTrainer(
        model=str(answering),
        reward_funcs=plain,
        args=GRPOConfig(**{**settings, **overrides}),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * 4]),
        processing_class=tokenizer,
        callbacks=[callback, sabotage],
    )
    trainer.remove_callback(PrinterCallback)
    sabotage.trainer = trainer
    trainer.train()
    assert callback.monitor is not None
    sabotage.faults = dict(callback.monitor.faults)
    return sabotage


def test_erroneous_brings_a_broken_model_back(tmp_path: Path, answering: Path) -> None:
    sabotage = closed_loop(tmp_path, answering, Erroneous(learning_rate=1e-2, updates=20))
    assert not sabotage.faults
    run = open_run(tmp_path / "run")
    first = next(alarm for alarm in run.alarms() if alarm.tier is Tier.ALARM)
    assert BREAK_AT < first.step <= BREAK_AT + 3
    applied, effect = run.applied()
    assert (applied.status, applied.step, applied.trigger_step) == ("applied", first.step, first.step)
    assert applied.detail["loss_after"] < 0.1 < applied.detail["loss_before"]
    assert (effect.status, effect.step) == ("effect", first.step + 1)
    assert effect.detail["streams"]["reward"]["before"] < 0.1 < 0.9 < effect.detail["streams"]["reward"]["after"]
    reward = {r.step: r.metrics["reward"] for r in run.records()}
    assert reward[BREAK_AT] > 0.9 and reward[24] > 0.9
    # RL starts again with an empty optimizer, and warms up; before, its rate was the schedule's.
    assert sabotage.moments[first.step] == 0 < sabotage.moments[first.step - 1]
    back = {s: (s - first.step + 1) / (LEAST_WARMUP + 1) for s in range(first.step, 24)}
    expected = {s: min(back.get(s, 1.0), 1.0) for s in range(1, 24)}
    assert {s: sabotage.rates[s] for s in expected} == pytest.approx(expected)


def test_without_it_the_model_stays_broken(tmp_path: Path, answering: Path) -> None:
    sabotage = closed_loop(tmp_path, answering, None, max_steps=BREAK_AT + 6)
    run = open_run(tmp_path / "run")
    assert not run.applied() and all(sabotage.moments.values())
    assert [r.metrics["reward"] < 0.1 for r in run.records()] == [False] * BREAK_AT + [True] * 6


def test_erroneous_needs_an_expert_and_failed_prompts() -> None:
    with pytest.raises(ValueError, match="erroneous: got no expert"):
        Erroneous().check(Training(None, None))
    erroneous, training = Erroneous(window=2), Training(None, lambda rows: [])
    erroneous.check(training)
    with pytest.raises(NotApplicable, match="no prompt failed"):
        erroneous.apply(1, training)
    erroneous.observe(1, [{"prompt": "a"}, {"prompt": "b"}], training)
    with pytest.raises(NotApplicable, match="solved none of 2 failed prompts"):
        erroneous.apply(1, training)
    erroneous.observe(2, [], training)
    erroneous.observe(3, [], training)  # out of the window
    with pytest.raises(NotApplicable, match="no prompt failed"):
        erroneous.apply(3, training)


def test_a_second_training_is_not_warmed_up_from_a_step_of_the_first() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    trainer = SimpleNamespace(
        args=SimpleNamespace(get_warmup_steps=lambda steps: 0),
        state=SimpleNamespace(max_steps=200),
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        optimizer=optimizer,
    )
    erroneous, training = Erroneous(), Training(trainer, lambda rows: [])
    erroneous._applied = 100
    erroneous.check(training)
    erroneous.observe(1, [], training)
    assert optimizer.param_groups[0]["lr"] == 0.5


# -- two ranks ---------------------------------------------------------------------------------------------

SCRIPT = """
import json, os, sys
sys.path.insert(0, {tests!r})
import test_supervisor as t
from collapsewatch import callback, steps
from pathlib import Path

folder, answering = Path(sys.argv[1]), Path(sys.argv[2])
measure, calls = steps.measure_rank, 0

def torn(*args):
    global calls
    calls += 1
    if calls == 3:
        raise RuntimeError("torn")
    return measure(*args)

if os.environ["RANK"] == "1":
    steps.measure_rank = torn
    callback.time.strftime = lambda form: "a-second-later"  # the run's default name holds the time
erroneous = t.Erroneous(learning_rate=1e-2, updates=20)
sabotage = t.closed_loop(folder, answering, erroneous, None, per_device_train_batch_size=16)
of = sabotage.trainer.accelerator
said = [t.digest(sabotage.trainer.model), of.num_processes, sabotage.rates, sabotage.moments, sabotage.faults]
(folder / f"rank{{of.process_index}}.json").write_text(json.dumps(said))
"""


def digest(model: Any) -> str:
    """Of every bit of the weights."""
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


@pytest.mark.slow
def test_two_ranks_decide_alike_and_stay_identical_even_torn(tmp_path: Path, answering: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"PYTHONPATH": str(Path(__file__).parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(script), str(tmp_path), str(answering)]
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    try:
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(text[-3000:] for text in said)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in "01")
    assert first[:-1] == second[:-1] and first[1] == 2
    # Where one rank fails to measure, neither waits for the other and both judge what there is.
    assert (first[-1], second[-1]) == ({}, {"measure": 1})
    (folder,) = find_runs(tmp_path)
    run = open_run(folder)
    assert (
        folder.name.startswith("out-")
        and run.status() == "finished"
        and [a.status for a in run.applied()] == ["applied", "effect"]
    )
    records = list(run.records())
    assert len(records) == 24 and records[-1].metrics["reward"] > 0.9
    # Details are each rank's own, judgements are about all rollouts: 8 groups of 4, 4 of them on each rank.
    groups = [o.n for r in records for o in r.observations if o.stream == "no_call"]
    assert groups == [8, 8, 4] + [8] * 21
    rollouts = run.query(
        'SELECT rank, count(*), count(DISTINCT "group") FROM rollouts GROUP BY rank ORDER BY rank'
    ).rows
    assert rollouts == [(0, 16 * 24, 4 * 24), (1, 16 * 23, 4 * 23)]
