"""Fixed probes against the same dialogues scored one by one with log_softmax over full logits, turn by turn."""

from __future__ import annotations

import math
import re
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from collapsewatch import classify
from collapsewatch.fixed import FixedProbe
from collapsewatch.formats import format_named, writer_named
from collapsewatch.interventions.sft import TokenRow
from collapsewatch.probe import ControlProbe
from collapsewatch.queries import open_run
from collapsewatch.report import analyze
from collapsewatch.trainer.config import ConfigError, from_mapping
from collapsewatch.trainer.dialogues import Renderer
from collapsewatch.trainer.environments.chain import Chain
from collapsewatch.trainer.models import tiny_model, tiny_tokenizer
from collapsewatch.trainer.train import train

CHAIN = Chain()
FORMATS = ["hermes", "bracket", "react", "qwen3_coder"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer(CHAIN)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return tiny_model(tokenizer, 3)


def dialogues(tokenizer: Any, name: str, count: int = 7) -> list[TokenRow]:
    renderer = Renderer(tokenizer, CHAIN, writer_named(name))
    return [renderer.expert_row(CHAIN, task) for task in CHAIN.tasks(count, 11)]


def probe_of(tokenizer: Any, name: str, rows: list[TokenRow], batch: int = 3) -> FixedProbe:
    return FixedProbe("fixed", rows, format_named(name).bind(tokenizer), tokenizer.pad_token_id, batch)


Turn = list[tuple[str, float, float]]


def turns(model: Any, tokenizer: Any, row: TokenRow, controls: list[int]) -> list[Turn]:
    """Each turn's tokens as text, with their log-probs and those of no control token: one row, full logits."""
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
    found: list[Turn] = []
    for t, (token, own) in enumerate(zip(row.ids, row.mask, strict=True)):
        if own:
            if not row.mask[t - 1]:
                found.append([])
            none = math.log(1 - float(logp[t - 1, controls].exp().sum()))
            found[-1].append((tokenizer.decode([token]), float(logp[t - 1, token]), none))
    return found


def expected(name: str, turn: Turn) -> tuple[float, float | None, float]:
    """The probabilities of a turn's frame, of what its call says in that, and of all of it; from its text."""
    text = "".join(piece for piece, _, _ in turn)
    markers = [m.span() for m in re.finditer("|".join(map(re.escape, format_named(name).role)), text)]
    frame, body, at = 0.0, 0.0, 0
    for piece, logp, none in turn:
        inside = not piece.strip() or any(begin < at + len(piece) and at < end for begin, end in markers)
        frame, body, at = frame + (logp if inside else none), body + (0 if inside else logp - none), at + len(piece)
    called = classify(text, name).structure == "tool_call"
    return math.exp(frame), math.exp(body) if called else None, math.exp(sum(logp for _, logp, _ in turn))


@pytest.mark.parametrize("name", FORMATS)
def test_every_metric_is_that_of_the_turns_one_by_one(model: Any, tokenizer: Any, name: str) -> None:
    rows = dialogues(tokenizer, name)
    probe = ControlProbe(model, [0])
    told, _ = probe_of(tokenizer, name, rows).score(probe)
    probe.close()
    controls = format_named(name).bind(tokenizer).ids.tolist()
    own = [turn for row in rows for turn in turns(model, tokenizer, row, controls)]
    parts = [expected(name, turn) for turn in own]
    assert told["fixed/logp"] == pytest.approx(fmean(logp for turn in own for _, logp, _ in turn), abs=1e-5)
    assert told["fixed/format"] == pytest.approx(fmean(frame for frame, _, _ in parts), rel=1e-4)
    assert told["fixed/content"] == pytest.approx(fmean(body for _, body, _ in parts if body is not None), rel=1e-4)
    assert told["fixed/turn"] == pytest.approx(fmean(whole for _, _, whole in parts), rel=1e-4)
    assert {body is None for _, body, _ in parts} == {True, False}  # calls and answers


def test_a_spike_where_no_control_token_belongs_costs_the_format_and_not_the_content(tokenizer: Any) -> None:
    model, rows = tiny_model(tokenizer, 3), dialogues(tokenizer, "hermes")
    probe = ControlProbe(model, [0])
    before, _ = probe_of(tokenizer, "hermes", rows).score(probe)
    end = torch.nn.Linear(model.config.hidden_size, len(tokenizer))
    with torch.no_grad():
        end.weight.copy_(model.lm_head.weight)
        end.bias.zero_()[tokenizer.convert_tokens_to_ids("<tool_response>")] = 8.0  # that no turn ever holds
    model.lm_head = end
    probe.close()
    probe = ControlProbe(model, [0])
    after, _ = probe_of(tokenizer, "hermes", rows).score(probe)
    probe.close()
    assert after["fixed/format"] < before["fixed/format"] / 10 and after["fixed/turn"] < before["fixed/turn"] / 10
    assert after["fixed/hazard"] > 2 * before["fixed/hazard"]
    assert after["fixed/content"] == pytest.approx(before["fixed/content"], rel=1e-3)


def test_control_rows_hold_the_probabilities_at_their_slots(model: Any, tokenizer: Any) -> None:
    rows = dialogues(tokenizer, "hermes")
    probe = ControlProbe(model, [0])
    told, control = probe_of(tokenizer, "hermes", rows).score(probe)
    probe.close()
    assert {row.probe for row in control} == {"fixed"}
    (start,) = [row for row in control if (row.token, row.slot) == ("<tool_call>", "start")]
    begins, illegal, count = [], 0.0, 0
    opens, ends = (tokenizer.convert_tokens_to_ids(token) for token in ("<tool_call>", "<|im_end|>"))
    closes = tokenizer.convert_tokens_to_ids("</tool_call>")
    for row in rows:
        with torch.no_grad():
            p = model(input_ids=torch.tensor([row.ids])).logits[0].softmax(-1)
        for t in range(1, len(row.ids)):
            if row.mask[t] and not row.mask[t - 1]:
                count += 1
                begins.append(float(p[t - 1, opens]))
                # At the start of a turn neither a close nor an end is legal.
                illegal += sum(-math.log1p(-float(p[t - 1, token])) for token in (closes, ends))
    assert start.legal and start.n == len(begins) and start.mean == pytest.approx(fmean(begins), rel=1e-4)
    at_start = [row for row in control if row.slot == "start" and row.token in ("</tool_call>", "<|im_end|>")]
    assert sum(row.hazard for row in at_start) == pytest.approx(illegal / count, rel=1e-4)
    assert told["fixed/hazard"] == pytest.approx(sum(row.hazard for row in control if not row.legal), rel=1e-6)


def test_the_size_of_a_batch_and_the_probes_own_tokens_change_nothing(model: Any, tokenizer: Any) -> None:
    rows = dialogues(tokenizer, "bracket")
    scores = []
    for batch, own in ((1, [0]), (3, [5, 6]), (64, [])):
        probe = ControlProbe(model, own)
        scores.append(probe_of(tokenizer, "bracket", rows, batch).score(probe))
        probe.close()
    for told, control in scores[1:]:
        assert told == pytest.approx(scores[0][0], rel=1e-4)
        assert [(r.token, r.slot, r.n, r.sampled) for r in control] == [
            (r.token, r.slot, r.n, r.sampled) for r in scores[0][1]
        ]


def test_scoring_leaves_training_as_it_was(tokenizer: Any) -> None:
    model = tiny_model(tokenizer, 4)
    model.train()
    probe = ControlProbe(model, [0])
    before, draws = [p.clone() for p in model.parameters()], torch.get_rng_state()
    probe_of(tokenizer, "hermes", dialogues(tokenizer, "hermes")).score(probe)
    assert model.training and torch.equal(torch.get_rng_state(), draws) and not probe.drain() and probe.armed
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))
    probe.close()


