"""The control-token probe against log_softmax over full logits, on the same weights."""

from __future__ import annotations

import copy
import math
import re
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from collapsewatch import head as head_module
from collapsewatch import probe as probe_module
from collapsewatch.head import fold
from collapsewatch.probe import ControlProbe
from collapsewatch.queries import open_run

V, CONTROL = 500, [3, 17, 250, 499]
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def tied() -> Any:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))


def untied() -> Any:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False))


def biased() -> Any:
    model = untied()
    model.lm_head = torch.nn.Linear(64, V, bias=True)
    torch.nn.init.normal_(model.lm_head.bias, std=2.0)
    return model


def soft_capped() -> Any:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=32, final_logit_softcapping=5.0, sliding_window=32))


def scaled() -> Any:
    return CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3))


def divided() -> Any:
    return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0))


MODELS = [tied, untied, biased, soft_capped, scaled, divided]


def made(build: Any, temperature: float = 1.0, fused: bool = True, fp32_head: bool = False) -> Any:
    torch.manual_seed(1)
    model = build().train()
    if fused:
        add_fused_lm_head(model, temperature, fp32_head, outputs=("log_probs", "entropy"))
    return model


def batch(rows: int = 3, length: int = 24, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ids, some of them control tokens; the first third is prompt, rows end at different places."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, V, (rows, length), generator=draw)
    ids[torch.rand(ids.shape, generator=draw) < 0.2] = CONTROL[1]
    attention = (torch.arange(length) < torch.tensor([length - 4 * i for i in range(rows)])[:, None]).long()
    labels = ids.masked_fill(attention == 0, -100)
    labels[:, : length // 3] = -100
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def brute(model: Any, inputs: dict[str, torch.Tensor], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities (B, T-1, V) from the logits that the model's own forward makes."""
    with torch.no_grad():
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return (logits[:, :-1].float() / temperature).log_softmax(-1)


def compare(found: probe_module.ProbeBatch, expected: torch.Tensor) -> float:
    """The largest |difference| over control tokens and labels; checks where values stand."""
    held = found.labels != -100
    assert held.any() and not held.all()
    assert torch.isfinite(found.logp[held]).all() and torch.isnan(found.logp[~held]).all()
    control = (found.logp - expected[..., CONTROL])[held].abs().max()
    own = expected.gather(2, found.labels.clamp(min=0)[..., None])[..., 0]
    label = (found.label_logp - own)[held].abs().max()
    return max(float(control), float(label))


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "logits"])
def test_probe_agrees_with_brute_force(build: Any, temperature: float, fused: bool) -> None:
    model, inputs = made(build, temperature, fused), batch()
    probe = ControlProbe(model, CONTROL, temperature)
    expected = brute(model, inputs, temperature)
    out = model(**inputs, **({"fused_lm_head": True} if fused else {}), use_cache=False)
    (found,) = probe.drain()
    assert compare(found, expected) <= 1e-5
    assert probe.drain() == []
    if fused:
        assert found.max_error <= 1e-5
        held = found.labels != -100
        assert torch.equal(found.entropy[held], out.entropy.detach()[held])
        entropy = -(expected.exp() * expected).sum(-1)
        torch.testing.assert_close(found.entropy[held], entropy[held], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("fp32_head", [False, True], ids=["bf16_head", "fp32_head"])
def test_probe_under_bf16_autocast(build: Any, fp32_head: bool) -> None:
    model, inputs = made(build, 0.7, fp32_head=fp32_head), batch()
    probe = ControlProbe(model, CONTROL, 0.7, fp32_head)
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs, fused_lm_head=True)
        with torch.no_grad():
            hidden = model.base_model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state[:, :-1]
    # What is trained on rounds the logits once, before scale and cap; a model's own forward rounds them again after.
    dtype = torch.float32 if fp32_head else torch.bfloat16
    head = model.get_output_embeddings()
    logits = torch.nn.functional.linear(hidden.to(dtype), head.weight.detach().to(dtype))
    if head.bias is not None:
        logits = logits + head.bias.detach().to(dtype)
    logits = logits.float() * {scaled: 0.3, divided: 0.25}.get(build, 1.0)
    if build is soft_capped:
        logits = 5.0 * torch.tanh(logits / 5.0)
    (found,) = probe.drain()
    assert compare(found, (logits / 0.7).log_softmax(-1)) <= 2e-3
    assert found.max_error <= 2e-3


def test_self_check_finds_a_wrong_temperature_scale_cap_and_head() -> None:
    inputs = batch()
    model = made(tied, temperature=0.7)
    errors = {}
    for temperature in (0.7, 1.0):
        probe = ControlProbe(model, CONTROL, temperature)
        model(**inputs, fused_lm_head=True)
        errors[temperature] = probe.drain()[0].max_error
        probe.close()
    assert errors[0.7] <= 1e-5 < 0.1 < errors[1.0]
    for build, name in ((soft_capped, "final_logit_softcapping"), (scaled, "logit_scale"), (divided, "logits_scaling")):
        model = made(build)
        setattr(model.config, name, 2.0)  # after TRL has read it
        probe = ControlProbe(model, CONTROL)
        model(**inputs, fused_lm_head=True)
        assert probe.drain()[0].max_error > 0.05, name
    model = made(untied, fp32_head=True)
    probe = ControlProbe(model, CONTROL)  # not told of it
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs, fused_lm_head=True)
    assert probe.drain()[0].max_error > 1e-4


