"""The result as tables, and the figure as the last line."""

from __future__ import annotations

from typing import Any

from speed import GOALS

_HEAD = (
    "| method | false alarms per 10k steps [95 %] | early | by the half | recall | delay | lead | lead, p10 |\n"
    "|---|---|---|---|---|---|---|---|"
)


def report(result: dict[str, Any]) -> str:
    """Markdown tables of what was measured."""
    lines = [*_speed(result["speed"])]
    for split, own in result["splits"].items():
        lines += ["", *_split(own), "", _figure(split, own["ours"]["rows"]["collapsewatch"])]
    return "\n".join(lines)


def _split(result: dict[str, Any]) -> list[str]:
    ours = result["ours"]
    lines = [_HEAD, *(_row(name, row) for name, row in ours["rows"].items())]
    lines += [_row(f"e-detector alone, bound {float(bound):g}", row) for bound, row in ours["bounds"].items()]
    lines += [_row(name, row) for name, row in result["charts"].items()]
    for name, told in result["peers"].items():
        if isinstance(told, str):
            lines.append(f"| {name} | {told} | | | | | | |")
        else:
            lines += [_row(f"{name}, {label}{' (tuned)' * row['tuned']}", row) for label, row in told.items()]
    lines += ["", "| collapse | half after | early | recall | delay | lead |", "|---|---|---|---|---|---|"]
    for kind, row in ours["kinds"].items():
        cells = (f"{row['half_after']:g}", f"{row['early_recall']:.2f}", f"{row['recall']:.2f}")
        lines.append(f"| {kind} | {' | '.join(cells)} | {_number(row['delay'])} | {_number(row['lead'])} |")
    lines += [f"| content | never | | {ours['content_alarmed']:.2f} | | |", ""]
    told = ours["attribution"]
    lines.append(
        f"attribution of {told['alarms']} alarms: first driver {told['driver']:.3f}, token {told['token']:.3f} of the "
        f"{told['tokens_named']} that name one, cell among the first three {told['cell_in_3']:.3f}; onset "
        f"{told['onset_error']:+g} steps, within 10 of the true one {told['onset_within_10']:.2f} where growth is fast"
    )
    return lines


def _figure(split: str, row: dict[str, Any]) -> str:
    early = f"early {row['early_recall']:.3f} (without the instant ones {row['early_slow']:.3f})"
    return (
        f"detection, {split}: {row['fa_per_10k']:.2f} false alarms per 10k steps "
        f"[{row['fa_low']:.2f}, {row['fa_high']:.2f}], recall {row['recall']:.3f}, {early}, "
        f"lead {_number(row['lead'])} steps"
    )


def _row(name: str, row: dict[str, Any]) -> str:
    rate = f"{row['fa_per_10k']:.2f} [{row['fa_low']:.2f}, {row['fa_high']:.2f}]"
    cells = (rate, f"{row['early_recall']:.3f}", f"{row['by_half']:.3f}", f"{row['recall']:.3f}")
    return f"| {name} | {' | '.join(cells)} | {' | '.join(_number(row[k]) for k in ('delay', 'lead', 'lead_p10'))} |"


def _number(value: float | None) -> str:
    return "missed" if value is None else f"{value:g}"


def _speed(result: dict[int, dict[str, Any]]) -> list[str]:
    lines = ["| streams | | CPU microseconds a step (min-max) | ours over theirs |", "|---|---|---|---|"]
    for streams, rows in result.items():
        ours = rows["collapsewatch"]["median_us"]
        for name, row in rows.items():
            ratio = f"goal {GOALS[streams]:g}" if name == "collapsewatch" else f"{ours / row['median_us']:.2f}"
            lines.append(
                f"| {streams} | {name} | {row['median_us']:.0f} ({row['min_us']:.0f}-{row['max_us']:.0f}) | {ratio} |"
            )
    return lines
