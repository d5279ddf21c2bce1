"""What came of episodes: rewards, and how their turns stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from collapsewatch.formats.base import BoundFormat
from collapsewatch.records import Classified, Structure

from .rollout import Trajectory


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of some episodes.

    `reward`: mean, without those the environment failed in. `structures`: shares of all turns, with the `reasons` of
    those that are not healthy. `parse_rate`: share of attempted calls that parse, None without any.
    """

    reward: float
    structures: dict[str, float]
    reasons: dict[str, int]
    parse_rate: float | None
    env_errors: int


def outcome(played: Sequence[Trajectory], bound: BoundFormat) -> Outcome:
    """What came of the episodes, their turns read in the format they were played in."""
    turns = [turn for trajectory in played for turn in _turns(trajectory, bound)]
    rewards = [trajectory.reward for trajectory in played if trajectory.reward is not None]
    attempted = sum(turn.attempted for turn in turns)
    counted = Counter(turn.structure for turn in turns)
    return Outcome(
        reward=sum(rewards) / len(rewards) if rewards else float("nan"),
        structures={structure: counted[structure] / len(turns) for structure in Structure},
        reasons=dict(Counter(turn.reason for turn in turns if not turn.structure.healthy).most_common()),
        parse_rate=sum(len(turn.calls) for turn in turns) / attempted if attempted else None,
        env_errors=sum(trajectory.env_errors for trajectory in played),
    )


def _turns(trajectory: Trajectory, bound: BoundFormat) -> list[Classified]:
    spans = bound.turns(trajectory.mask, trajectory.ids)
    return [bound.classify_ids(trajectory.ids[begin:end]) for begin, end in spans]
