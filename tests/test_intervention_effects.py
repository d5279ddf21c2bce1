"""What each intervention does to a training, beside an independent computation of the same."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from collapsewatch.formats import format_named
from collapsewatch.interventions.advantage_penalty import AdvantagePenalty
from collapsewatch.interventions.base import Forward, Generation, Training
from collapsewatch.interventions.control_clamp import ControlClamp
from collapsewatch.interventions.erroneous import Erroneous
from collapsewatch.interventions.kl_anchor import KLAnchor
from collapsewatch.interventions.lr_cut import LRCut
from collapsewatch.interventions.rollback import Rollback
from collapsewatch.interventions.sft import TokenRow, sft_update
from collapsewatch.interventions.snapshots import Snapshots
from collapsewatch.probe import ControlProbe
from collapsewatch.queries import open_run
from collapsewatch.schedules import Interleaved, Synchronous, Triggered
from tests.closed_loop import PROMPTS, closed_loop, token_row

pytestmark = pytest.mark.usefixtures("one_path")
SMALL = {"per_device_train_batch_size": 16, "learning_rate": 1e-3}


def whole(trainer: Any, model: Any, inputs: Any) -> torch.Tensor:
    """Log-probs (B, C, V) of the completion positions by a forward with all logits, as they are trained on."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    length = inputs["completion_ids"].size(1)
    found: torch.Tensor = (logits[:, -length - 1 : -1] / trainer.temperature).log_softmax(-1)
    return found


