"""Who did it: the rollouts behind an alarm, by what its main driver counts."""

from __future__ import annotations

from dataclasses import dataclass

from .queries import Run
from .records import Alarm, Structure
from .structure import Reason

_LIMIT = 5
_BY_TURN = {
    "polluted": f"t.structure = '{Structure.POLLUTED}'",
    "collapsed": f"t.structure = '{Structure.COLLAPSED}'",
    "parse_failure": f"t.structure IN ('{Structure.POLLUTED}', '{Structure.COLLAPSED}')",
    "empty": f"t.reason = '{Reason.EMPTY}'",
    "truncated": f"t.reason = '{Reason.TRUNCATED}' OR t.stop = 'length'",
    "repeated": f"t.reason = '{Reason.REPETITION}'",
    "no_end": "t.stop = 'length'",
    "no_call": "t.calls = 0",
    "no_call_start": "t.calls = 0",
}
"""What makes a turn one of those that a stream counts; all other streams are hazards, and every turn has one."""


@dataclass(frozen=True, slots=True)
class Offender:
    """One rollout behind an alarm: how many of its turns are counted by the driver, its hazard, what is wrong."""

    step: int
    rank: int
    rollout: int
    turns: int
    hazard: float
    reward: float
    structure: str
    reasons: str

    def __str__(self) -> str:
        who = f"step {self.step} rollout {self.rollout}" + (f" of rank {self.rank}" if self.rank else "")
        return f"{who} ({self.reasons or self.structure})"


def offenders(run: Run, alarm: Alarm, limit: int = _LIMIT) -> list[Offender]:
    """The rollouts that weigh most in an alarm, from its onset to its step, of all ranks.

    Where its main driver is an outcome, by how many of their turns have it and then by hazard; where it is the
    probability of a control token, by hazard. Of steps that were taken again the last.

    Raises:
        RunError: the run cannot be read.
    """
    main = alarm.drivers[0].stream if alarm.drivers else ""
    counted = _BY_TURN.get(main, "false")
    sql = f"""
        WITH latest AS (SELECT step, rank, max(logged) AS logged FROM steps GROUP BY ALL), bad AS (
            SELECT t.step, t.rank, t.rollout, count(*) FILTER ({counted}) AS hits,
                string_agg(DISTINCT t.reason, ', ' ORDER BY t.reason) FILTER (t.reason <> '{Reason.OK}') AS reasons
            FROM turns AS t JOIN latest USING (step, rank)
            WHERE t.step BETWEEN $first AND $last AND t.logged >= latest.logged GROUP BY ALL
        )
        SELECT r.step, r.rank, r.rollout, coalesce(hits, 0) AS n,
            if(isnan(r.hazard), 0, r.hazard) AS h, r.reward, r.structure, coalesce(reasons, '')
        FROM rollouts AS r JOIN latest USING (step, rank) LEFT JOIN bad USING (step, rank, rollout)
        WHERE r.step BETWEEN $first AND $last AND r.logged >= latest.logged
            AND ({"n > 0" if main in _BY_TURN else "h > 0"})
        ORDER BY n DESC, h DESC, r.step, r.rank, r.rollout LIMIT $limit
    """
    rows = run.query(sql, {"first": alarm.onset_step, "last": alarm.step, "limit": limit}).rows
    return [Offender(*row) for row in rows]
