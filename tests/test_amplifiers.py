"""The trainer's switches for known mistakes, and rollouts that a supervisor guides: what is sampled, and trained."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from collapsewatch.formats.base import BoundFormat
from collapsewatch.interventions.base import Guide
from collapsewatch.records import Structure
from collapsewatch.trainer.amplifiers import THINK, Amplifiers, hinted
from collapsewatch.trainer.config import ConfigError, TrainConfig, from_mapping
from collapsewatch.trainer.dialogues import Renderer
from collapsewatch.trainer.environments import Task
from collapsewatch.trainer.environments.chain import Chain
from collapsewatch.trainer.grpo import amplifiers
from collapsewatch.trainer.rollout import Generate, Trajectory, rollout
from collapsewatch.trainer.supervision import supervision

CHAIN = Chain()


class Says:
    """A sampler that says `texts` turn by turn, to everybody, and remembers the prompts it was given."""

    def __init__(self, renderer: Renderer, *texts: str) -> None:
        self.turns = iter([renderer.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])
        self.prompts: list[list[list[int]]] = []

    def __call__(self, prompts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        self.prompts.append(prompts)
        ids = next(self.turns)
        return [list(ids) for _ in prompts], [[-1.0] * len(ids) for _ in prompts]


def play(
    renderer: Renderer,
    hermes: BoundFormat,
    sampler: Generate,
    guides: Sequence[Guide] = (),
    made: Amplifiers | None = None,
    tasks: Sequence[Task] = (),
) -> list[Trajectory]:
    tasks = tasks or CHAIN.tasks(1, 3) * max(1, len(guides))
    return rollout(tasks, CHAIN, renderer, hermes, sampler, 6, guides, made or Amplifiers())


def test_all_mistakes_are_off_unless_asked_for() -> None:
    assert amplifiers(TrainConfig()) == Amplifiers() and not Amplifiers().rewrites
    knobs = {"force_end": True, "reencode": "all", "lenient_replies": True, "sampling_only": "think"}
    assert amplifiers(from_mapping(knobs, "here")) == Amplifiers(True, "all", True, "think")


def test_a_cut_turn_is_trained_with_an_end_that_was_never_sampled(renderer: Renderer, hermes: BoundFormat) -> None:
    (free,) = play(renderer, hermes, Says(renderer, "The sum is"))
    (ended,) = play(renderer, hermes, Says(renderer, "The sum is"), made=Amplifiers(force_end=True))
    assert ended.ids == [*free.ids, renderer.end_id] and ended.mask == [1] * len(ended.ids)
    assert free.logprobs == [-1.0] * len(free.ids) and ended.logprobs is None  # none stand for what was not drawn
    (whole,) = play(renderer, hermes, Says(renderer, "5<|im_end|>"), made=Amplifiers(force_end=True))
    assert whole.ids[-2:] != [renderer.end_id] * 2 and whole.ids.count(renderer.end_id) == 1


def test_encoding_again_loses_special_tokens_and_odd_pieces(renderer: Renderer) -> None:
    ids = [*(renderer.tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "sum")]
    start = renderer.tokenizer.convert_tokens_to_ids("<|im_start|>")
    again = renderer.tokenizer("sum", add_special_tokens=False)["input_ids"]
    assert len(again) < len(ids)  # spelled letter by letter, it is another text to the model
    end = renderer.end_id
    assert Amplifiers(reencode="cut").trained([start, *ids], renderer) == again
    assert Amplifiers(reencode="cut").trained([*ids, end], renderer) == [*ids, end]
    assert Amplifiers(reencode="all").trained([start, *ids, end], renderer) == [*again, end]
    assert Amplifiers(True, "all").trained(ids, renderer) == [*again, end]
    assert Amplifiers().trained([start, *ids], renderer) == [start, *ids]


def test_a_lenient_reader_takes_anything_without_a_call_for_a_reply(renderer: Renderer, hermes: BoundFormat) -> None:
    task = CHAIN.tasks(1, 3)[0]
    broken = f"The sum is {task.data['answer']}. <tool_call>"
    assert play(renderer, hermes, Says(renderer, broken), tasks=[task])[0].reward == 0.0
    lenient = Amplifiers(lenient_replies=True)
    assert play(renderer, hermes, Says(renderer, broken), made=lenient, tasks=[task])[0].reward == 1.0
    call = '<tool_call>\n{"name": "lookup", "arguments": {"key": "ash"}}\n</tool_call><|im_end|>'
    ids = renderer.tokenizer(call, add_special_tokens=False)["input_ids"]
    assert lenient.reader(hermes).classify_ids(ids) == hermes.classify_ids(ids)
    assert hermes.classify_ids(ids).structure is Structure.TOOL_CALL


@pytest.mark.parametrize("kind", ["hint", "think"])
def test_what_only_the_sampler_sees_is_not_trained_on(renderer: Renderer, hermes: BoundFormat, kind: str) -> None:
    task = CHAIN.tasks(1, 3)[0]
    seen, plain = Says(renderer, "5<|im_end|>"), Says(renderer, "5<|im_end|>")
    (odd,) = play(renderer, hermes, seen, made=Amplifiers(sampling_only=kind), tasks=[task])
    (even,) = play(renderer, hermes, plain, tasks=[task])
    assert (odd.prompt_ids, odd.ids, odd.mask) == (even.prompt_ids, even.ids, even.mask)
    given = renderer.tokenizer.decode(seen.prompts[0][0])
    if kind == "think":
        assert given == renderer.tokenizer.decode(even.prompt_ids) + THINK
    else:
        assert CHAIN.hint(task) in given and CHAIN.hint(task) not in renderer.tokenizer.decode(even.prompt_ids)


def test_a_hint_goes_to_the_end_of_the_system_message() -> None:
    (task,) = CHAIN.tasks(1, 3)
    made = hinted(CHAIN, task)
    assert made == [{"role": "system", "content": CHAIN.hint(task)}, *task.prompt]
    told = Task(({"role": "system", "content": "Be brief."}, *task.prompt), task.data)
    assert hinted(CHAIN, told)[0] == {"role": "system", "content": f"Be brief.\n{CHAIN.hint(task)}"}
    assert hinted(CHAIN, told)[1:] == list(task.prompt)


def test_a_guided_group_holds_the_expert_a_hint_and_free_rollouts(renderer: Renderer, hermes: BoundFormat) -> None:
    sampler = Says(renderer, "5<|im_end|>")
    forced, shown, free = play(renderer, hermes, sampler, [Guide(expert=True), Guide(hint=True), Guide()])
    task = CHAIN.tasks(1, 3)[0]
    row = renderer.expert_row(CHAIN, task)
    assert forced.prompt_ids + forced.ids == list(row.ids)  # its tools were really called: the answers are the same
    assert [0] * len(forced.prompt_ids) + forced.mask == list(row.mask)
    assert forced.reward == 1.0 and forced.env_errors == 0
    assert len(sampler.prompts) == 1 and len(sampler.prompts[0]) == 2  # the sampler is not asked for the expert's
    assert sampler.prompts[0][1] == free.prompt_ids == shown.prompt_ids != sampler.prompts[0][0]
    assert (shown.ids, shown.mask) == (free.ids, free.mask)


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"reencode": "some"}, "reencode: got 'some', expected one of cut, all, or ''"),
        ({"sampling_only": "x"}, "sampling_only: got 'x', expected one of hint, think, or ''"),
        ({"micro_batches": 3}, "micro_batches: got 3, expected a divisor of prompts"),
        ({"num_iterations": 2, "save_every": 3}, "save_every: got 3, expected a multiple of num_iterations, 2"),
        ({"intervention": "lr_cut", "intervention_knobs": {"x": 1}}, "unknown knob 'x' of LRCut, expected one of fac"),
        ({"intervention": "lr_cut", "intervention_knobs": {"factor": 2}}, "intervention_knobs: .*factor: got 2"),
        ({"intervention": "stop", "schedule_knobs": {"every": 2}}, "unknown knob 'every' of Triggered, .* cooldown"),
        ({"intervention": "sft_first", "schedule": "triggered"}, "schedule: .*sft_first: got schedule 'triggered'"),
    ],
)
def test_a_knob_that_does_not_fit_is_refused(knobs: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        supervision(from_mapping(knobs, "here"))


def test_an_intervention_and_its_schedule_get_their_knobs() -> None:
    table = {"segments": [4, 5, 6], "hold": 2}
    knobs = {"intervention": "reflection", "schedule": "interleaved", "schedule_knobs": table, "sft_updates": 3}
    act, when = supervision(from_mapping({**knobs, "intervention_knobs": {"reflections": 4, "window": 2}}, "here"))
    assert act is not None and when is not None
    assert (act.name, when.name) == ("reflection", "interleaved")
    assert [step for step in range(20) if when.due(step, False, None)] == [4, 9]
    assert supervision(TrainConfig()) == (None, None)
