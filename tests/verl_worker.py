"""One actor process of verl on this CPU: `verl_worker.py MODEL packed|padded OUT EPOCHS TEMPERATURE`."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import verl.plugin.platform.platform_manager as platforms
from verl.plugin.platform.platform_base import PlatformBase


class Cpu(PlatformBase):
    """This machine as a platform of verl's, by its own registry."""

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    communication_backend_name = lambda self: "gloo"  # noqa: E731
    visible_devices_envvar = lambda self: "NO_DEVICES"  # noqa: E731
    ray_resource_name = lambda self: "CPU"  # noqa: E731

    @property
    def device_module(self) -> ModuleType:
        return SimpleNamespace(  # type: ignore[return-value]
            max_memory_allocated=lambda: 0,
            max_memory_reserved=lambda: 0,
            empty_cache=lambda: None,
            current_device=lambda: "cpu",
            memory_allocated=lambda *a: 0,
            memory_reserved=lambda *a: 0,
            set_device=lambda *a: None,
            synchronize=lambda *a: None,
            mem_get_info=lambda *a: (0, 1),
            is_available=lambda: True,
            get_device_name=lambda *a: "cpu",
            device_count=lambda: 1,
        )


def _nothing(self: Any, *args: Any, **kwargs: Any) -> None:
    return None


for name in PlatformBase.__abstractmethods__:
    if not hasattr(Cpu, name) or getattr(Cpu, name) is getattr(PlatformBase, name):
        setattr(Cpu, name, _nothing)
Cpu.is_available = lambda self: True
Cpu.current_device = lambda self: "cpu"
Cpu.device_count = lambda self: 1
Cpu.__abstractmethods__ = frozenset()
platforms.set_platform(Cpu())

from tensordict import TensorDict  # noqa: E402
from verl.trainer.config import CheckpointConfig  # noqa: E402
from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.utils.tracking import Tracking  # noqa: E402
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig  # noqa: E402
from verl.workers.engine import EngineRegistry  # noqa: E402
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead  # noqa: E402
from verl.workers.engine_workers import TrainingWorker  # noqa: E402
from verl.workers.utils.padding import left_right_2_no_padding  # noqa: E402

EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device=["cpu"])(FSDPEngineWithLMHead)


def worker(path: str, packed: bool) -> TrainingWorker:
    full = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    return TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=HFModelConfig(
                path=path,
                use_remove_padding=packed,
                enable_gradient_checkpointing=False,
                override_config={"attn_implementation": "sdpa"},
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                use_torch_compile=False,
                model_dtype="fp32",
                dtype="float32",
                mixed_precision=full,
                use_dynamic_bsz=False,
                micro_batch_size_per_gpu=2,
            ),
            optimizer_config=FSDPOptimizerConfig(lr=1e-3, lr_warmup_steps=0, total_training_steps=10),
            checkpoint_config=CheckpointConfig(),
        )
    )


def rollouts(model: torch.nn.Module, size: int) -> TensorDict:
    """A batch as verl's trainer sends it: prompts padded left, responses right, half of the latter a tool's."""
    prompt, response = 6, 9
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 40, (size, prompt + response), generator=generator)
    ids[:, prompt + 3] = torch.arange(size) % 3 + model.config.vocab_size - 3  # markers
    attention = torch.ones_like(ids)
    attention[::2, :2] = 0
    attention[1::3, -2:] = 0
    mask = attention[:, prompt:].clone()
    mask[2::4, 4:6] = 0
    scores = torch.zeros(size, response)
    scores[:, 0] = torch.arange(size) / 10
    return TensorDict(
        {
            "input_ids": ids * attention,
            "attention_mask": attention,
            "position_ids": (attention.cumsum(1) - 1).clamp(min=0),
            "responses": ids[:, prompt:],
            "response_mask": mask,
            "advantages": (torch.arange(size) - 3.0)[:, None].expand(-1, response) * mask,
            "token_level_scores": scores,
            "rollout_log_probs": torch.full((size, response), -1.5),
        },
        batch_size=[size],
    )


def loss(model_output: dict[str, Any], data: TensorDict, dp_group: Any = None) -> tuple[torch.Tensor, dict[str, Any]]:
    """Pull the log-probs of all tokens up, in proportion to nothing."""
    return -model_output["log_probs"].values().mean(), {}


def brute(model: torch.nn.Module, batch: TensorDict, temperature: float) -> torch.Tensor:
    """log p (B, P + R - 1, V) of every token, row by row, without padding."""
    found = []
    with torch.no_grad():
        for ids, attention in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
            logits = model(input_ids=ids[attention][None]).logits[0, :-1] / temperature
            row = torch.full((len(ids) - 1, logits.size(1)), float("nan"))
            row[attention[:-1] & attention[1:]] = logits.log_softmax(-1)
            found.append(row)
    return torch.stack(found)


def main(path: str, packed: bool, out: str, epochs: int, temperature: float) -> None:
    dist.init_process_group("gloo")
    w = worker(path, packed)
    w.reset()
    w.set_loss_fn(loss)
    size = 4
    model = w.engine.module
    told = []
    tracking = Tracking("project", "experiment", "console")
    for step in (1, 2):
        batch = rollouts(model, size)
        names = [f"prompt {i // 2}" for i in range(size)]
        told.append(brute(model, batch, temperature))
        data = left_right_2_no_padding(batch.clone())
        tu.assign_non_tensor_stack(data, "uid", names)
        tu.assign_non_tensor(
            data,
            temperature=temperature,
            mini_batch_size=size if step == 1 else 2,  # the first update's forwards all see the weights before it
            epochs=epochs,
            seed=5,
            dataloader_kwargs={"shuffle": True},
            global_batch_size=size if step == 1 else 2,
            calculate_entropy=True,
        )
        w.train_mini_batch(data)
        tracking.log({"critic/score/mean": 0.25 * step, "perf/mfu": float("nan"), "note": "word"}, step)
    tracking.finish()
    if (watch := getattr(w.engine, "_collapsewatch", None)) is not None:
        watch.monitor.close()
    state = {name: value.full_tensor() for name, value in model.state_dict().items()}
    torch.save({"logp": told, "batch": dict(rollouts(model, size)), "weights": state}, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "packed", sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
