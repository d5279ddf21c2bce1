"""Control-token log-probabilities at every trained position, from the forward pass that training does anyway.

TRL's fused LM head never materialises logits. But the log-prob it returns for the label gives the normaliser,
`logZ = z_label - logp_label`, so `log p(k) = z_k - logZ` needs only the K control columns of the LM head: no
second forward, nothing of size T x V. Two forward hooks are enough: the backbone's for the hidden states, the
outer model's for the label log-probs. Logits that a model returns are read directly; and where no training forward
passes by, `measure` makes one of its own.

For a label that is a control token this reproduces the label's log-prob whatever the normaliser, so the self-check
is another one: now and then, at a few positions, the label's log-prob from the whole LM head.
Source: measured in docs/measurements.md, "Probe against brute force".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from .head import AT_ONCE, COLUMNS, Head, HeadWeights, fold

_CHECK_EVERY = 32  # fused forwards from one self-check to the next: it reads the whole head, once
_CHECK_ROWS = 4


@dataclass(slots=True)
class ProbeBatch:
    """One forward, seen at its labelled positions: P of its T positions, of which the last T - 1 have a label.

    Column j is the distribution that the token `labels[:, j]` was drawn from. P is T - 1; T where the forward was
    given `shift_labels`, which stand at the position that predicts them; less where it kept fewer logits, the last.

    `logp` (B, P, K) float32 log-probabilities of the control tokens, NaN where unlabelled;
    `label_logp` (B, P) the label's own; `entropy` (B, P) in nats, NaN where unlabelled, None if not given;
    `labels` (B, P) token ids, -100 where unlabelled; `max_error` the self-check's largest |difference| between
    `label_logp` and the whole LM head's, NaN where this forward was not checked.
    """

    logp: torch.Tensor
    label_logp: torch.Tensor
    labels: torch.Tensor
    entropy: torch.Tensor | None
    max_error: float = float("nan")


@dataclass(frozen=True, slots=True)
class Live:
    """One forward of the fused head with its gradient: `hidden` (B, T, H), `labels` and `log_probs` (B, P)."""

    hidden: torch.Tensor
    labels: torch.Tensor
    log_probs: torch.Tensor
    dtype: torch.dtype


class ControlProbe:
    """Collects a `ProbeBatch` from every gradient-carrying forward of `model` while armed.

    `token_ids` (K,): the control tokens; `measure` may be given others. `temperature`: what the model's log-probs
    are taken at. `fp32_head`: the fused head is computed in float32 outside autocast (TRL's
    `cast_lm_head_to_fp32`). `guard`: the context in which the hooks do their work, to keep their failures out of the
    model's forward.
    The probe never changes the forward; what it collects waits in `batches` until `drain`. While `keep_live`, the
    last one is kept with its gradient, as `live`.

    Raises:
        ValueError: the model has no backbone or no output embeddings to hook.
        Partitioned: ZeRO-3 keeps the LM head's weights elsewhere.
    """

    def __init__(
        self,
        model: Any,
        token_ids: Sequence[int] = (),
        temperature: float = 1.0,
        fp32_head: bool = False,
        guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        # The model as given: a PEFT wrapper calls its base model's `forward`, past the hooks there.
        self._outer = model.module if isinstance(model, DistributedDataParallel) else model
        self._model = self._outer.get_base_model() if hasattr(self._outer, "get_base_model") else self._outer
        self._head = Head(self._model, temperature)
        self._backbone = self._model.base_model
        if self._backbone is self._model:
            raise ValueError(
                f"probe: got {type(self._model).__name__}, expected a causal LM: a backbone and an LM head"
            )
        self._temperature, self._fp32_head, self._guard = temperature, fp32_head, guard
        self._ids = torch.as_tensor(list(token_ids), dtype=torch.long)
        self._hidden: torch.Tensor | None = None
        self._forwards = 0
        self.armed, self.keep_live = True, False
        self.batches: list[ProbeBatch] = []
        self.live: Live | None = None
        self._handles = [
            self._backbone.register_forward_hook(self._keep_hidden, with_kwargs=True),
            self._outer.register_forward_hook(self._read, with_kwargs=True),
        ]

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def drain(self) -> list[ProbeBatch]:
        """What was collected since the last call."""
        batches, self.batches = self.batches, []
        return batches

    @contextmanager
    def disarmed(self) -> Iterator[None]:
        """Ignore forwards inside the block (an intervention's supervised updates, for one)."""
        before, self.armed = self.armed, False
        try:
            yield
        finally:
            self.armed = before

    def control(self, live: Live, places: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Log-probs (n, K) of the control tokens at `places` (axis by axis, (n,)) of a forward, with gradient."""
        with torch.autocast(live.hidden.device.type, enabled=False):
            weights = self._head.read(live.dtype)
            rows, labels = live.hidden[places].to(weights.device), live.labels[places].to(weights.device)
            log_z = weights.own(rows, labels) - live.log_probs[places].float()  # (n,)
            return weights.some(rows, self._ids.to(weights.device)) - log_z[:, None]

    @torch.no_grad()
    def measure(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        token_ids: Sequence[int] | None = None,
    ) -> ProbeBatch:
        """One forward of its own over `input_ids` (B, T), without gradient and dropout, in any loop.

        `labels` (B, T), -100 where no position is to be read; by default every token that `attention_mask` shows.
        `token_ids` (K,): other control tokens than the probe's own. The LM head is read in blocks. Neither the
        model's mode nor what probes collect changes. On every rank alike where FSDP2 shards the model.
        """
        labels = _own_labels(input_ids, attention_mask) if labels is None else labels
        ids = self._ids if token_ids is None else torch.as_tensor(list(token_ids), dtype=torch.long)
        device = self._model.device
        input_ids = input_ids.to(device)
        attention_mask = None if attention_mask is None else attention_mask.to(device)
        with self.disarmed(), _evaluating(self._outer):
            hidden = self._hidden_states(input_ids, attention_mask)
        dtype = self._dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            weights = self._head.read(dtype)
            batch, places, ids = _blank(labels[:, 1:], ids, weights.device)
            entropy = torch.full_like(batch.label_logp, float("nan"))
            for at in _chunks(places, weights.rows_at_once(COLUMNS)):
                rows, targets = hidden[at].to(weights.device), batch.labels[at]  # (c, H), (c,)
                log_z, entropy[at] = fold(weights.blocks(rows))
                batch.logp[at] = weights.some(rows, ids) - log_z[:, None]
                batch.label_logp[at] = weights.own(rows, targets) - log_z
        batch.entropy = entropy
        return batch

    def _hidden_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """The backbone's last hidden states (B, T, H)."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if not hasattr(self._outer, "unshard"):
            found: torch.Tensor = self._backbone(**given).last_hidden_state
            return found
        # FSDP2 gathers what its layers do not own in the forward of the whole; of the head, one position.
        kept: list[torch.Tensor] = []
        handle = self._backbone.register_forward_hook(lambda module, args, out: kept.append(out.last_hidden_state))
        try:
            self._outer(**given, logits_to_keep=1)
        finally:
            handle.remove()
            self._outer.reshard()  # it waits for a backward otherwise
        return kept[0]

    def _keep_hidden(self, module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        # Generation steps carry a cache and no gradient; only the training forward is of interest.
        self._hidden = None
        if self.armed and torch.is_grad_enabled():
            with self._guard():
                hidden = out.last_hidden_state
                self._hidden = hidden if self.keep_live else hidden.detach()

    @torch.no_grad()
    def _read(self, module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        hidden, self._hidden = self._hidden, None
        if hidden is None:
            return
        with self._guard():
            labels, shifted = _labels_of(args, kwargs)
            if labels is None:
                return
            if kwargs.get("fused_lm_head"):
                dtype, labels = self._dtype(hidden), labels if shifted else labels[:, 1:]
                self.live = Live(hidden, labels, out.log_probs, dtype) if self.keep_live else None
                with torch.autocast(hidden.device.type, enabled=False):
                    self.batches.append(self._from_hidden(hidden, labels, out, dtype))
            elif out.logits.requires_grad:
                logits = out.logits.detach()
                labels = labels[:, -logits.size(1) :]
                if not shifted:
                    logits, labels = logits[:, :-1], labels[:, 1:]
                self.batches.append(self._from_logits(logits, labels))

    def _dtype(self, hidden: torch.Tensor) -> torch.dtype:
        """What the forward multiplies hidden states with its head in."""
        device = hidden.device.type
        if self._fp32_head:
            return torch.float32
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype

    def _from_hidden(self, hidden: torch.Tensor, labels: torch.Tensor, out: Any, dtype: torch.dtype) -> ProbeBatch:
        """From `hidden` (B, T, H) and the fused head's output: the log-probs of `labels` (B, P); logits in `dtype`."""
        weights = self._head.read(dtype)
        batch, places, ids = _blank(labels, self._ids, weights.device)
        batch.label_logp = out.log_probs.detach().float()
        for at in _chunks(places, weights.rows_at_once()):
            rows = hidden[at].to(weights.device)  # (c, H)
            log_z = weights.own(rows, batch.labels[at]) - batch.label_logp[at]  # (c,)
            batch.logp[at] = weights.some(rows, ids) - log_z[:, None]
        if len(places[0]) and self._forwards % _CHECK_EVERY == 0:
            batch.max_error = self._check(hidden, batch, places, weights)
        self._forwards += 1
        if out.entropy is not None:
            batch.entropy = out.entropy.detach().float().masked_fill(batch.labels == -100, float("nan"))
        return batch

    def _check(
        self, hidden: torch.Tensor, batch: ProbeBatch, places: tuple[torch.Tensor, ...], weights: HeadWeights
    ) -> float:
        """The largest |difference| between some labels' log-probs and those that the whole head gives."""
        count = len(places[0])
        some = torch.linspace(0, count - 1, min(count, _CHECK_ROWS), device=places[0].device).long()
        at = tuple(axis[some] for axis in places)
        rows = hidden[at].to(weights.device)
        log_z, _ = fold(weights.blocks(rows))
        return float((weights.own(rows, batch.labels[at]) - log_z - batch.label_logp[at]).abs().max())

    def _from_logits(self, logits: torch.Tensor, labels: torch.Tensor) -> ProbeBatch:
        """From `logits` (B, P, V), scaled and soft-capped by the model itself, at `labels` (B, P)."""
        batch, places, ids = _blank(labels, self._ids, logits.device)
        entropy = torch.full_like(batch.label_logp, float("nan"))
        for at in _chunks(places, max(1, AT_ONCE // logits.size(-1))):
            z = logits[at]  # (c, V)
            log_z, entropy[at] = fold(part.float() / self._temperature for part in torch.split(z, COLUMNS, dim=1))
            batch.logp[at] = z[:, ids].float() / self._temperature - log_z[:, None]
            own = z.gather(1, batch.labels[at][:, None])[:, 0]
            batch.label_logp[at] = own.float() / self._temperature - log_z
        batch.entropy = entropy
        return batch


def _blank(
    labels: torch.Tensor, ids: torch.Tensor, device: torch.device
) -> tuple[ProbeBatch, tuple[torch.Tensor, ...], torch.Tensor]:
    """On `device`: a batch in which nothing is known yet, where its `labels` (B, P) stand, and the `ids` (K,)."""
    labels = labels.to(device)
    logp = torch.full((*labels.shape, len(ids)), float("nan"), device=device)
    batch = ProbeBatch(logp, torch.full(labels.shape, float("nan"), device=device), labels, None)
    return batch, (labels != -100).nonzero(as_tuple=True), ids.to(device)


def _labels_of(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[torch.Tensor | None, bool]:
    """The labels that a forward was given, or those its own input makes; and are they shifted already?"""
    if kwargs.get("shift_labels") is not None:
        return kwargs["shift_labels"], True
    if kwargs.get("labels") is not None:
        return kwargs["labels"], False
    given = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
    input_ids, mask = given.get("input_ids"), given.get("attention_mask")
    return None if input_ids is None else _own_labels(input_ids, mask), False


def _own_labels(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Every token but those that the mask (B, T) hides; a mask of another shape says nothing of padding."""
    if attention_mask is None or attention_mask.shape != input_ids.shape:
        return input_ids
    return input_ids.masked_fill(attention_mask == 0, -100)


def _chunks(places: tuple[torch.Tensor, ...], size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """`places` (axis by axis, (n,) each) in pieces of `size`."""
    return zip(*(torch.split(axis, size) for axis in places), strict=True)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Every module in evaluation mode inside the block, and as it was after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