def test_self_check_comes_first_and_then_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_CHECK_EVERY", 3)
    model, inputs = made(tied), batch()
    probe = ControlProbe(model, CONTROL)
    for _ in range(7):
        model(**inputs, fused_lm_head=True)
    checked = [not torch.tensor(found.max_error).isnan() for found in probe.drain()]
    assert checked == [True, False, False, True, False, False, True]


@settings(max_examples=25, deadline=None)
@given(
    labelled=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=3),
    chunk=st.integers(1, 9),
    columns=st.integers(1, 600),
    seed=st.integers(0, 99),
)
def test_any_mask_in_any_chunks(labelled: list[list[bool]], chunk: int, columns: int, seed: int) -> None:
    inputs = batch(len(labelled), 9, seed)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["labels"] = inputs["input_ids"].masked_fill(~torch.tensor(labelled), -100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "AT_ONCE", chunk * columns)
        patch.setattr(head_module, "COLUMNS", columns)
        probe = ControlProbe(SHARED, range(V))
        SHARED(**inputs, fused_lm_head=True)
        probe.close()
    (found,) = probe.drain()
    held = found.labels != -100
    assert torch.equal(held, torch.tensor(labelled)[:, 1:])
    assert torch.isnan(found.logp[~held]).all()
    if held.any():
        torch.testing.assert_close(found.logp[held], brute(SHARED, inputs)[held], atol=1e-5, rtol=0)
        assert found.logp[held].logsumexp(-1).abs().max() <= 1e-5
        assert found.max_error <= 1e-5


SHARED = made(biased)


def test_gradient_checkpointing_is_seen_once() -> None:
    model, inputs = made(tied), batch()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    probe = ControlProbe(model, CONTROL)
    model(**inputs, fused_lm_head=True).loss.backward()
    (found,) = probe.drain()
    assert compare(found, brute(model, inputs)) <= 1e-5


def test_only_training_forwards_are_collected() -> None:
    model, inputs = made(tied), batch()
    reference = copy.deepcopy(model)
    probe = ControlProbe(model, CONTROL)
    with torch.no_grad():
        model(**inputs, fused_lm_head=True)  # the old policy's, or a reference adapter's pass
    reference(**inputs, fused_lm_head=True)
    with torch.no_grad():
        model(input_ids=inputs["input_ids"], use_cache=False)
    model.generate(inputs["input_ids"][:, :4], attention_mask=inputs["attention_mask"][:, :4], max_new_tokens=2)
    with probe.disarmed():
        model(**inputs, fused_lm_head=True)
        with probe.disarmed():
            pass
        model(**inputs, use_cache=False)
    assert probe.drain() == []
    model(**inputs, fused_lm_head=True)
    assert len(probe.drain()) == 1


