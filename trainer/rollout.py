"""The multi-turn rollout loop: sample a turn, execute its calls, append the results, until the episode ends.

Sampled ids are kept exactly as sampled; environment text is tokenized once and masked. A turn goes to the
environment only if it is whole: a malformed or truncated turn ends the episode with whatever reward stands.

A rollout may be guided: sampled with a hint in its prompt that is not trained on, or made to take the expert's turns,
which the environment executes as it does the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from collapsewatch.interventions.base import Guide
from collapsewatch.records import Structure

from .amplifiers import Amplifiers, Reader, hinted
from .dialogues import Renderer
from .environments.base import Environment, Episode, Message, Task

Generate = Callable[[list[list[int]]], tuple[list[list[int]], list[list[float]] | None]]
"""Prompts' ids -> sampled ids per prompt, and their log-probs where the sampler gives them."""

NONE = Amplifiers()


@dataclass
class Trajectory:
    """One rollout under way; `ids` and `mask` hold what follows the prompt.

    `shown`: the prompt as the sampler is given it. `forced`: the turns still to be taken, where they are the expert's.
    """

    episode: Episode
    prompt_ids: list[int]
    shown: list[int]
    forced: list[list[int]] | None = None
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    env_errors: int = 0
    reward: float | None = None

    def extend(self, ids: list[int], sampled: bool, logprobs: list[float] | None = None) -> None:
        self.ids += ids
        self.mask += [int(sampled)] * len(ids)
        if logprobs is not None or self.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *(logprobs or [0.0] * len(ids))]


def rollout(
    tasks: Sequence[Task],
    environment: Environment,
    renderer: Renderer,
    chat_format: Reader,
    generate: Generate,
    max_turns: int,
    guides: Sequence[Guide] = (),
    amplifiers: Amplifiers = NONE,
) -> list[Trajectory]:
    """Play one episode per task, all of them turn by turn together; `guides`: one per task, or none."""
    reader, behind = amplifiers.reader(chat_format), amplifiers.behind(renderer)
    played = [
        _begin(task, environment, renderer, guide, amplifiers.sampling_only == "hint")
        for task, guide in zip(tasks, guides or [Guide()] * len(tasks), strict=True)
    ]
    active = played
    for turn in range(max_turns):
        free = [t for t in active if t.forced is None]
        sampled, logprobs = generate([t.shown + t.ids + behind for t in free]) if free else ([], None)
        if amplifiers.rewrites:
            sampled, logprobs = [amplifiers.trained(ids, renderer) for ids in sampled], None
        drawn = iter(zip(sampled, logprobs or [None] * len(sampled), strict=True))
        going = []
        for trajectory in active:
            ids, own = next(drawn) if trajectory.forced is None else (trajectory.forced.pop(0), None)
            trajectory.extend(ids, True, own)
            answer = _environment_turn(trajectory, ids, renderer, reader)
            if answer and turn + 1 < max_turns and trajectory.forced != []:
                trajectory.extend(renderer.bridge(answer), False)
                going.append(trajectory)
        active = going
        if not active:
            break
    for trajectory in played:
        _score(trajectory)
    return played


def _begin(task: Task, environment: Environment, renderer: Renderer, guide: Guide, hint: bool) -> Trajectory:
    """A rollout before its first turn."""
    prompt = renderer.prompt(task.prompt, task.tools)
    trajectory = Trajectory(environment.start(task), prompt, prompt)
    if guide.expert:
        row = renderer.expert_row(environment, task)
        pieces = groupby(zip(row.ids, row.mask, strict=True), key=itemgetter(1))
        trajectory.forced = [[i for i, _ in piece] for own, piece in pieces if own]
    elif guide.hint or hint:
        trajectory.shown = renderer.prompt(hinted(environment, task), task.tools)
    return trajectory


def _environment_turn(trajectory: Trajectory, ids: list[int], renderer: Renderer, reader: Reader) -> list[Message]:
    """What the environment says to one assistant turn; nothing when the episode is over."""
    turn = reader.classify_ids(ids)
    if not turn.structure.healthy:
        return []
    try:
        if turn.structure is Structure.TOOL_CALL:
            return [{"role": "tool", "content": trajectory.episode.call(call)} for call in turn.calls]
        text = renderer.tokenizer.decode(ids, skip_special_tokens=True)
        reply = trajectory.episode.reply(text)
    except Exception:  # an environment's own failure is counted and must never become a reward
        trajectory.env_errors += 1
        return []
    return [] if reply is None else [{"role": "user", "content": reply}]


def _score(trajectory: Trajectory) -> None:
    if trajectory.env_errors:
        return  # None: TRL leaves an unscorable rollout out of its group's baseline
    try:
        trajectory.reward = float(trajectory.episode.reward())
    except Exception:  # counted, as above
        trajectory.env_errors += 1
