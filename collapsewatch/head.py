"""An LM head read in pieces: a few of its columns, or a normaliser over all; never T x V at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

AT_ONCE = 2**24
"""Elements of a block of logits, 64 MiB in float32, and of what is gathered of hidden states and weights at once."""
COLUMNS = 2**15
"""Columns of a block of logits."""


class Partitioned(ValueError):
    """The weights of the LM head are nowhere whole."""


class Head:
    """The LM head of a causal LM, and the scale, soft cap and temperature behind it, as TRL's fused head applies them.

    Logits are rounded once to `dtype`, that of the forward, before scale and cap: what is subtracted from a log-prob
    of the fused head must be rounded as it was.

    Raises:
        ValueError: the model has no LM head.
        Partitioned: ZeRO-3 keeps its weights elsewhere.
    """

    def __init__(self, model: Any, temperature: float = 1.0) -> None:
        self._model, self._temperature = model, temperature
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"probe: got {type(model).__name__}, expected a causal LM: a backbone and an LM head")
        if hasattr(head.weight, "ds_id"):
            raise Partitioned("probe: got ZeRO-3, which partitions the LM head, expected ZeRO-1 or 2, DDP or FSDP2")
        text_config = model.config.get_text_config()
        self._softcap: float | None = getattr(text_config, "final_logit_softcapping", None)
        self._scale = _logit_scale(text_config)

    def read(self, dtype: torch.dtype) -> HeadWeights:
        """The weights as they now are; looked up on each call, for PEFT and FSDP replace them."""
        head = self._model.get_output_embeddings()
        return HeadWeights(self, _whole(head.weight), _whole(getattr(head, "bias", None)), dtype)

    def transform(self, logits: torch.Tensor) -> torch.Tensor:
        """What the model makes of the product with its head, as float32; in place where that was float32."""
        logits = logits.float().mul_(self._scale)
        if self._softcap is not None:
            logits = logits.div_(self._softcap).tanh_().mul(self._softcap)  # the slope of tanh needs its value
        return logits.div_(self._temperature)


class HeadWeights:
    """The weights (V, H) and the bias (V,) or None of a head, for the length of one forward."""

    def __init__(self, head: Head, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self._head, self._weight, self._bias, self._dtype = head, weight, bias, dtype
        self.device = weight.device

    def rows_at_once(self, columns: int = 1) -> int:
        """How many rows keep their hidden states, their labels' weights and `columns` logits each below `AT_ONCE`."""
        return max(1, AT_ONCE // max(columns, self._weight.size(1)))

    def some(self, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Logits (n, K) of the tokens `ids` (K,) at `rows` (n, H)."""
        return self._logits(rows, self._weight[ids], None if self._bias is None else self._bias[ids])

    def own(self, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Logits (n,) of one token each, `ids` (n,), at `rows` (n, H)."""
        weight = self._weight[ids].to(self._dtype).float()  # (n, H)
        z = torch.einsum("nh,nh->n", rows.to(self._dtype).float(), weight).to(self._dtype)
        return self._head.transform(z if self._bias is None else z + self._bias[ids].to(self._dtype))

    def blocks(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """All logits at `rows` (n, H), in blocks (n, columns)."""
        for start in range(0, len(self._weight), COLUMNS):
            own = slice(start, start + COLUMNS)
            yield self._logits(rows, self._weight[own], None if self._bias is None else self._bias[own])

    def _logits(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        z = rows.to(self._dtype) @ weight.to(self._dtype).T
        return self._head.transform(z if bias is None else z + bias.to(self._dtype))


def fold(blocks: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Normaliser and entropy, (n,) each, of logits (n, V) that come in blocks of columns, float32 each."""
    top = total = moment = torch.zeros(())  # (n,): the largest, sum of exp(z - top), sum of (z - top) exp(z - top)
    for index, z in enumerate(blocks):
        before, top = top, torch.maximum(top, z.amax(-1)) if index else z.amax(-1)
        below = (z - top[:, None]).clamp_(min=-1e4)  # a logit of -inf is a probability of zero
        e = below.exp()
        added, moment_added = e.sum(-1), torch.einsum("nc,nc->n", e, below)
        if index:
            moved = before - top
            added, moment_added = added + total * moved.exp(), moment_added + (moment + total * moved) * moved.exp()
        total, moment = added, moment_added
    return top + total.log(), total.log() - moment / total


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
