"""Logit pressure against autograd: the push of the policy gradient on each control token's logit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2ForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from collapsewatch.callback import CollapseCallback
from collapsewatch.combine import combine
from collapsewatch.formats import format_named
from collapsewatch.measure import measure_rank
from collapsewatch.queries import open_run
from collapsewatch.rollouts import Rollouts


def pushes(metrics: Any, tokens: tuple[str, ...]) -> np.ndarray:
    """`self` and `other` of every token, (K, 2)."""
    return np.array([[metrics[f"logit_pressure/{side}/{token}"] for side in ("self", "other")] for token in tokens])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 5), t=st.integers(1, 30))
def test_self_and_other_are_the_gradient_of_the_surrogate(tokenizer: Any, seed: int, n: int, t: int) -> None:
    bound = format_named("hermes").bind(tokenizer)
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, len(tokenizer), (n, t))
    mask = draw.random((n, t)) < 0.8
    mask[0, 0] = True
    advantage = draw.normal(size=n)
    logits = torch.tensor(draw.normal(size=(n, t, len(tokenizer))) * 2)
    bias = torch.zeros(n, t, len(tokenizer), dtype=torch.float64, requires_grad=True)  # one per position: to split it
    logp = (logits + bias).log_softmax(-1)
    own = logp.gather(2, torch.tensor(ids)[..., None])[..., 0]
    kept = torch.tensor(mask)
    (torch.tensor(advantage)[:, None] * own * kept).sum().div(kept.sum()).backward()
    assert bias.grad is not None
    grad = bias.grad[..., bound.probe_ids].numpy()  # (N, T, K)
    drawn = ids[..., None] == bound.probe_ids
    expected = np.stack([(grad * drawn).sum((0, 1)), (grad * ~drawn).sum((0, 1))], axis=1)
    zeros = np.zeros(n, int)
    control = logp.detach()[..., bound.probe_ids].numpy()
    r = Rollouts(ids, mask, control, None, zeros, zeros * 1.0, advantage, zeros, np.arange(n), np.full(n, t))
    measured = measure_rank(r, bound)
    found = pushes(combine([measured.sums], measured, 1, 0.0).metrics, bound.probe_tokens)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    # The cells of a token add up to it.
    for k, token in enumerate(bound.probe_tokens):
        cells = [(row.pressure_self, row.pressure_other) for row in measured.control if row.token == token]
        np.testing.assert_allclose(np.sum(cells, axis=0), expected[k], atol=1e-12)


class KeepGradient(TrainerCallback):
    """The gradient of the LM head's bias, before each optimizer step."""

    def __init__(self) -> None:
        self.grads: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.grads.append(model.lm_head.bias.grad.clone())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_it_is_what_a_real_training_does_to_the_logits(
    tmp_path: Path, model_path: Path, tokenizer: Any, temperature: float
) -> None:
    """TRL's own DAPO loss, two micro-batches: a bias on the head takes the gradient of every logit's push."""
    model = Qwen2ForCausalLM.from_pretrained(model_path, tie_word_embeddings=False)
    model.lm_head = torch.nn.Linear(model.config.hidden_size, len(tokenizer), bias=True)
    keep = KeepGradient()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completion_ids, **_: [float(sum(ids) % 7) for ids in completion_ids],
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=2,
            learning_rate=1e-3,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            num_generations=4,
            max_completion_length=12,
            temperature=temperature,
            loss_type="dapo",
            max_grad_norm=0.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"add {i} and 2"} for i in range(8)]),
        processing_class=tokenizer,
        callbacks=[CollapseCallback(tmp_path, "run", chat_format="hermes"), keep],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    bound = format_named("hermes").bind(tokenizer)
    records = list(open_run(tmp_path / "run").records())
    assert len(records) == len(keep.grads) == 2
    for record, grad in zip(records, keep.grads, strict=True):
        push = pushes(record.metrics, bound.probe_tokens).sum(axis=1)
        assert np.abs(push).max() > 1e-3
        np.testing.assert_allclose(push, -temperature * grad[bound.probe_ids].numpy(), atol=2e-6)
