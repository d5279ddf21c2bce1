"""The ledger of rollouts: which prompt, reward and group each row of a training batch belongs to.

TRL shuffles a generation's rows and splits them into micro-batches; a number that travels with each row keeps
what is known of it together.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from .interventions.base import ROLLOUT, Piece, PromptRow, Training
from .probe import ProbeBatch
from .rollouts import Rollouts

UID = "collapsewatch_uid"
"""Key under which a rollout's number travels through TRL's shuffling and splitting of a batch."""
Seen = tuple[Mapping[str, Any], ProbeBatch | None]
"""A micro-batch as the loss got it, and what the probe read in its forward."""


class Ledger:
    """What is known of the rollouts of one rank, by number. `tokens`: how many control tokens are probed."""

    def __init__(self, training: Training, tokens: int, pad_id: int) -> None:
        self._training, self._tokens, self._pad_id = training, tokens, pad_id
        self._numbers = itertools.count(_generated(training.trainer))
        self._known: dict[int, dict[str, Any]] = {}
        self._rewards: torch.Tensor | None = None
        self._sampled: set[tuple[int, ...]] = set()

    def take_sample(self, result: tuple[Sequence[Sequence[int]], Any], *args: Any, **kwargs: Any) -> None:
        """`result`: the ids that the sampler drew for one turn of each rollout, and their log-probs."""
        self._sampled.update(map(tuple, result[0]))

    def take_rewards(self, result: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """`result` (world * B, functions): rewards of all ranks, NaN where a function did not apply."""
        weights = self._training.trainer.reward_weights.to(result.device)
        rewards = (result * weights).nansum(dim=1)
        rewards[torch.isnan(result).all(dim=1)] = float("nan")
        self._rewards = rewards.cpu()

    def number_rows(self, result: dict[str, Any], inputs: Sequence[PromptRow], **kwargs: Any) -> None:
        """Give each generated rollout a number that survives shuffle and split."""
        scored, self._rewards = self._rewards, None  # those of this generation, never of an earlier one
        sampled, self._sampled = self._sampled, set()
        if not self._training.trainer.model.training or scored is None:
            return
        size = len(inputs)
        numbers = list(itertools.islice(self._numbers, size))
        first = self._training.rank * size
        rewards = scored[first : first + size].tolist()
        generations = self._training.trainer.num_generations
        base = numbers[0] * self._training.ranks
        for i, (number, row) in enumerate(zip(numbers, inputs, strict=True)):
            self._known[number] = {
                "row": row,
                "reward": rewards[i],
                "group": (base + first + i) // generations,
                "env_errors": int(row.get("env_errors", 0) or 0),
                "sampled": set() if row.get("forced") else sampled,  # an expert's turns were drawn by nobody
                "guided": bool(row.get("guided")),
            }
        ids = result["completion_ids"]
        result[UID] = torch.tensor(numbers, device=ids.device)
        # A step spans no more generations before this one; older rows go, for a row may hold images.
        args = self._training.trainer.args
        spanned = args.gradient_accumulation_steps // args.steps_per_generation + 1
        for stale in [n for n in self._known if n < numbers[0] - spanned * size]:
            del self._known[stale]

    def rollouts(self, seen: Sequence[Seen]) -> Rollouts:
        """Micro-batches to one rank's arrays, padded to the longest completion."""
        width = max(inputs["completion_ids"].size(1) for inputs, _ in seen)
        parts = [_arrays(inputs, batch, width, self._tokens, self._pad_id) for inputs, batch in seen]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        known = [self._known[number] for number in joined["number"].tolist()]
        rows = zip(joined["ids"], joined["mask"], known, strict=True)
        return Rollouts(
            ids=joined["ids"],
            mask=joined["mask"],
            logp=joined["logp"],
            entropy=None if np.isnan(joined["entropy"]).all() else joined["entropy"],
            group=np.array([row["group"] for row in known]),
            reward=np.array([row["reward"] for row in known]),
            advantage=joined["advantage"],
            env_errors=np.array([row["env_errors"] for row in known]),
            row=joined["number"],
            length=joined["length"],
            label_logp=joined["label_logp"],
            sampler_logp=None if np.isnan(joined["sampler_logp"]).all() else joined["sampler_logp"],
            altered=np.array([_altered(ids, mask, row["sampled"]) for ids, mask, row in rows]),
            guided=np.array([row["guided"] for row in known]),
        )

    def failed(self, rollouts: Rollouts, decode: Callable[[list[int]], str] | None = None) -> list[PromptRow]:
        """Dataset rows of the prompts that at least one rollout failed; with `decode`, one such rollout in each."""
        best = np.nanmax(rollouts.reward, initial=1.0)
        hit = {group: i for i, group in enumerate(rollouts.group.tolist()) if rollouts.reward[i] < best}
        rows: list[PromptRow] = [self._known[int(rollouts.row[i])]["row"] for i in hit.values()]
        if decode is None:
            return rows
        return [{**row, ROLLOUT: _pieces(rollouts, i, decode)} for row, i in zip(rows, hit.values(), strict=True)]

    def prompt(self, number: int) -> str:
        """The prompt of a rollout as text, or as JSON where it is a list of messages."""
        prompt = self._known[number]["row"].get("prompt", "")
        return prompt if isinstance(prompt, str) else json.dumps(prompt, default=str)


