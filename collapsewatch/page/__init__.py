"""Reports as one HTML file: no network, no server, readable in any browser and safe to send round.

Everything a run logged is foreign text: it is escaped as markup (`markup`), in figures (`charts`), and as JSON
inside a data block that no browser executes. A policy in the page allows the two scripts by their hashes and
nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from .. import __version__, findings
from ..report import RunReport
from ..theme import GRAPH_CONFIG
from .charts import Chart
from .markup import Html, escaped, tag
from .overview import overview
from .sections import section

_HERE = Path(__file__).parent
_POINTS = 12_000  # of one kind of line over all runs: a page of many runs draws each with fewer
_FEWEST, _MOST = 150, 1000  # points of one line


class PageError(ValueError):
    """A page that cannot be written where it was wanted."""


def check_target(path: Path) -> None:
    """Refuse, before anything is read, a place where no file can be.

    Raises:
        PageError: `path` is a folder, or its folder does not exist or cannot be written to.
    """
    folder = path.parent
    if path.is_dir():
        raise PageError(f"--html: got the folder {str(path)!r}, expected the name of a file")
    if not folder.is_dir():
        raise PageError(f"--html: got {str(path)!r}, expected it in a folder that exists")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise PageError(f"--html: got {str(path)!r}, expected a file that can be written")


def write_page(reports: Sequence[RunReport], path: Path, format: str = "hermes") -> None:
    """Write the page of `reports`; a reader of `path` sees the old page or the new one, never a half.

    `format` is the chat format whose markers are shown in example texts.

    Raises:
        PageError: it cannot be written; what stood there before still stands.
    """
    made = datetime.now(UTC)
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):  # a pipe, a device: nothing to replace
            with path.open("w", encoding="utf-8") as file:
                file.writelines(parts(reports, made, format))
            return
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines(parts(reports, made, format))
            os.chmod(name, stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise PageError(f"--html: got {str(path)!r} ({error.strerror}), expected a file that can be written") from error


def parts(reports: Sequence[RunReport], made: datetime, format: str = "hermes") -> Iterator[str]:
    """The page, piece by piece."""
    names = findings.labels(reports)
    read = [(f"run-{i}", name, r) for i, (name, r) in enumerate(zip(names, reports, strict=True), 1)]
    judged = [row for row in read if not findings.unreadable(row[2])]
    points = max(_FEWEST, min(_MOST, _POINTS // max(1, len(judged))))
    scripts = [_plotly(), (_HERE / "page.js").read_text(encoding="utf-8")]
    title = names[0] if len(names) == 1 else f"{len(names)} runs"
    yield from ("<!doctype html>\n", '<html lang="en"><head>', '<meta charset="utf-8">')
    yield Html(f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">')
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield Html('<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">')
    yield tag("title", f"{title} · collapsewatch")
    yield Html(f"<style>{(_HERE / 'page.css').read_text(encoding='utf-8')}</style></head><body>")
    yield _header(made)
    yield Html("<main>")
    yield overview(judged, [r for r in reports if findings.unreadable(r)], plot)
    for anchor, name, report in judged:
        yield section(anchor, name, report, points, format, plot)
    yield Html("</main>")
    yield tag("noscript", "The charts need JavaScript; everything else stands without.")
    yield from (f"<script>{script}</script>" for script in scripts)
    yield "</body></html>\n"


def plot(chart: Chart) -> Html:
    """A chart's title, what its lines are, and its figure as data that the page's script draws."""
    figure = json.dumps(chart.figure | {"config": GRAPH_CONFIG}, separators=(",", ":"), allow_nan=False)
    # Inside an element for scripts only `<` can end it or open a comment.
    data = Html(figure.replace("<", "\\u003c").replace(">", "\\u003e"))
    legend = [tag("li", _swatch(line.style), line.name) for line in chart.lines]
    height = chart.figure["layout"]["height"]
    return tag(
        "figure",
        tag("figcaption", tag("b", chart.title), " ", tag("span", chart.hint, class_="soft")),
        tag("ul", legend, class_="legend") if len(legend) > 1 else None,
        tag(
            "div",
            Html(f'<script type="application/json">{data}</script>'),
            class_="plot",
            data_over=chart.over,
            style=f"height:{height}px",
            role="img",
            aria_label=f"{chart.title}: {', '.join(line.name for line in chart.lines)}",
        ),
    )


def _swatch(style: dict[str, object]) -> Html:
    dashes = {"dot": "2 2", "dash": "5 3", "dashdot": "5 2 1 2"}.get(str(style.get("dash")), "")
    drawn = f' stroke-dasharray="{dashes}"' if dashes else ""
    stroke = escaped(str(style["color"]))
    path = f'<path d="M0 4h18" stroke="{stroke}" stroke-width="3"{drawn}/>'
    return Html(f'<svg width="18" height="8" aria-hidden="true">{path}</svg>')


def _header(made: datetime) -> Html:
    when = f"{made:%Y-%m-%d %H:%M} UTC, collapsewatch {__version__}"
    button = tag("button", "Light or dark", id="scheme", type="button")
    return tag(
        "header", tag("a", "collapsewatch", href="#top", class_="brand"), tag("span", when, class_="soft"), button
    )


def _policy(scripts: Sequence[str]) -> str:
    """Only these scripts run, nothing is fetched; Plotly writes styles inline, and its PNG export is a data URL."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _plotly() -> str:
    """Plotly's script as its package ships it; the package itself, which takes a second, is not imported."""
    found = importlib.util.find_spec("plotly")
    assert found is not None and found.origin is not None  # a dependency of this package
    text = (Path(found.origin).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    # A page may not hold its own end inside a script, in whatever string a library has it.
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
