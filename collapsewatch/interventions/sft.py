"""One supervised update on expert dialogues: what several interventions, and a warm start, are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One dialogue for supervised training: token ids, and for each 1 where the model is to learn it, else 0."""

    ids: Sequence[int]
    mask: Sequence[int]


def collate(rows: Sequence[TokenRow], pad_id: int, device: Any = "cpu") -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels` (-100 where nothing is learnt), each (B, T)."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)  # (B, T)
    labels = torch.full((len(rows), width), -100, dtype=torch.long)
    attention = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.tensor(row.ids)
        attention[i, :n] = 1
        learnt = torch.tensor(row.mask, dtype=torch.bool)
        labels[i, :n][learnt] = ids[i, :n][learnt]
    return {"input_ids": ids.to(device), "attention_mask": attention.to(device), "labels": labels.to(device)}


def sft_update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[TokenRow],
    pad_id: int,
    backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward,
    max_grad_norm: float | None = 1.0,
    at_once: int | None = None,
    fused: bool = False,
) -> float:
    """One optimizer step of token-mean cross-entropy on `rows`; returns the loss before the step, in nats.

    `at_once`: rows in one forward, all of them by default; the step is the same, but for rounding. `fused`: by the LM
    head that TRL has put into its model, which never holds all logits.
    """
    given = {"use_cache": False, **({"fused_lm_head": True} if fused else {})}
    parts = [rows[i : i + at_once] for i in range(0, len(rows), at_once)] if at_once else [rows]
    batches = [collate(part, pad_id, next(model.parameters()).device) for part in parts]
    learnt = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for batch, tokens in zip(batches, learnt, strict=True):
        found = model(**batch, **given)
        # A part in which nothing is learnt has a mean over nothing; its backward keeps the ranks in step.
        loss = found.loss if tokens else 0.0 * (found.log_probs if fused else found.logits).sum()
        if len(batches) > 1:
            loss = loss * (tokens / max(1, sum(learnt)))
        backward(loss)
        total += float(loss.detach())
    if max_grad_norm:  # as in transformers, none and 0 mean no limit
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total
