"""Rollouts worth reading: the worst of a run since it broke, and the best sound one from before."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .queries import Run
from .records import Structure
from .shares import excerpt

WORST = 3
"""Broken rollouts that are shown: enough to see a pattern."""
_TEXT, _PROMPT = 3000, 400  # characters kept of a rollout, and of its prompt

_VALID = """
    rollouts AS r JOIN (SELECT step, rank, max(logged) AS logged FROM steps GROUP BY ALL) AS valid USING (step, rank)
    WHERE r.logged >= valid.logged AND r.text <> ''
"""
_COLUMNS = "step, rank, rollout, structure, reward, prompt, text"
_SQL = f"""
    WITH known AS (SELECT r.* FROM {_VALID}), worst AS (
        SELECT {_COLUMNS}, 1 AS place, row_number() OVER (
            ORDER BY structure <> '{Structure.COLLAPSED}', if(isnan(hazard), 0, hazard) DESC, step, rank, rollout
        ) AS nth
        FROM (SELECT DISTINCT ON (text) * FROM known ORDER BY step, rank, rollout)
        WHERE step >= $since AND structure IN ('{Structure.POLLUTED}', '{Structure.COLLAPSED}')
    ), sound AS (
        SELECT {_COLUMNS}, 0 AS place, row_number() OVER (
            ORDER BY if(isnan(reward), '-inf'::DOUBLE, reward) DESC, step DESC, rank, rollout
        ) AS nth
        FROM known WHERE step < $before AND structure IN ('{Structure.TOOL_CALL}', '{Structure.RESPONSE}')
    )
    SELECT {_COLUMNS}, (
        SELECT string_agg(DISTINCT reason, ', ' ORDER BY reason) FROM turns AS t
        WHERE (t.step, t.rank, t.rollout) = (shown.step, shown.rank, shown.rollout) AND reason <> 'ok'
    )
    FROM (FROM sound WHERE nth = 1 UNION ALL FROM worst WHERE nth <= {WORST}) AS shown ORDER BY place, nth
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """Something a model wrote: where it stands, what is wrong with it ('' for nothing), and an excerpt."""

    place: str
    reason: str
    text: str
    prompt: str = ""
    reward: float | None = None


def rollouts(run: Run, onset: int | None) -> tuple[Sample, ...]:
    """A sound rollout from before the onset, then the worst since; of a run without onset, from all of it."""
    steps = {"since": onset or 0, "before": 2**62 if onset is None else onset}
    return tuple(
        Sample(
            f"step {step}, rollout {rollout}" + (f" of rank {rank}" if rank else ""),
            "" if Structure(structure).healthy else f"{structure} ({reasons})" if reasons else structure,
            excerpt(text, _TEXT),
            excerpt(_asked(prompt or ""), _PROMPT),
            reward,
        )
        for step, rank, rollout, structure, reward, prompt, text, reasons in run.query(_SQL, steps).rows
    )


def _asked(prompt: str) -> str:
    """The last message of a prompt that is a conversation, any other prompt as it is."""
    try:
        found = json.loads(prompt)[-1]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return prompt
    return found if isinstance(found, str) else prompt
