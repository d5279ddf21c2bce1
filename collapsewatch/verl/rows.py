"""Rows of an actor's update, as its forward saw them, to the rollouts of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..rollouts import Rollouts

ROW = "collapsewatch_row"
"""Key under which a row's number travels through verl's shuffling and splitting of a batch."""
_SCORES = ("token_level_scores", "rm_scores", "token_level_rewards")  # the last with a penalty on KL


@dataclass(frozen=True, slots=True)
class Row:
    """One rollout of an update. `prompt`, `ids` token ids before and after the first sampled one (P,), (T,);
    `mask` (T,) the policy's own tokens; `logp` (T, K) of the control tokens, `label_logp`, `entropy`,
    `sampler_logp` (T,), NaN where unknown; `uid` names the prompt on all ranks, `number` the row on this one.
    """

    number: int
    uid: str
    prompt: np.ndarray[Any, Any]
    ids: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any]
    logp: np.ndarray[Any, Any]
    label_logp: np.ndarray[Any, Any]
    entropy: np.ndarray[Any, Any]
    sampler_logp: np.ndarray[Any, Any]
    reward: float
    advantage: float


def read_rows(batch: Mapping[str, Any], read: Mapping[str, torch.Tensor]) -> list[Row]:
    """The rows of a micro-batch; those without a token of the policy's are padding, and left out.

    `batch` as verl's engine gets it: `input_ids` nested (B, j), `response_mask` (B, R) or nested, and per response
    token `advantages`, scores, `rollout_log_probs` where there are. `read` packed over all tokens of the batch
    (n, ...): `logp`, `label_logp`, `entropy` where there is one; its position j is about token j + 1.
    """
    offsets = batch["input_ids"].offsets().tolist()
    tokens = batch["input_ids"].values().cpu().numpy()
    packed = {key: value.float().cpu().numpy() for key, value in read.items()}
    uids = _uids(batch, len(offsets) - 1)
    rows = []
    for i, (begin, end) in enumerate(pairwise(offsets)):
        own = _of_row(batch["response_mask"], i).astype(bool)
        length = _length(batch, i, own)
        mask = own[:length]
        if not mask.any():
            continue
        first = end - length

        def scored(key: str, first: int = first, end: int = end, length: int = length) -> np.ndarray[Any, Any]:
            return packed[key][first - 1 : end - 1] if key in packed else np.full(length, np.nan, np.float32)

        def told(key: str, i: int = i, length: int = length) -> np.ndarray[Any, Any]:
            return _of_row(batch[key], i)[:length] if key in batch else np.full(length, np.nan)

        rewards = next((told(key) for key in _SCORES if key in batch), np.full(length, np.nan))
        rows.append(
            Row(
                number=int(batch[ROW][i]) if ROW in batch else i,
                uid=uids[i],
                prompt=tokens[begin:first],
                ids=tokens[first:end],
                mask=mask,
                logp=scored("logp"),
                label_logp=scored("label_logp"),
                entropy=scored("entropy"),
                sampler_logp=told("rollout_log_probs"),
                reward=float(rewards.sum()),
                advantage=float(told("advantages")[mask].mean()),
            )
        )
    return rows


def to_rollouts(rows: Sequence[Row], groups: Mapping[str, int], first: int, tokens: int) -> Rollouts:
    """Rows padded to the longest; `groups` a number for each prompt, `first` the first rollout's, `tokens` K."""
    width = max(len(row.ids) for row in rows)

    def padded(part: str, fill: Any) -> np.ndarray[Any, Any]:
        values = [getattr(row, part) for row in rows]
        return np.stack(
            [np.pad(v, ((0, width - len(v)), *((0, 0),) * (v.ndim - 1)), constant_values=fill) for v in values]
        )

    known = all(row.logp.ndim == 2 for row in rows)
    entropy = padded("entropy", np.nan)
    return Rollouts(
        ids=padded("ids", 0).astype(np.int64),
        mask=padded("mask", False),
        logp=padded("logp", np.nan) if known else np.full((len(rows), width, tokens), np.nan, np.float32),
        entropy=None if np.isnan(entropy).all() else entropy,
        group=np.array([groups[row.uid] for row in rows]),
        reward=np.array([row.reward for row in rows]),
        advantage=np.array([row.advantage for row in rows]),
        env_errors=np.zeros(len(rows), np.int64),
        row=first + np.array([row.number for row in rows]),
        length=np.array([len(row.ids) for row in rows]),
        label_logp=padded("label_logp", np.nan),
        sampler_logp=padded("sampler_logp", np.nan),
    )


def _of_row(values: Any, i: int) -> np.ndarray[Any, Any]:
    """Row i of a tensor (B, R), padded or nested."""
    found: np.ndarray[Any, Any] = values[i].detach().cpu().numpy()
    return found


def _length(batch: Mapping[str, Any], i: int, own: np.ndarray[Any, Any]) -> int:
    """Tokens behind the prompt, those of tools too: all of a nested row's, of a padded one's those attended to."""
    if batch["response_mask"].is_nested:
        return len(own)
    if "attention_mask" in batch:
        return int(batch["attention_mask"][i, -len(own) :].sum())
    return int(np.flatnonzero(own)[-1]) + 1 if own.any() else 0


def _uids(batch: Mapping[str, Any], size: int) -> list[str]:
    """What names each row's prompt."""
    if "uid" not in batch:
        raise KeyError("uid: got none in the actor's batch, expected one that names each row's prompt")
    found = list(batch["uid"])
    assert len(found) == size
    return [str(uid) for uid in found]