def test_a_set_with_nothing_to_score_is_refused(tokenizer: Any) -> None:
    bound = format_named("hermes").bind(tokenizer)
    for rows in ([], [TokenRow([1, 2, 3], [0, 0, 0])]):
        with pytest.raises(ValueError, match=rf"alternate probe: got {len(rows)} dialogues without a turn"):
            FixedProbe("alternate", rows, bound, 0)


KNOBS = {"warm_start": 0, "steps": 5, "prompts": 1, "rollouts": 2, "max_turns": 1, "max_turn_tokens": 6}


def trained(folder: Path, **knobs: Any) -> Path:
    return train(from_mapping({**KNOBS, "logdir": str(folder), "save_model": True, **knobs}, "test"))


def test_a_training_scores_its_probes_and_is_not_changed_by_them(tmp_path: Path) -> None:
    on = {"probe_every": 3, "probe_tasks": 4, "alternate_format": "bracket"}
    probed = trained(tmp_path, name="probed", **on)
    plain = trained(tmp_path, name="plain", probe_every=0)
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (probed, plain)]
    assert weights[0] == weights[1]
    with closing(open_run(probed)) as run:
        records = list(run.records(detail=True))
    kinds = ("logp", "format", "content", "turn", "hazard")
    names = {f"{probe}/{kind}" for probe in ("fixed", "alternate") for kind in kinds}
    assert [r.step for r in records if names <= r.metrics.keys()] == [1, 3, 5]  # the last step, too
    assert [r.step for r in records if any(row.probe == "alternate" for row in r.control)] == [1, 3, 5]
    assert all(any(row.probe == "policy" for row in r.control) for r in records)
    # What was stored last is what the model that was kept gives: scored anew, outside of any training.
    tokenizer = tiny_tokenizer(CHAIN)
    kept = type(tiny_model(tokenizer, 0)).from_pretrained(probed / "model")
    rows = [Renderer(tokenizer, CHAIN).expert_row(CHAIN, task) for task in CHAIN.tasks(4, 999_983)]
    probe = ControlProbe(kept, [])
    told, _ = probe_of(tokenizer, "hermes", rows).score(probe)
    assert told["fixed/logp"] == pytest.approx(records[-1].metrics["fixed/logp"], abs=1e-5)
    (report,) = analyze(probed)
    assert report.capability is not None and report.capability.format.probe == "fixed/turn"
    assert report.capability.format.start == records[0].metrics["fixed/turn"]
    with closing(open_run(plain)) as run:
        assert not any("fixed/logp" in r.metrics for r in run.records())


def test_an_alternate_that_is_the_trained_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="alternate_format: got 'hermes', expected another"):
        trained(tmp_path, alternate_format="hermes")
    with pytest.raises(ConfigError, match="alternate_format: got 'hermes', which the model is trained in"):
        trained(tmp_path, alternate_format="hermes", chat_format="auto")