def apart(trainer: Any, one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest |difference| between the gradients of two terms, relative to the largest gradient."""
    parameters = list(trainer.model.parameters())
    mine, theirs = (torch.autograd.grad(term, parameters, retain_graph=True) for term in (one, other))
    assert max(float(g.abs().max()) for g in theirs) > 0
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-8)) for a, b in zip(mine, theirs, strict=True))


class CheckedClamp(ControlClamp):
    """Beside each term the naive one: softmax over all tokens, illegal ones summed position by position."""

    def loss(self, batch: Forward, training: Training) -> torch.Tensor | None:
        term, trainer, inputs = super().loss(batch, training), training.trainer, batch.inputs
        bound = format_named("hermes").bind(training.tokenizer)
        p = whole(trainer, trainer.model, inputs).exp()
        naive, turns = torch.zeros(()), 0
        for i, ids in enumerate(inputs["completion_ids"].tolist()):
            own = inputs["completion_mask"][i].tolist()
            turns += len(bound.turns(own, ids))
            legal = bound.slots([ids], [own]).legal[0]
            for t in range(sum(own)):
                mass = sum(p[i, t, k] for k, may in zip(bound.probe_ids.tolist(), legal[t], strict=True) if not may)
                naive = naive - torch.log(1 - mass)
        naive = 0.5 * naive / turns
        assert term is not None
        self.checked.append((term.item(), naive.item(), apart(trainer, term, naive)))
        return term

    checked: list[tuple[float, float, float]]


@pytest.mark.parametrize("parts", [1, 2])
def test_the_clamp_is_the_hazard_and_its_gradient_that_of_all_logits(
    tmp_path: Path, answering: Path, parts: int
) -> None:
    act = CheckedClamp(weight=0.5)
    act.checked = []
    held = {"per_device_train_batch_size": 16 // parts, "gradient_accumulation_steps": parts, "temperature": 1.7}
    done = closed_loop(tmp_path, answering, act, Synchronous(), break_at=99, **{**SMALL, **held, "max_steps": 2})
    assert not done.faults and len(act.checked) == 2 * parts
    for term, naive, gradients in act.checked:
        assert term == pytest.approx(naive, rel=2e-3, abs=1e-6)
        assert gradients < 2e-3
    with closing(open_run(tmp_path / "run")) as run:
        record = list(run.records())[1]
    hazard = next(o.value for o in record.observations if o.stream == "hazard")
    clamped = sum(term for term, _, _ in act.checked[parts:]) / parts
    assert clamped >= 0.5 * hazard * 0.999  # detection leaves out what comes after a first illegal token


def test_the_term_weighs_the_same_in_parts(tmp_path: Path, answering: Path) -> None:
    """Every rollout is right, so nothing but the term moves the weights: by SGD, as far in one part as in two."""

    def moved(parts: int) -> torch.Tensor:
        held = {"per_device_train_batch_size": 16 // parts, "gradient_accumulation_steps": parts, "max_grad_norm": 0.0}
        held |= {"optim": "sgd", "learning_rate": 100.0, "lr_scheduler_type": "constant", "max_steps": 1}
        before = Qwen2ForCausalLM.from_pretrained(answering).lm_head.weight.detach()
        done = closed_loop(tmp_path, answering, ControlClamp(1.0), Synchronous(), f"in{parts}", break_at=99, **held)
        return done.trainer.model.lm_head.weight.detach() - before

    one, two = moved(1), moved(2)
    assert float(one.abs().max()) > 1e-5
    assert float((one - two).abs().max()) < 1e-3 * float(one.abs().max())


def test_the_clamp_alone_brings_a_broken_model_to_legal_turns(tmp_path: Path, answering: Path) -> None:
    """No data, no reward in sight: the illegal probability falls, and what is left is legal."""
    closed_loop(tmp_path, answering, ControlClamp(1.0), Triggered(), break_at=4, **SMALL | {"learning_rate": 3e-2})
    with closing(open_run(tmp_path / "run")) as run:
        hazard = {r.step: next(o.value for o in r.observations if o.stream == "hazard") for r in run.records()}
        began = next(row.step for row in run.applied() if row.status == "begin")
    assert hazard[began] > 5 and hazard[24] < 0.1


def test_gradients_pass_the_soft_cap_of_a_head(tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0, attn_implementation="eager",
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).train()
    add_fused_lm_head(model, 0.7, outputs=("log_probs", "entropy"))
    probe = ControlProbe(model, [3, 40], 0.7)
    probe.keep_live = True
    ids = torch.randint(0, len(tokenizer), (2, 7))
    model(input_ids=ids, labels=ids, fused_lm_head=True)
    assert probe.live is not None
    places = (torch.tensor([0, 1]), torch.tensor([2, 5]))
    mine = probe.control(probe.live, places)
    theirs = (model(input_ids=ids).logits / 0.7).log_softmax(-1)[places][:, [3, 40]]
    assert torch.allclose(mine, theirs, atol=1e-5)
    parameters = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(x.sum(), parameters) for x in (mine, theirs)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


class CheckedAnchor(KLAnchor):
    """Beside each term the KL divergence from a copy of the model with the anchor's weights."""

    def loss(self, batch: Forward, training: Training) -> torch.Tensor | None:
        term, trainer, inputs = super().loss(batch, training), training.trainer, batch.inputs
        if self.start is None:
            self.start = type(trainer.model)(trainer.model.config)
            self.start.load_state_dict(trainer.model.state_dict())
        ids = inputs["completion_ids"][..., None]
        with torch.no_grad():
            before = whole(trainer, self.start, inputs).gather(2, ids)[..., 0]
        logp = whole(trainer, trainer.model, inputs).gather(2, ids)[..., 0]
        own = inputs["completion_mask"].bool()
        ratio = torch.exp(before - logp)[own]
        naive = 2.0 * (ratio - torch.log(ratio) - 1).mean()
        assert term is not None
        gradients = 0.0 if naive.item() < 1e-5 else apart(trainer, term, naive)
        self.checked.append((term.item(), naive.item(), gradients))
        return term

    start: Any = None
    checked: list[tuple[float, float, float]]


def test_the_anchor_is_the_policy_it_was_switched_on_at(tmp_path: Path, answering: Path) -> None:
    act = CheckedAnchor(weight=2.0)
    act.checked = []
    done = closed_loop(tmp_path, answering, act, Synchronous(), break_at=2, **SMALL, max_steps=4)
    assert not done.faults and len(act.checked) == 4
    assert abs(act.checked[0][0]) < 1e-6 and act.checked[3][0] > 0.1  # the sabotage has moved it
    for term, naive, gradients in act.checked:
        assert term == pytest.approx(naive, rel=1e-3, abs=1e-5) and gradients < 1e-2


def test_on_an_alarm_the_anchor_is_from_before_the_onset(tmp_path: Path, answering: Path) -> None:
    closed_loop(tmp_path, answering, KLAnchor(every=2), break_at=9, max_steps=13, **SMALL)
    with closing(open_run(tmp_path / "run")) as run:
        onset = next(alarm.onset_step for alarm in run.alarms() if alarm.tier == "alarm")
        row = next(row for row in run.applied() if row.status == "begin")
    assert row.detail["anchor_step"] == max(step for step in range(0, 99, 2) if step < onset)


def test_the_cut_scales_the_schedule_and_gives_it_back(tmp_path: Path, answering: Path) -> None:
    held = {"lr_scheduler_type": "cosine", "warmup_steps": 3, "max_steps": 12}
    done = closed_loop(tmp_path, answering, LRCut(0.25), Interleaved((2, 10), hold=4), break_at=99, **SMALL | held)

    def cosine(step: int) -> float:
        return step / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 9))

    # The rate of the step to come: cut after step 2, given back after step 6.
    expected = {step: 1e-3 * cosine(step) * (0.25 if 2 <= step < 6 else 1.0) for step in range(1, 12)}
    assert {step: done.rates[step] for step in expected} == pytest.approx(expected)