def _pieces(rollouts: Rollouts, i: int, decode: Callable[[list[int]], str]) -> list[Piece]:
    """A rollout in stretches that the model wrote, and that it did not."""
    length = int(rollouts.length[i])
    ids, own = rollouts.ids[i, :length], rollouts.mask[i, :length]
    cuts = [0, *(np.flatnonzero(np.diff(own.astype(np.int8))) + 1).tolist(), length]
    return [(bool(own[a]), decode(ids[a:b].tolist())) for a, b in pairwise(cuts) if b > a]


def _generated(trainer: Any) -> int:
    """How many rollouts of this rank a resumed training has behind it."""
    args = trainer.args
    taken = trainer.state.global_step * args.gradient_accumulation_steps  # micro-batches
    generations = -(-taken // (args.steps_per_generation * trainer.num_iterations))
    return int(generations * args.steps_per_generation * args.per_device_train_batch_size)


def _altered(ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], sampled: set[tuple[int, ...]]) -> float:
    """1 unless every run of own tokens in `ids` (T,) was drawn so, or drawn longer and cut; NaN if nobody saw."""
    if not sampled:  # a rollout function of the user's, which asks a sampler of its own
        return float("nan")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    for begin, end in edges.reshape(-1, 2).tolist():
        run = tuple(ids[begin:end].tolist())
        if run not in sampled and not any(whole[: len(run)] == run for whole in sampled):
            return 1.0
    return 0.0


def _arrays(
    inputs: Mapping[str, Any], batch: ProbeBatch | None, width: int, tokens: int, pad_id: int
) -> dict[str, np.ndarray[Any, Any]]:
    """One micro-batch as arrays over its completions, padded on the right to `width`; NaN without a `batch`."""
    ids = inputs["completion_ids"]
    size, length = ids.shape
    whole = inputs["completion_mask"].bool()  # (B, C)
    if "tool_mask" in inputs:
        own = whole & inputs["tool_mask"].bool()
    else:
        # TRL's `mask_truncated_completions` blanks the rows that ran on: there is no loss on them, but a structure.
        own = whole = whole | (~whole.any(1, keepdim=True) & (ids != pad_id))
    pad = ((0, 0), (0, width - length))

    def padded(values: torch.Tensor, fill: Any) -> np.ndarray[Any, Any]:
        return np.pad(values.cpu().numpy(), pad, constant_values=fill)

    entropy = None if batch is None else batch.entropy
    if entropy is None:
        entropy = torch.full((size, length), float("nan"))
    logp = torch.full((size, length, tokens), float("nan")) if batch is None else batch.logp[:, -length:]  # (B, C, K)
    nothing = torch.full((size, length), float("nan"))
    sampler_logp = inputs.get("sampling_per_token_logps")
    advantages = inputs["advantages"]
    return {
        "ids": padded(ids, 0),
        "mask": padded(own, False),
        "entropy": padded(entropy[:, -length:], float("nan")),
        "logp": np.pad(logp.cpu().numpy(), (*pad, (0, 0)), constant_values=float("nan")),
        "advantage": (advantages if advantages.dim() == 1 else advantages.mean(1)).cpu().numpy(),
        "label_logp": padded(nothing if batch is None else batch.label_logp[:, -length:], float("nan")),
        "sampler_logp": padded(nothing if sampler_logp is None else sampler_logp.float(), float("nan")),
        "number": inputs[UID].cpu().numpy(),
        "length": whole.sum(1).cpu().numpy(),
    }
