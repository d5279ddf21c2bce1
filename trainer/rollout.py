"""The multi-turn rollout loop: sample a turn, execute its calls, append the results, until the episode ends.

Sampled ids are kept exactly as sampled; environment text is tokenized once and masked. A turn goes to the
environment only if it is whole: a malformed or truncated turn ends the episode with whatever reward stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from collapsewatch.formats.base import BoundFormat
from collapsewatch.records import Structure

from .dialogues import Renderer
from .environments.base import Environment, Episode, Message, Task

Generate = Callable[[list[list[int]]], tuple[list[list[int]], list[list[float]] | None]]
"""Prompts' ids -> sampled ids per prompt, and their log-probs where the sampler gives them."""


@dataclass
class Trajectory:
    """One rollout under way; `ids` and `mask` hold what follows the prompt."""

    episode: Episode
    prompt_ids: list[int]
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
    chat_format: BoundFormat,
    generate: Generate,
    max_turns: int,
) -> list[Trajectory]:
    """Play one episode per task, all of them turn by turn together."""
    played = [Trajectory(environment.start(task), renderer.prompt(task.prompt, task.tools)) for task in tasks]
    active = played
    for turn in range(max_turns):
        sampled, logprobs = generate([t.prompt_ids + t.ids for t in active])
        going = []
        for i, trajectory in enumerate(active):
            trajectory.extend(sampled[i], True, logprobs[i] if logprobs is not None else None)
            answer = _environment_turn(trajectory, sampled[i], renderer, chat_format)
            if answer and turn + 1 < max_turns:
                trajectory.extend(renderer.bridge(answer), False)
                going.append(trajectory)
        active = going
        if not active:
            break
    for trajectory in played:
        _score(trajectory)
    return played


def _environment_turn(
    trajectory: Trajectory, ids: list[int], renderer: Renderer, chat_format: BoundFormat
) -> list[Message]:
    """What the environment says to one assistant turn; nothing when the episode is over."""
    turn = chat_format.classify_ids(ids)
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