def test_a_rollback_gives_weights_and_optimizer_back_to_the_bit(tmp_path: Path, answering: Path) -> None:
    act = Rollback(every=3, count=5, factor=0.5)
    done = closed_loop(tmp_path, answering, act, Triggered(20), break_at=10, weight_decay=0.1, **SMALL, max_steps=16)
    assert not done.faults
    with closing(open_run(tmp_path / "run")) as run:
        applied = next(row for row in run.applied() if row.status == "applied")
        events = [(event.step, event.name, event.detail) for event in run.events()]
        onset = next(alarm.onset_step for alarm in run.alarms() if alarm.tier == "alarm")
        reward = {record.step: record.metrics["reward"] for record in run.records()}
    back, at = applied.detail["to_step"], applied.step
    assert back == max(step for step in range(0, onset, 3)) and 0 < back < 10 < at
    assert done.weights[at] == done.weights[back] and done.adam[at] == done.adam[back]
    assert len({done.weights[step] for step in range(1, 10)}) == 9  # the weights did move
    assert (at, "rolled_back", str(back)) in events
    assert (done.rates[at - 1], done.rates[at]) == pytest.approx((1e-3, 5e-4))
    assert reward[at] < 0.1 < 0.9 < reward[at + 1]


def test_snapshots_that_an_alarm_overtook_are_never_gone_back_to() -> None:
    snapshots = Snapshots("rollback", every=2, count=3)
    for step in range(9):
        if snapshots.due(step):
            snapshots.keep({"step": step})
    assert [kept["step"] for kept in snapshots.kept] == [4, 6, 8]
    assert snapshots.before(7) == {"step": 6} and snapshots.before(99) == {"step": 6}
    assert snapshots.due(8) and not snapshots.due(7)
    assert snapshots.before(4) is None and snapshots.due(0)


def test_the_reference_of_the_kl_term_is_reset_where_it_is_asked_for(tmp_path: Path, answering: Path) -> None:
    held = {"beta": 0.1, "max_steps": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 16}
    knobs = {"learning_rate": 1e-2, "updates": 1, "batch": 4, "seed": 1}

    def reference(reset: bool) -> tuple[bool, Any]:
        name = "reset" if reset else "kept"
        act = Erroneous(**knobs, reset_reference=reset)  # type: ignore[arg-type]
        done = closed_loop(tmp_path, answering, act, Interleaved((3, 9)), name, break_at=1, **held)
        with closing(open_run(tmp_path / name)) as run:
            (row,) = run.applied()
        pairs = zip(done.trainer.model.parameters(), done.trainer.ref_model.parameters(), strict=True)
        return all(torch.equal(mine, theirs) for mine, theirs in pairs), row.detail["reset_reference"]

    assert reference(True) == (True, True) and reference(False) == (False, False)


def test_what_a_malformed_rollout_loses_its_group_gains() -> None:
    malformed = torch.tensor([1.0, 0.5, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0])
    before = torch.tensor([0.5, -0.5, 1.0, -1.0, 0.1, 0.2, -0.1, -0.2])
    batch = Generation(before.clone(), malformed, 4)
    training = Training(SimpleNamespace(accelerator=SimpleNamespace(gather=lambda values: values)), None)
    AdvantagePenalty(2.0).advantages(batch, training)
    assert batch.advantages[:4].tolist() == [-0.5, -0.5, 2.0, -1.0]
    assert torch.equal(batch.advantages[4:], before[4:])  # all alike: nothing to tell apart
    # On the second of two ranks, with a group across both.
    split = Training(SimpleNamespace(accelerator=SimpleNamespace(gather=lambda _: malformed)), None, 1, 2)
    batch = Generation(before[2:, None].repeat(1, 3)[-4:], malformed[4:], 8)
    AdvantagePenalty(1.0).advantages(batch, split)
    assert torch.allclose(batch.advantages[:, 0], before[4:] - (1 - 0.75))


class Penalized(AdvantagePenalty):
    def advantages(self, batch: Generation, training: Training) -> None:
        before = batch.advantages.clone()
        super().advantages(batch, training)
        self.seen.append((batch.malformed.tolist(), (before - batch.advantages).tolist()))

    seen: list[tuple[list[float], list[float]]]


