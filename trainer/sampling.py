"""Sampling turns from a checkpoint outside of training: as it is, or with its calls repaired."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from collapsewatch.formats.base import BoundFormat, ChatFormat
from collapsewatch.records import SLOTS, Call, Slot

from .dialogues import Renderer

Ids = list[list[int]]


class Sampler:
    """A `rollout.Generate`: a turn of at most `turn_tokens` for each prompt, sampled at temperature 1.

    The checkpoint's own generation settings are left out: what is looked at is the policy that was trained. Draws
    come from torch's generator, as they do in training.
    """

    def __init__(self, model: Any, renderer: Renderer, turn_tokens: int) -> None:
        self._model, self._end_id, self._pad_id = model, renderer.end_id, renderer.pad_id
        self._settings = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=turn_tokens,
            eos_token_id=renderer.end_id,
            pad_token_id=renderer.pad_id,
        )

    def __call__(self, prompts: Ids) -> tuple[Ids, None]:
        return self.sample(prompts, ()), None

    def sample(self, prompts: Ids, processors: Sequence[LogitsProcessor]) -> Ids:
        """The sampled ids of each prompt, its end token included where it was drawn."""
        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad_id] * (width - len(prompt)) + prompt for prompt in prompts])  # (B, T)
        seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        device = self._model.device
        with torch.no_grad():
            out = self._model.generate(
                input_ids=ids.to(device),
                attention_mask=seen.to(device),
                generation_config=self._settings,
                logits_processor=LogitsProcessorList(processors),
            )
        rows = out[:, width:].tolist()
        return [row[: row.index(self._end_id) + 1] if self._end_id in row else row for row in rows]


class Repaired:
    """A `rollout.Generate` that helps the format along and leaves what is said to the model.

    Where the expert would call, the opener of a call stands already; everywhere, control tokens that are illegal at
    their slot cannot be drawn. `due`: of each turn of the episode, whether it is a call.
    """

    def __init__(self, sampler: Sampler, chat_format: BoundFormat, opener: list[int], due: Sequence[bool]) -> None:
        self._sampler, self._format, self._opener, self._due = sampler, chat_format, opener, due
        self._turn = 0

    def __call__(self, prompts: Ids) -> tuple[Ids, None]:
        due = self._turn < len(self._due) and self._due[self._turn]
        self._turn += 1
        head = self._opener if due else []
        begun = [prompt + head for prompt in prompts]
        legal = OnlyLegal(self._format, max(map(len, begun)) - len(head))
        return [head + ids for ids in self._sampler.sample(begun, [legal])], None


class OnlyLegal(LogitsProcessor):  # type: ignore[misc]  # transformers carries no types
    """Bans the control tokens that may not stand at the next position of a turn.

    `start`: where the turn begins in `input_ids`. Banned is what the slots call illegal, and a call opened in prose
    where the format takes no prose before a call.
    """

    def __init__(self, chat_format: BoundFormat, start: int) -> None:
        self._format, self._start = chat_format, start
        self._ids = torch.as_tensor(chat_format.ids)
        opens = np.isin(chat_format.roles, ("open", "section_open", "prefix"))
        self._not_in_text = opens & (not chat_format.format.preamble)  # (K,)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        own = input_ids[:, self._start :].cpu().numpy()  # (B, t)
        ahead = np.pad(own, ((0, 0), (0, 1)))  # what stands at the next position does not matter to its slot
        arrays = self._format.slots(ahead, np.ones(ahead.shape, bool))
        banned = ~arrays.legal[:, -1, : len(self._ids)]  # (B, K)
        banned |= (arrays.slot[:, -1] == SLOTS.index(Slot.TEXT))[:, None] & self._not_in_text
        rows, tokens = np.nonzero(banned)
        scores = scores.clone()
        scores[torch.as_tensor(rows), self._ids[torch.as_tensor(tokens)]] = -torch.inf
        return scores


def opener(chat_format: ChatFormat) -> str:
    """What every call begins with: its marker and the line break behind it; '' for a format without one."""
    if not chat_format.writes:
        return ""
    *before, behind = chat_format.split(chat_format.write([Call("cw_name", {})]).partition("cw_name")[0])
    return "".join(before) + re.match(r"\n*", behind)[0]  # type: ignore[index]  # it matches nothing, too
