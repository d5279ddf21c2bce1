"""What only a CUDA device shows: the probe beside TRL's Triton kernel, and a training on the card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize(("bf16", "bound"), [(False, 1e-5), (True, 2e-3)])
def test_probe_agrees_with_full_logits_beside_the_triton_kernel(bf16: bool, bound: float) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from collapsewatch.probe import ControlProbe

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=32_000, initializer_range=0.1, **sizes, **heads)).cuda().train()
    add_fused_lm_head(model, 1.0, False, outputs=("log_probs", "entropy"))
    control = [5, 700, 31_999]
    probe = ControlProbe(model, control)
    ids = torch.randint(0, 32_000, (4, 64), device="cuda")
    labels = ids.clone()
    labels[:, :16] = -100
    cast = torch.autocast("cuda", dtype=torch.bfloat16) if bf16 else nullcontext()
    with cast:
        model(ids, labels=labels, fused_lm_head=True)
        (batch,) = probe.drain()
        with torch.no_grad():
            logits = model(ids).logits[:, :-1].float()
    brute = logits.log_softmax(-1)[..., control]
    mask = labels[:, 1:] != -100
    assert (batch.logp[mask] - brute[mask]).abs().max() <= bound
    with cast:
        own = probe.measure(ids.cpu(), labels=labels)
    assert (own.logp[mask] - brute[mask]).abs().max() <= bound
    assert (own.label_logp - batch.label_logp)[mask].abs().max() <= bound


@pytest.mark.parametrize("how", ["fused", "logits", "measure"])
def test_the_probe_allocates_next_to_nothing(how: str) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from collapsewatch.head import AT_ONCE
    from collapsewatch.probe import ControlProbe

    vocabulary, width, rows, length = 151_936, 1_536, 4, 512
    sizes = {"hidden_size": width, "intermediate_size": 256, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, tie_word_embeddings=True, **sizes, **heads))
    model = model.cuda().train()
    if how == "fused":
        add_fused_lm_head(model, 1.0, False, outputs=("log_probs", "entropy"))
    extra = []

    @contextmanager
    def watched() -> Iterator[None]:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield
        extra.append(torch.cuda.max_memory_allocated() - before)

    probe = ControlProbe(model, [5, 700, 31_999], guard=watched)
    ids = torch.randint(0, vocabulary, (rows, length), device="cuda")
    if how == "measure":
        with watched():
            probe.measure(ids)
    else:
        model(ids, labels=ids, **({"fused_lm_head": True} if how == "fused" else {}))
        assert len(probe.drain()) == 1
    whole = 4 * rows * length * vocabulary  # bytes of the logits in float32
    # A block of logits, what becomes of it on its way to a normaliser, and the hidden states; in the fused case none.
    bound = 8 * 4 * AT_ONCE if how != "fused" else 4 * 4 * rows * length * width + 4 * 4 * 4 * 32_768
    assert 0 < max(extra) <= bound < whole


@pytest.mark.parametrize("intervention", ["none", "sft_first", "control_clamp"])
def test_the_tiny_model_trains_on_the_card(tmp_path: Path, intervention: str) -> None:
    from collapsewatch.queries import open_run
    from collapsewatch.trainer.config import from_mapping
    from collapsewatch.trainer.train import train

    knobs = {"steps": 3, "warm_start": 0, "prompts": 2, "rollouts": 2, "logdir": str(tmp_path), "bf16": True}
    if intervention != "none":
        schedule = "first" if intervention == "sft_first" else "synchronous"
        knobs |= {"intervention": intervention, "schedule": schedule, "sft_updates": 3}
    run_dir = train(from_mapping(knobs, "test"))
    with closing(open_run(run_dir)) as run:
        assert run.status() == "finished"
        assert [record.step for record in run.records()] == [1, 2, 3]
        done = {row.status for row in run.applied()}
        assert done >= {"none": set(), "sft_first": {"applied"}, "control_clamp": {"begin"}}[intervention]
        assert not [event for event in run.events() if event.name == "fault"]