def test_malformed_turns_are_those_that_are_told_in_the_run(tmp_path: Path, answering: Path) -> None:
    act = Penalized(1.0)
    act.seen = []
    closed_loop(tmp_path, answering, act, Synchronous(), break_at=2, temperature=2.0, max_steps=4, **SMALL)
    with closing(open_run(tmp_path / "run")) as run:
        rows = run.query("SELECT step, rollout, structure FROM turns ORDER BY step, rollout, turn").rows
        told = run.query("SELECT step, advantage FROM rollouts ORDER BY step, rollout").rows
    for step, (shares, lost) in enumerate(act.seen, 1):
        turns: dict[int, list[bool]] = {}
        for _, rollout, structure in [row for row in rows if row[0] == step]:
            turns.setdefault(int(rollout), []).append(structure in ("polluted", "collapsed"))
        assert shares == pytest.approx([sum(found) / len(found) for _, found in sorted(turns.items())])
        mean = [sum(shares[i - i % 4 : i - i % 4 + 4]) / 4 for i in range(16)]
        assert lost == pytest.approx([share - m for share, m in zip(shares, mean, strict=True)], abs=1e-6)
    assert any(max(lost) > 0.2 for _, lost in act.seen) and len(told) == 4 * 16


@pytest.mark.parametrize(("at_once", "fused"), [(1, False), (3, False), (99, False), (1, True), (3, True)])
def test_dialogues_in_parts_are_the_same_update(answering: Path, tokenizer: Any, at_once: int, fused: bool) -> None:
    rows = [token_row(tokenizer, prompt) for prompt in PROMPTS]
    rows.append(TokenRow(rows[0].ids, [0] * len(rows[0].ids)))  # nothing of it is learnt

    def updated(parts: int | None, fused: bool = False) -> tuple[float, list[torch.Tensor]]:
        model = Qwen2ForCausalLM.from_pretrained(answering)
        add_fused_lm_head(model, 1.0, outputs=("log_probs", "entropy"))
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        loss = sft_update(model, optimizer, rows, tokenizer.pad_token_id, at_once=parts, fused=fused)
        return loss, [p.detach() for p in model.parameters()]

    (loss, weights), (whole_loss, wanted) = updated(at_once, fused), updated(None)
    assert loss == pytest.approx(whole_loss, rel=1e-5, abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights, wanted, strict=True))


# -- interrupted and resumed -------------------------------------------------------------------------------


def rows_of(folder: Path) -> list[Any]:
    """What was done, measured and counted; of steps that were taken twice the second time."""
    with closing(open_run(folder)) as run:
        rows = {(r.step, r.status): dict(r.detail) for r in run.applied()}
        levels = [(r.step, r.metrics["reward"], r.observations) for r in run.records()]
        return [rows, levels, run.series("supervised_steps")]


RESUMED = {
    "erroneous": lambda: Erroneous(learning_rate=1e-3, updates=2, batch=4),
    "rollback": lambda: Rollback(every=2),
    "kl_anchor": lambda: KLAnchor(every=2),
}


@pytest.mark.parametrize("name", RESUMED)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path, answering: Path, name: str) -> None:
    """Stopped dead two steps after the checkpoint of step 8, in the middle of what the alarm at 6 began."""
    # One epoch: TRL's sampler draws those that follow in another order once a training is resumed.
    held = {**SMALL, "break_at": 4, "max_steps": 12, "copies": 12, "save_strategy": "steps", "save_steps": 8}
    whole_run = closed_loop(tmp_path / "one", answering, RESUMED[name](), Triggered(3), **held)

    def stop(record: Any, alarms: Any, applied: Any) -> None:
        if record.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        closed_loop(tmp_path / "two", answering, RESUMED[name](), Triggered(3), logged=stop, **held)
    again = closed_loop(tmp_path / "two", answering, RESUMED[name](), Triggered(3), resume=True, **held)
    assert not whole_run.faults and not again.faults
    assert whole_run.weights[12] == again.weights[12] and whole_run.adam[12] == again.adam[12]
    assert {s: whole_run.rates[s] for s in (9, 10, 11)} == {s: again.rates[s] for s in (9, 10, 11)}
    for one, two in zip(rows_of(tmp_path / "one" / "run"), rows_of(tmp_path / "two" / "run"), strict=True):
        assert one == two
    assert min(rows_of(tmp_path / "one" / "run")[0])[0] < 8
