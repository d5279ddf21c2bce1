"""verl-tool's and Tool-RL-Box's step records: `verl_step_records/RUN/NAME-step-12.json`, a list of rollouts.

A rollout has `prompt`, `response`, `score` (a number, or numbers by name) and, where the agent used tools,
`tool_interact_info`: per turn the `action` sampled and what the tool server said to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from .base import Imported, Importer, ImportFailed
from .columns import number
from .json_rows import document
from .source import Source
from .turns import Place, Turns
from .verl_rollouts import turns_of

_NAME = re.compile(r".*-step-(val-)?(\d{1,18})\.json(?:\.\w+)?")
_GIVEN = ("final_actions_is_gt", "sft_replace")  # set where Tool-RL-Box put the true answer in place of a sample


class StepRecords(Importer):
    """Classifies every turn that was sampled; the steps of one folder are one run, those of validation another."""

    source: ClassVar[str] = "step_records"

    def sniff(self, source: Source) -> bool:
        return _NAME.fullmatch(source.name) is not None and '"response"' in source.head and '"score"' in source.head

    def home(self, path: Path) -> Path:
        """The folder's, and beside it that of its validation."""
        return path.parent / "val" if _validation(path) else path.parent

    def read(self, source: Source) -> list[Imported]:
        return self.read_all([source])

    def read_all(self, sources: Sequence[Source]) -> list[Imported]:
        turns, faults = Turns(self.options.format), list[str]()
        rollouts = given = 0
        for source in sorted(sources, key=lambda source: _step(source.path)):
            try:
                rows, wrong = document(source)
            except ValueError as error:
                faults.append(f"{source.name}: got broken JSON ({error}), left out")
                continue
            faults += (f"{source.name}: {what}" for what in (*wrong, *source.faults))
            for row in rows if isinstance(rows, list) else ():
                if not isinstance(row, dict) or not isinstance(row.get("response"), str):
                    continue
                if any(row.get(name) is True for name in _GIVEN):
                    given += 1
                    continue
                rollouts += 1
                _count(turns, row, _step(source.path), rollouts)
        if not rollouts:
            raise ImportFailed(faults[0] if faults else f"{sources[0].name}: got no rollout, expected a list of them")
        if given:
            faults.append(f"{given} rollouts with given answers left out: nobody sampled them")
        path = sources[0].path
        name = path.resolve().parent.name + ("/val" if _validation(path) else "")
        return [turns.imported(name, self.source, path.parent if len(sources) > 1 else path, faults=tuple(faults))]


def _count(turns: Turns, row: Mapping[str, Any], step: int, line: int) -> None:
    attempted = 0
    for turn, text in enumerate(_sampled(row.get("tool_interact_info")) or turns_of(row["response"])):
        attempted += turns.add(text, Place(line, step, turn, str(row.get("prompt")))).attempted
    score = row.get("score")
    parts = score if isinstance(score, dict) else {"score": score}
    reward = number(row.get("reward", parts.get("score")))
    turns.rollout(step, attempted, {"reward": reward, "accuracy": number(parts.get("accuracy"))})


def _sampled(info: Any) -> list[str]:
    """The actions of the turns in which the rollout was still going on."""
    turns = [i["action"] for i in info if isinstance(i, dict) and "action" in i] if isinstance(info, list) else []
    texts = [text for text in turns if isinstance(text, str)]
    # verl-tool may ask the server before anything is sampled.
    return texts[1:] if len(texts) > 1 and not texts[0] else texts


def _validation(path: Path) -> bool:
    named = _NAME.fullmatch(path.name)
    return named is not None and named[1] is not None


def _step(path: Path) -> int:
    named = _NAME.fullmatch(path.name)
    return int(named[2]) if named else 0