def test_without_labels_the_input_is_read_where_the_mask_shows_it() -> None:
    model, inputs = made(tied, fused=False), batch()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    probe, expected = ControlProbe(model, CONTROL), brute(model, inputs)
    model(input_ids=ids, attention_mask=mask, use_cache=False)
    model(ids, mask, use_cache=False)
    for found in probe.drain():
        assert torch.equal(found.labels, ids.masked_fill(mask == 0, -100)[:, 1:])
        assert compare(found, expected) <= 1e-5
    model(ids, use_cache=False)  # nothing is padding
    model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=False)  # nothing says which tokens these were
    (found,) = probe.drain()
    assert torch.equal(found.labels, ids[:, 1:])


def test_the_last_logits_alone() -> None:
    model, inputs = made(tied, fused=False), batch()
    expected = brute(model, inputs)
    probe = ControlProbe(model, CONTROL)
    model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=9, use_cache=False)
    (found,) = probe.drain()
    assert found.labels.shape == (3, 8) and compare(found, expected[:, -8:]) <= 1e-5


def test_entropy_of_logits() -> None:
    model, inputs = made(tied, fused=False), batch()
    probe, expected = ControlProbe(model, CONTROL), brute(model, inputs)
    model(**inputs, use_cache=False)
    (found,) = probe.drain()
    held = found.labels != -100
    entropy = -(expected.exp() * expected).sum(-1)
    assert found.entropy is not None and torch.isnan(found.entropy[~held]).all()
    torch.testing.assert_close(found.entropy[held], entropy[held], atol=1e-5, rtol=1e-5)


def test_labels_that_are_shifted_already() -> None:
    """As TRL's AsyncGRPO packs several rollouts into one row."""
    model, inputs = made(untied), batch(rows=1)
    ids, labels = inputs["input_ids"], inputs["labels"]
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    shifted[:, -1] = 7  # a label behind the last token: only shifted ones can stand there
    probe = ControlProbe(model, CONTROL)
    model(input_ids=ids, position_ids=torch.arange(ids.size(1))[None], shift_labels=shifted, fused_lm_head=True)
    (found,) = probe.drain()
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)  # (B, T, V)
    assert torch.equal(found.labels, shifted) and found.max_error <= 1e-5
    assert compare(found, expected) <= 1e-5


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_forward_of_its_own(build: Any, temperature: float) -> None:
    model, inputs = made(build, temperature, fused=False), batch()
    model.base_model.layers[0].eval()  # somebody's own choice
    modes = [module.training for module in model.modules()]
    probe, other = ControlProbe(model, CONTROL, temperature), ControlProbe(model, CONTROL)
    expected = brute(model, inputs, temperature)
    found = probe.measure(**inputs)
    assert compare(found, expected) <= 1e-5 and not found.logp.requires_grad
    held = found.labels != -100
    entropy = -(expected.exp() * expected).sum(-1)
    torch.testing.assert_close(found.entropy[held], entropy[held], atol=1e-4, rtol=1e-4)
    every = probe.measure(inputs["input_ids"], inputs["attention_mask"], token_ids=[5])
    assert torch.equal(every.labels, inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)[:, 1:])
    held = every.labels != -100
    assert (every.logp[..., 0] - expected[..., 5])[held].abs().max() <= 1e-5
    assert [module.training for module in model.modules()] == modes
    assert probe.drain() == other.drain() == [] and probe.armed


