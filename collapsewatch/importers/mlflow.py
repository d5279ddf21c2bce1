"""MLflow's local stores: `mlflow.db`, and older `mlruns/EXPERIMENT/RUN/metrics/NAME` with `time value step` lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from .base import Imported, Importer, NoTraining
from .columns import number, whole
from .source import Source
from .sqlite import columns, opened

_COLUMNS = {"key", "value", "timestamp", "run_uuid", "step"}


class _Point(NamedTuple):
    time: int
    step: int
    metric: str
    value: float


class MlflowDatabase(Importer):
    """Reads every run of the database that is not deleted."""

    source: ClassVar[str] = "mlflow"

    def sniff(self, source: Source) -> bool:
        return source.suffix in (".db", ".sqlite", ".sqlite3") and columns(source.path, "metrics") >= _COLUMNS

    def read(self, source: Source) -> list[Imported]:
        points: dict[str, list[_Point]] = defaultdict(list)
        nan = "is_nan" if "is_nan" in columns(source.path, "metrics") else "0"
        with opened(source.path) as db:
            named = db.execute("SELECT run_uuid, name FROM runs WHERE lifecycle_stage IS NOT 'deleted'")
            names = {str(run): str(name or run) for run, name in named}
            logged = db.execute(f"SELECT run_uuid, timestamp, step, key, value FROM metrics WHERE NOT {nan}")
            for run, time, step, metric, value in logged:
                if run in names:
                    points[run].append(_Point(whole(time) or 0, whole(step) or 0, str(metric), number(value)))
        found: list[Imported] = []
        for run, own in points.items():
            name = names[run] + (f"-{run[:8]}" if list(names.values()).count(names[run]) > 1 else "")
            try:
                found.append(self.scalars(source, _rows(own), name))
            except NoTraining:
                continue
        if not found:
            raise NoTraining(f"{source.name}: got {len(points)} runs without a metric of training, expected one with")
        return found


class MlflowFiles(Importer):
    """Reads the metrics of a run's folder together."""

    source: ClassVar[str] = "mlruns"

    def sniff(self, source: Source) -> bool:
        return _folder(source.path) is not None and _point(source.head.partition("\n")[0], "") is not None

    def home(self, path: Path) -> Path:
        return _folder(path) or path

    def superseded(self, path: Path) -> bool:
        """Of a deleted run the files stay, and say so."""
        folder = _folder(path)
        return folder is not None and "lifecycle_stage: deleted" in _meta(folder)

    def read(self, source: Source) -> list[Imported]:
        return self.read_all([source])

    def read_all(self, sources: Sequence[Source]) -> list[Imported]:
        folder = self.home(sources[0].path)
        points: list[_Point] = []
        lost = 0
        for source in sources:
            metric = source.path.relative_to(folder / "metrics").as_posix()
            for line in filter(str.strip, source.lines()):
                point = _point(line, metric)
                lost += point is None
                points += [point] if point else []
        faults = (f"{lost} lines of {folder.name} left out: no `time value step`",) if lost else ()
        return [self.scalars(Source(folder), _rows(points), _name(folder), faults)]


def _rows(points: Iterable[_Point]) -> list[tuple[int | None, dict[str, float]]]:
    """Rows by step; by the time they were logged at where nobody told steps, which are all 0 then."""
    points = sorted(points)
    told = any(point.step for point in points)
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    for point in points:
        rows[point.step if told else point.time][point.metric] = point.value
    return [(at if told else None, row) for at, row in sorted(rows.items())]


def _point(line: str, metric: str) -> _Point | None:
    """A line as MLflow writes it: two fields in the oldest stores, five where a data set was named."""
    time, value, step = [*line.split(), "", "", "0"][:3] if len(line.split()) > 1 else ("", "", "")
    when, at = whole(time), whole(step)
    return None if when is None or at is None or not _is_number(value) else _Point(when, at, metric, number(value))


def _is_number(text: str) -> bool:
    return number(text) == number(text) or text.lower() == "nan"


def _folder(path: Path) -> Path | None:
    """The run's folder, of a file below its `metrics`; a logged model has such a folder as well."""
    above = (p.parent for p in path.parents if p.name == "metrics" and p.parent.parent.name != "models")
    return next((folder for folder in above if (folder / "meta.yaml").is_file()), None)


def _meta(folder: Path) -> list[str]:
    return Source(folder / "meta.yaml").head.split("\n")


def _name(folder: Path) -> str:
    named = next((line.partition(":")[2].strip(" '\"") for line in _meta(folder) if line.startswith("run_name:")), "")
    return named if named not in ("", "null") else folder.name
