"""A probe beside brute force in real trainings: for `test_probe_training.py`, and run by it on two ranks at once.

As a script: MODEL FOLDER HOW, in each rank; HOW is `ddp` or `fsdp2`. Prints the largest |difference|, and of how many
forwards.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from collapsewatch.formats import format_named
from collapsewatch.probe import ControlProbe, ProbeBatch
from tests.trl_training import trainer_of

FAST = 1e-2
"""Learning rate at which two forwards in a row are of weights that differ."""

PLACES = (torch.tensor([0, 1, 2]), torch.tensor([1, 4, 7]))
"""Rows and positions that a term of the loss is on."""


def control_of(tokenizer: Any) -> list[int]:
    bound = format_named("hermes").bind(tokenizer)
    ids: list[int] = bound.probe_ids.tolist()
    return ids


def difference(found: ProbeBatch, logp: torch.Tensor, control: list[int], wanted: torch.Tensor) -> float:
    """The largest |difference| from `logp` (B, P, V) over control tokens and the labels, which must be `wanted`."""
    assert torch.equal(found.labels, wanted)
    held = wanted != -100
    assert held.any()
    assert torch.isfinite(found.logp[held]).all() and torch.isnan(found.logp[~held]).all()
    own = logp.gather(2, wanted.clamp(min=0)[..., None])[..., 0]
    pairs = ((found.logp, logp[..., control]), (found.label_logp, own))
    return max(float((mine - theirs)[held].abs().max()) for mine, theirs in pairs)


@torch.no_grad()
def full_logits(trainer: GRPOTrainer, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) as they are trained on, before the temperature."""
    model, inputs = trainer.model, {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    with trainer.accelerator.autocast():
        if not trainer.args.cast_lm_head_to_fp32:
            return model(**inputs).logits.float()
        hidden = model.base_model(**inputs).last_hidden_state
    # Under autocast the model's own forward takes such a head back to bf16; TRL leaves autocast for it.
    return torch.nn.functional.linear(hidden.float(), model.lm_head.weight)


def probed(trainer: GRPOTrainer, control: list[int]) -> list[float]:
    """Trains; of each forward of the loss, the largest |difference| between a probe and full logits of the model."""
    fp32_head = trainer.args.cast_lm_head_to_fp32
    probe, errors = ControlProbe(trainer.model, control, trainer.temperature, fp32_head), list[float]()
    loss_of = trainer.compute_loss

    def compute_loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        logits = full_logits(trainer, ids, mask)
        loss = loss_of(model, inputs, *args, **kwargs)
        (found,) = probe.drain()
        wanted = ids.masked_fill(mask == 0, -100)[:, 1:]
        wanted[:, : inputs["prompt_ids"].size(1) - 1] = -100
        logp = (logits[:, :-1] / trainer.temperature).log_softmax(-1)
        errors.append(difference(found, logp, control, wanted))
        assert found.entropy is not None
        return loss

    trainer.compute_loss = compute_loss
    trainer.train()
    return errors


def ddp(folder: Path, model_path: Path) -> list[float]:
    """The real trainer, its model replicated on every rank; then a forward of the probe's own through the wrapper."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_path)
    settings = {"learning_rate": FAST, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    trainer = trainer_of(folder, model_path, tokenizer, **settings)
    control = control_of(tokenizer)
    errors = probed(trainer, control)
    assert trainer.accelerator.num_processes == 2
    wrapped = trainer.model_wrapped
    assert isinstance(wrapped, torch.nn.parallel.DistributedDataParallel)
    ids = torch.arange(12).reshape(2, 6) + trainer.accelerator.process_index  # another batch on each rank
    with torch.no_grad():
        logp = (trainer.model(input_ids=ids).logits / trainer.temperature)[:, :-1].log_softmax(-1)
    own = ControlProbe(wrapped, control, trainer.temperature).measure(ids)
    return [*errors, difference(own, logp, control, ids[:, 1:])]


def fsdp2(folder: Path, model_path: Path) -> list[float]:
    """A sharded model trained by hand, probed by hooks from before and from after it was sharded."""
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    rank, tokenizer = torch.distributed.get_rank(), PreTrainedTokenizerFast.from_pretrained(model_path)
    whole = Qwen2ForCausalLM.from_pretrained(model_path).train()
    add_fused_lm_head(whole, 0.7, outputs=("log_probs", "entropy"))
    sharded, control, errors = copy.deepcopy(whole), control_of(tokenizer), list[float]()
    sharded.forward = type(sharded).forward.__get__(sharded)  # the copy's still called the model it was copied from
    add_fused_lm_head(sharded, 0.7, outputs=("log_probs", "entropy"))
    probes = [ControlProbe(sharded, control, 0.7)]
    for layer in sharded.model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    probes.append(ControlProbe(sharded, control, 0.7))
    models = (whole, sharded)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        batches = torch.randint(0, len(tokenizer), (2, 3, 10), generator=draw)  # rank by rank
        ids = batches[rank]
        with torch.no_grad():
            logp = (whole(input_ids=ids, use_cache=False).logits[:, :-1] / 0.7).log_softmax(-1)
        errors += [difference(probe.measure(ids), logp, control, ids[:, 1:]) for probe in probes]
        probes[1].keep_live = True
        loss = sharded(input_ids=ids, labels=ids, fused_lm_head=True).loss
        assert probes[1].live is not None
        # A term on the control tokens: its gradient moves the weights that the next round is measured with.
        (loss + probes[1].control(probes[1].live, PLACES).exp().mean()).backward()
        for probe in probes:
            (found,) = probe.drain()
            errors.append(difference(found, logp, control, ids[:, 1:]))
        for each in batches:  # the mean over ranks, by hand
            (whole(input_ids=each, labels=each, fused_lm_head=True).loss / 2).backward()
            p = (whole(input_ids=each, use_cache=False).logits / 0.7).softmax(-1)
            (p[PLACES][:, control].mean() / 2).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return errors


if __name__ == "__main__":
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    found = {"ddp": ddp, "fsdp2": fsdp2}[sys.argv[3]](Path(sys.argv[2]), Path(sys.argv[1]))
    print(f"difference {max(found)} of {len(found)} forwards", flush=True)
    torch.distributed.destroy_process_group()
