"""Fixed probes: the same dialogues, scored every few steps, so that the figures can be compared across the run.

What a policy samples changes as it learns, and after a collapse it samples nothing worth reading. Expert dialogues
of tasks that are not trained on stay what they are. In the trained format (`fixed`) they tell how much of it is
left; in another one (`alternate`), whether what the model can do is left.
Source: arXiv 2606.26027, sections 4.2 and 4.3: the collapsed model still scores in another call format.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from .cells import control_rows
from .formats.bound import BoundFormat
from .interventions.sft import TokenRow, collate
from .measure import probabilities
from .probe import ControlProbe
from .records import ControlRow, StepRecord, Structure
from .rollouts import Bools, Floats, Rollouts

Name = Literal["fixed", "alternate"]


class FixedProbe:
    """Teacher-forced dialogues in one chat format, and how a model scores them.

    `name`: what its figures are called: `fixed` in the trained format, `alternate` in another. `rows`: the dialogues,
    the model's own turns marked in their `mask`. `batch`: dialogues in one forward.

    Raises:
        ValueError: there is no dialogue, or none in which the model has a turn.
    """

    def __init__(
        self, name: Name, rows: Sequence[TokenRow], chat_format: BoundFormat, pad_id: int, batch: int = 16
    ) -> None:
        if not any(any(row.mask) for row in rows):
            raise ValueError(f"{name} probe: got {len(rows)} dialogues without a turn to score, expected some")
        self.name, self.chat_format = name, chat_format
        self._rows = sorted(rows, key=lambda row: len(row.ids))  # of like length together: padding costs forwards
        self._pad_id, self._batch = pad_id, batch
        whole = collate(self._rows, pad_id)
        self._ids: npt.NDArray[np.int64] = whole["input_ids"].numpy()  # (N, T)
        self._mask: Bools = (whole["labels"] != -100).numpy()  # (N, T)
        self._slots = chat_format.slots(self._ids, self._mask)
        # (N, T): control tokens and layout. Parsers skip white space, but a model that is kept from a wrong control
        # token behind an opened call still has to find its way past the line break.
        self._spelled = chat_format.spelled(self._ids, self._mask)
        self._frame = self._mask & chat_format.blank(self._ids)
        self._frame |= chat_format.control(self._ids, self._mask, self._spelled)
        self._turn, self._calls = self._turns()
        self._body = self._mask & ~self._frame & np.isin(self._turn, self._calls)  # (N, T): what calls say

    def _turns(self) -> tuple[npt.NDArray[np.int64], list[int]]:
        """The turn of each position (N, T), counted over all dialogues, -1 outside; and which turns are calls."""
        turn, calls, count = np.full(self._ids.shape, -1), list[int](), 0
        for n, (ids, mask) in enumerate(zip(self._ids, self._mask, strict=True)):
            for begin, end in self.chat_format.turns(mask, ids):
                turn[n, begin:end] = count
                if self.chat_format.classify_ids(ids[begin:end]).structure is Structure.TOOL_CALL:
                    calls.append(count)
                count += 1
        return turn, calls

    def score(self, probe: ControlProbe) -> tuple[dict[str, float], tuple[ControlRow, ...]]:
        """Metrics under the probe's name, and control-token statistics by slot, of the probe's model as it is.

        `logp`: mean log-prob of the dialogues' tokens, in nats. `format`: the probability that the control tokens of
        a turn, and its white space, come where they stand and no control token elsewhere, given the rest of it.
        `content`: the probability of what a call says, given that. `turn`: of a whole turn. Each is a product over
        the tokens of a turn, as mean over turns: one wrong token spoils a turn, and a mean over tokens hides it among
        those that are sure (docs/measurements.md, "Format and capability"). `hazard`: as in a rollout.
        """
        logp, label = self._read(probe)
        scored = self._rollouts(logp, label)
        label = np.minimum(np.where(self._mask, label, 0.0), 0.0)
        p, hazard, known = probabilities(scored)
        turns = int(self._turn.max()) + 1
        # Of a token that is no control token: the probability that none is drawn in its place.
        none = np.log1p(-np.minimum(p[..., : len(self.chat_format.ids)].sum(axis=2), 1 - 1e-12))  # (N, T)
        illegal = (known & self._slots.alive)[..., None] & ~self._slots.legal
        told = {
            "logp": label[self._mask].mean(),
            "format": self._product(np.where(self._frame, label, none), self._mask).mean(),
            "turn": self._product(label, self._mask).mean(),
            "hazard": hazard[illegal].sum() / turns,
        }
        if self._calls:
            told["content"] = self._product(np.minimum(label - none, 0.0), self._body)[self._calls].mean()
        rows = control_rows(self.chat_format, scored, self._slots, p, hazard, known, turns, self._spelled)
        return {f"{self.name}/{key}": float(value) for key, value in told.items()}, tuple(
            replace(row, probe=self.name) for row in rows
        )

    def _product(self, logs: Floats, where: Bools) -> Floats:
        """The product over each turn (turns,) of the probabilities whose logarithms are `logs` (N, T), at `where`."""
        return np.exp(np.bincount(self._turn[where], logs[where], int(self._turn.max()) + 1))

    def _read(self, probe: ControlProbe) -> tuple[Floats, Floats]:
        """Log-probs of the control tokens (N, T, K) and of the dialogues' own tokens (N, T), NaN where not scored."""
        logp = np.full((*self._ids.shape, len(self.chat_format.probe_ids)), np.nan)
        label = np.full(self._ids.shape, np.nan)
        for start, batch in self._batches():
            seen = probe.measure(**batch, token_ids=self.chat_format.probe_ids.tolist())
            here = slice(start, start + len(seen.labels)), slice(1, batch["input_ids"].size(1))
            logp[here], label[here] = seen.logp.cpu().numpy(), seen.label_logp.cpu().numpy()
        return logp, label

    def _rollouts(self, logp: Floats, label: Floats) -> Rollouts:
        """The dialogues as rollouts that nobody rewarded."""
        size = len(self._ids)
        unknown, zeros = np.full(size, np.nan), np.zeros(size, np.int64)
        return Rollouts(
            self._ids, self._mask, logp, None, zeros, unknown, unknown, zeros, np.arange(size), self._mask.sum(1), label
        )

    def _batches(self) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """The first row of each batch, and the batch."""
        for start in range(0, len(self._rows), self._batch):
            yield start, collate(self._rows[start : start + self._batch], self._pad_id)


def scored(record: StepRecord, probes: Sequence[FixedProbe], probe: ControlProbe) -> StepRecord:
    """The record of a step, with what the probes say of the model as it is."""
    for fixed in probes:
        metrics, rows = fixed.score(probe)
        record = replace(record, metrics={**record.metrics, **metrics}, control=(*record.control, *rows))
    return record
