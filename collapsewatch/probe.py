"""Control-token log-probabilities at every trained position, from the forward pass that training does anyway.

TRL's fused LM head never materialises logits. But the log-prob it returns for the label gives the normaliser,
`logZ = z_label - logp_label`, so `log p(k) = z_k - logZ` needs only the K control columns of the LM head: no
second forward, nothing of size T x V. Two forward hooks are enough: the backbone's for the hidden states, the
outer model's for the label log-probs. Models that return logits are read directly.

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

_CHUNK = 4096  # positions whose label rows of the LM head are gathered at once: bounds memory at 4096 x H
_CHECK_EVERY = 32  # fused forwards from one self-check to the next: it reads the whole head, once
_CHECK_ROWS = 4
_CHECK_COLUMNS = 32768  # of the head at once


@dataclass(slots=True)
class ProbeBatch:
    """One training forward, seen at its labelled positions. Position j predicts token j + 1.

    `logp` (B, T-1, K) float32 log-probabilities of the control tokens, NaN where unlabelled;
    `label_logp` (B, T-1) the label's own; `entropy` (B, T-1) in nats, NaN where unlabelled, None if not given;
    `labels` (B, T-1) token ids, -100 where unlabelled; `max_error` the self-check's largest |difference| between
    `label_logp` and the whole LM head's, NaN where this forward was not checked.
    """

    logp: torch.Tensor
    label_logp: torch.Tensor
    labels: torch.Tensor
    entropy: torch.Tensor | None
    max_error: float = float("nan")


class ControlProbe:
    """Collects a `ProbeBatch` from every gradient-carrying forward of `model` while armed.

    `token_ids` (K,): the control tokens. `temperature`: what the model's log-probs are taken at. `fp32_head`: the
    fused head is computed in float32 outside autocast (TRL's `cast_lm_head_to_fp32`). `guard`: the context in which
    the hooks do their work, to keep their failures out of the model's forward.
    The probe never changes the forward; what it collects waits in `batches` until `drain`.

    Raises:
        ValueError: the model has no backbone or no output embeddings to hook.
    """

    def __init__(
        self,
        model: Any,
        token_ids: Sequence[int],
        temperature: float = 1.0,
        fp32_head: bool = False,
        guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        head = self._model.get_output_embeddings()
        backbone = self._model.base_model
        if head is None or backbone is self._model:
            raise ValueError(
                f"probe: got {type(self._model).__name__}, expected a causal LM: a backbone and an LM head"
            )
        text_config = self._model.config.get_text_config()
        self._softcap: float | None = getattr(text_config, "final_logit_softcapping", None)
        self._scale = _logit_scale(text_config)
        self._temperature, self._fp32_head, self._guard = temperature, fp32_head, guard
        self._ids = torch.as_tensor(list(token_ids), dtype=torch.long)
        self._hidden: torch.Tensor | None = None
        self._forwards = 0
        self.armed = True
        self.batches: list[ProbeBatch] = []
        self._handles = [
            backbone.register_forward_hook(self._keep_hidden, with_kwargs=True),
            # The model as given: a PEFT wrapper calls its base model's `forward`, past the hooks there.
            model.register_forward_hook(self._read, with_kwargs=True),
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

    def _keep_hidden(self, module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        # Generation steps carry a cache and no gradient; only the training forward is of interest.
        self._hidden = None
        if self.armed and torch.is_grad_enabled():
            with self._guard():
                self._hidden = out.last_hidden_state.detach()

    @torch.no_grad()
    def _read(self, module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        hidden, self._hidden = self._hidden, None
        labels = kwargs.get("labels")
        if hidden is None or labels is None:
            return
        with self._guard():
            labels = labels[:, 1:]  # (B, T-1)
            if kwargs.get("fused_lm_head"):
                device = hidden.device.type
                # The kernel rounds logits to the forward's dtype; the same rounding here keeps the difference exact.
                dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
                with torch.autocast(device, enabled=False):
                    batch = self._from_hidden(hidden[:, :-1], labels, out, torch.float32 if self._fp32_head else dtype)
                self.batches.append(batch)
            else:
                self.batches.append(self._from_logits(out.logits.detach()[:, :-1], labels))

    def _from_hidden(self, hidden: torch.Tensor, labels: torch.Tensor, out: Any, dtype: torch.dtype) -> ProbeBatch:
        """From `hidden` (B, T-1, H) and the fused head's output: the labels' log-probs (B, T-1), logits in `dtype`."""
        head = self._model.get_output_embeddings()
        weight, bias = _whole(head.weight), _whole(getattr(head, "bias", None))
        label_logp = out.log_probs.detach().float()
        mask = labels != -100
        rows, targets, known = hidden[mask], labels[mask], label_logp[mask]  # (n, H), (n,), (n,)
        ids = self._ids.to(weight.device)
        control = weight[ids].to(dtype)  # (K, H)
        logp = label_logp.new_full((*mask.shape, len(ids)), float("nan"))
        found = []
        for start in range(0, len(rows), _CHUNK):
            part, target = rows[start : start + _CHUNK], targets[start : start + _CHUNK]
            z_control = part.to(dtype) @ control.T  # (c, K)
            own = weight[target].to(dtype)  # (c, H)
            z_label = torch.einsum("nh,nh->n", part.to(dtype).float(), own.float()).to(dtype)  # (c,)
            if bias is not None:
                z_control, z_label = z_control + bias[ids].to(dtype), z_label + bias[target].to(dtype)
            log_z = self._transform(z_label) - known[start : start + _CHUNK]
            found.append(self._transform(z_control) - log_z[:, None])
        if found:
            logp[mask] = torch.cat(found)
        error = float("nan")
        if found and self._forwards % _CHECK_EVERY == 0:
            some = torch.linspace(0, len(rows) - 1, min(len(rows), _CHECK_ROWS), device=rows.device).long()
            whole = self._whole_head(rows[some].to(dtype), targets[some], weight, bias)
            error = float((whole - known[some]).abs().max())
        self._forwards += 1
        entropy = None if out.entropy is None else out.entropy.detach().float().masked_fill(~mask, float("nan"))
        return ProbeBatch(logp, label_logp, labels, entropy, error)

    def _whole_head(
        self, rows: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The log-probs (c,) of `targets` (c,) with a normaliser from every column of the LM head."""
        parts, label = [], rows.new_zeros(len(rows), dtype=torch.float32)
        for start in range(0, len(weight), _CHECK_COLUMNS):
            z = rows @ weight[start : start + _CHECK_COLUMNS].to(rows.dtype).T  # (c, columns)
            if bias is not None:
                z = z + bias[start : start + _CHECK_COLUMNS].to(rows.dtype)
            z = self._transform(z)
            parts.append(z.logsumexp(-1))
            here = (targets >= start) & (targets < start + z.size(1))
            label[here] = z[here, targets[here] - start]
        return label - torch.stack(parts).logsumexp(0)

    def _from_logits(self, logits: torch.Tensor, labels: torch.Tensor) -> ProbeBatch:
        """From `logits` (B, T-1, V), scaled and soft-capped by the model itself."""
        mask = labels != -100
        rows = logits[mask].float() / self._temperature  # (n, V)
        log_z = rows.logsumexp(-1)
        logp = rows.new_full((*mask.shape, len(self._ids)), float("nan"))
        label_logp = rows.new_full(mask.shape, float("nan"))
        logp[mask] = rows[:, self._ids.to(rows.device)] - log_z[:, None]
        label_logp[mask] = rows.gather(1, labels[mask][:, None])[:, 0] - log_z
        return ProbeBatch(logp, label_logp, labels, None)

    def _transform(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float() * self._scale
        if self._softcap is not None:
            logits = self._softcap * torch.tanh(logits / self._softcap)
        return logits / self._temperature


def _whole(parameter: Any) -> Any:
    """A parameter as one tensor: FSDP2 shards it."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def _logit_scale(config: Any) -> float:
    """What a model family multiplies its logits by; 1 for most."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if value is not None:
            return float(value)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    # Under one name, Granite divides its logits and HyperCLOVA X multiplies them.
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)
