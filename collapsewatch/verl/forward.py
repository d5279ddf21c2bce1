"""Control-token log-probabilities out of the forward of verl's FSDP engine.

The engine has logits and takes the labels' log-probs from them: `log Z = z_label - logp_label`, so that K columns
and the labels' own are all that is read. Source: the same identity as in `collapsewatch.probe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Columns = tuple[torch.Tensor, torch.Tensor]


@torch.no_grad()
def read_columns(engine: Any, output: Any, output_args: Mapping[str, Any], ids: torch.Tensor) -> Columns | None:
    """Logits over temperature of the control tokens `ids` (K,) and of the labels, packed: (n, K), (n,).

    Taken before the engine goes on with its logits. None with fused kernels, whose forward makes no logits.

    Raises:
        ValueError: logits that tensor parallelism has split.
    """
    logits = getattr(output, "logits", None)
    if logits is None:
        return None
    if hasattr(logits, "full_tensor"):
        raise ValueError("verl: got logits split by tensor parallelism, expected whole ones")
    labels = output_args["input_ids_rmpad_rolled"]  # (n,), of this process's part under sequence parallelism
    ids = ids.to(logits.device)
    if "temperature_rmpad" in output_args:  # packed
        rows, temperature = logits[0], output_args["temperature_rmpad"]  # (n, V), (n,)
        control, label = rows[:, ids], rows.gather(1, labels[:, None])[:, 0]  # (n, K), (n,)
        pad = output_args["pad_size"]
        control, label = (
            engine._gather_and_unpad_packed(part.float() / _for(part, temperature), pad) for part in (control, label)
        )
        return control, label
    lengths = output_args["collapsewatch_lengths"]  # (B,)
    inside = torch.arange(logits.size(1), device=logits.device) < lengths[:, None]  # (B, j)
    temperature = output_args["temperature"].repeat_interleave(lengths)  # (n,)
    places = inside.nonzero(as_tuple=True)
    control = logits[..., ids][inside]  # (n, K)
    label = logits[(*places, labels)]  # (n,)
    return control.float() / temperature[:, None], label.float() / temperature


def log_probs(columns: Columns, model_output: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """`logp` (n, K), `label_logp` (n,) and, where the engine computed it, `entropy` (n,), packed."""
    control, label = columns
    label_logp = model_output["log_probs"].detach().values().float()
    return {"logp": control + (label_logp - label)[:, None], **outcome(model_output)}


def outcome(model_output: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What the engine itself computed, packed (n,)."""
    names = {"log_probs": "label_logp", "entropy": "entropy"}
    return {names[key]: model_output[key].detach().values() for key in names if model_output.get(key) is not None}


def _for(part: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return temperature[:, None] if part.dim() == 2 else temperature