def test_a_forward_of_its_own_amid_training_has_no_dropout_and_changes_nothing() -> None:
    model, inputs = made(tied), batch()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    probe = ControlProbe(model, CONTROL)
    torch.manual_seed(3)
    first = probe.measure(**inputs)
    again, drawn = probe.measure(**inputs), torch.rand(1)
    assert torch.equal(first.label_logp.nan_to_num(), again.label_logp.nan_to_num())
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    model(**inputs, fused_lm_head=True).loss.backward()
    assert len(probe.drain()) == 1


def test_a_forward_of_its_own_under_bf16_autocast() -> None:
    model, inputs = made(tied, 0.7), batch()
    probe = ControlProbe(model, CONTROL, 0.7)
    with torch.autocast("cpu", torch.bfloat16):
        found = probe.measure(**inputs)
        out = model(**inputs, fused_lm_head=True)
    (trained,) = probe.drain()
    assert (found.label_logp - out.log_probs)[found.labels != -100].abs().max() <= 2e-3
    torch.testing.assert_close(found.logp, trained.logp, atol=2e-3, rtol=0, equal_nan=True)


class Largest(TorchDispatchMode):
    """The most elements that any tensor made inside holds."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        shared = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if hasattr(leaf, "shape")}
        sizes = [leaf.numel() for leaf in made if leaf.untyped_storage().data_ptr() not in shared]  # a view is none
        self.size = max([self.size, *sizes])
        return out


@pytest.mark.parametrize("how", ["fused", "logits", "measure"])
def test_nothing_of_positions_by_vocabulary_is_made(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, length, vocabulary, width = 2, 256, 40_000, 8
    sizes = {**SIZES, "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1}
    model = made(lambda: Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=False)), fused=how == "fused")
    inputs: dict[str, Any] = {"input_ids": torch.randint(2, vocabulary, (rows, length)), "use_cache": False}
    inputs["labels"] = inputs["input_ids"]
    seen = Largest()
    if how == "measure":
        with seen:
            ControlProbe(model, CONTROL).measure(inputs["input_ids"])
    else:
        # The first forward is checked against the whole head, at four positions; those that follow are not.
        monkeypatch.setattr(probe_module, "_CHECK_ROWS", 4)
        first = Largest()
        guards = iter([nullcontext(), first, nullcontext(), seen])  # the guard is what the hooks work in
        probe = ControlProbe(model, CONTROL, guard=lambda: next(guards))
        for _ in range(2):
            model(**inputs, **({"fused_lm_head": True} if how == "fused" else {}))
        assert len(probe.drain()) == 2
        assert first.size <= max(head_module.AT_ONCE, 4 * head_module.COLUMNS)
    positions = rows * (length - 1)
    assert positions * vocabulary > head_module.AT_ONCE
    assert 0 < seen.size <= (head_module.AT_ONCE if how != "fused" else positions * width) < positions * vocabulary
    assert how != "fused" or seen.size < vocabulary * width


@given(
    st.lists(st.lists(st.floats(-200, 200) | st.just(-math.inf), min_size=1, max_size=5), min_size=1, max_size=4),
    st.floats(-200, 200),
)
def test_blocks_fold_into_normaliser_and_entropy(blocks: list[list[float]], first: float) -> None:
    parts = [torch.tensor([block]) for block in ([first, *blocks[0]], *blocks[1:])]
    whole = torch.cat(parts, dim=1).double()
    log_z, entropy = fold(parts)
    logp = whole.log_softmax(-1)
    assert float((log_z - whole.logsumexp(-1)).abs()) <= 1e-4
    assert float((entropy + torch.special.xlogy(logp.exp(), logp.exp()).sum(-1)).abs()) <= 1e-5


def test_forward_and_gradients_are_untouched_and_hooks_go() -> None:
    model, inputs = made(tied), batch()
    probe = ControlProbe(model, CONTROL)
    results = []
    for each in (model, made(tied)):
        out = each(**inputs, fused_lm_head=True)
        out.loss.backward()
        results.append((out.log_probs, [p.grad for p in each.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    probe.close()
    assert not any(module._forward_hooks for module in model.modules())
    probe.drain()
    model(**inputs, fused_lm_head=True)
    assert probe.drain() == []


def test_a_wrapper_that_calls_forward_past_the_hooks() -> None:
    """As PEFT's tuners do: the base model's own hooks never run."""

    class Wrapper(torch.nn.Module):
        def __init__(self, base: Any) -> None:
            super().__init__()
            self.base = base

        def get_base_model(self) -> Any:
            return self.base

        def forward(self, **kwargs: Any) -> Any:
            return self.base.forward(**kwargs)

    model, inputs = made(untied), batch()
    wrapper = Wrapper(model)
    probe = ControlProbe(wrapper, CONTROL)
    wrapper(**inputs, fused_lm_head=True)
    (found,) = probe.drain()
    assert compare(found, brute(model, inputs)) <= 1e-5


def test_a_lora_adapter() -> None:
    model, inputs = made(untied), batch()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    probe = ControlProbe(adapted, CONTROL)
    adapted(**inputs, fused_lm_head=True)
    (found,) = probe.drain()
    assert compare(found, brute(adapted, inputs)) <= 1e-5
    assert compare(probe.measure(**inputs), brute(adapted, inputs)) <= 1e-5


def test_a_failure_of_the_hooks_goes_to_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = made(tied), batch()
    for guard, outcome in ((nullcontext, pytest.raises(RuntimeError, match="torn")), (None, nullcontext())):
        probe = ControlProbe(model, CONTROL, guard=guard or (lambda: suppress(RuntimeError)))
        monkeypatch.setattr(probe._head, "transform", _torn)
        with outcome:
            out = model(**inputs, fused_lm_head=True)
            out.loss.backward()
        assert probe.drain() == []
        probe.close()


def _torn(*args: Any) -> Any:
    raise RuntimeError("torn")


def test_the_loop_of_the_documentation_runs(
    tmp_path: Path, model_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()
    (code,) = re.findall(r"## A PyTorch loop of your own.*?```python\n(.*?)```", text, re.DOTALL)
    model = Qwen2ForCausalLM.from_pretrained(model_path).train()
    turns = ['hi{"a": 1}', "look", '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "</tool_call>a"]
    rows = tokenizer([f"what?{turn}<|im_end|>" for turn in turns], padding=True, return_tensors="pt")
    ids, mask = rows["input_ids"], rows["attention_mask"]
    own = (torch.arange(ids.size(1)) >= len("what?")) & (mask == 1)
    numbers = {"prompt": [0, 0, 1, 1], "reward": [0.0, 1.0, 1.0, 0.0], "advantage": [-1.0, 1.0, 1.0, -1.0]}
    batch = {"input_ids": ids, "attention_mask": mask, "own": own} | {k: torch.tensor(v) for k, v in numbers.items()}
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "batches": [batch, batch]}
    exec(code, names)
    with closing(open_run(tmp_path / "logs" / "my-run")) as run:
        records = list(run.records(detail=True))
    assert [record.step for record in records] == [1, 2]
    assert records[0].metrics["reward"] == 0.5 and records[0].metrics["entropy"] > 0
    assert [row.structure for row in records[0].rollouts] == ["response", "response", "tool_call", "polluted"]
    # What `measure` would have read is what the hooks read.
    found = ControlProbe(model, names["bound"].probe_ids.tolist()).measure(ids, mask, names["labels"])
    held = found.labels != -100
    assert (found.logp - names["read"].logp)[held].abs().max() <= 1e-5


def test_zero_3_is_refused() -> None:
    model = made(untied)
    model.lm_head.weight.ds_id = 7  # how DeepSpeed marks a parameter whose values are elsewhere
    with pytest.raises(ValueError, match=r"probe: got ZeRO-3.*expected"):
        ControlProbe(model, CONTROL)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got Qwen2Model, expected a causal LM"):
        ControlProbe(made(tied, fused=False).base_model, CONTROL)
