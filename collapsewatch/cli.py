"""The command line, and the composition root: the only place that knows every room.

Each command is thin; imports stand inside it, so that `--help` is quick and torch stays optional.
Exit codes: 0 done, 2 a wrong input (one line `error: ...`), 3 `--fail-on` reached, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:
    from .report import RunReport

app = typer.Typer(
    help="Sees tool-use reinforcement learning collapse in the probabilities of control tokens, and steps in.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
FAILING = {"collapsed": ("collapsed", "dead", "silent"), "degraded": ("collapsed", "dead", "silent", "degraded")}
"""The verdicts that each level of `--fail-on` fails on."""


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"collapsewatch {__version__}")
        raise typer.Exit


class InputError(ValueError):
    """A wrong input: what, got, expected."""


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Seed of both runs.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder that holds runs.")] = Path("logs"),
    dashboard: Annotated[bool, typer.Option(help="Whether to serve the page meanwhile.")] = True,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")] = 8050,
) -> None:
    """Train one seed twice, RL alone and with triggered supervision, watch both, and compare."""
    with _needs_train("demo"):
        from .trainer.demo import run_demo
    run_demo(seed, out, dashboard, port, _console())


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A TOML file of trainer knobs.")],
    change: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a knob.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Train one run with the built-in GRPO trainer, monitored."""
    with _needs_train("train"):
        from .trainer.config import load_config
        from .trainer.progress import run_with_progress
    run_with_progress(load_config(config, tuple(change or ())), _console(), resume)


@app.command(context_settings={"allow_interspersed_args": False})  # what follows SCRIPT is the script's
def run(
    script: Annotated[str, typer.Argument(help="A Python script that trains with TRL.")],
    args: Annotated[list[str] | None, typer.Argument(help="The script's own arguments.")] = None,
    module: Annotated[bool, typer.Option("-m", "--module", help="SCRIPT is the name of a module.")] = False,
    logdir: Annotated[Path | None, typer.Option(help="Folder that holds runs; logs by default.")] = None,
    name: Annotated[str | None, typer.Option(help="The run's folder; a resumed training goes on in its own.")] = None,
    chat_format: Annotated[
        str | None, typer.Option("--format", help="Chat format; by default that of the chat template.")
    ] = None,
    fa_per_10k: Annotated[float | None, typer.Option(help="False alarms in 10,000 steps that are put up with.")] = None,
) -> Callable[[], None]:
    """Run a TRL script as it is, with every GRPO trainer in it monitored."""
    from .launch import prepare

    if chat_format:
        from .formats.detect import check_name

        check_name(chat_format)
    return prepare(script, args or (), module, logdir, name, chat_format, fa_per_10k)


@app.command()
def dashboard(
    logdir: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = Path("logs"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8050,
    auth_token: Annotated[
        str,
        typer.Option(
            metavar="TOKEN",
            envvar="COLLAPSEWATCH_AUTH_TOKEN",
            show_envvar=False,
            help="Token to ask for; on another host one is made up.",
        ),
    ] = "",
) -> None:
    """Serve the live page over a log folder."""
    from .dashboards.views import read_ahead

    if not logdir.is_dir():
        raise InputError(f"logdir: got {str(logdir)!r}, expected a folder that holds runs")
    feed = read_ahead(logdir)
    from .dashboards.server import serve  # Dash takes a second to import, in which runs are being read

    serve(feed, host, port, lambda url: typer.echo(f"{url}  (Ctrl-C ends it)"), auth_token)


@app.command()
def analyze(
    paths: Annotated[list[Path], typer.Argument(help="Run folders, log folders or files.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one self-contained page.")] = None,
    fail_on: Annotated[str, typer.Option(help="Exit 3 at this verdict or worse: collapsed or degraded.")] = "",
    chat_format: Annotated[str, typer.Option("--format", help="Chat format of transcripts.")] = "hermes",
    names: Annotated[
        list[str] | None, typer.Option("--map", metavar="COLUMN=NAME", help="Say what a column is.")
    ] = None,
    aliases: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file of such lines, or a JSON object.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on; tell whenever a verdict changes.")] = False,
) -> None:
    """Say of each run whether it collapsed, since when, and what moved first."""
    from .aliases import pairs, read_aliases
    from .follow import follow as followed
    from .page import check_target, write_page
    from .report import analyze_all, to_json
    from .rows import strict_json
    from .summary import print_summary
    from .tables import printable

    if fail_on and fail_on not in FAILING:
        raise InputError(f"--fail-on: got {fail_on!r}, expected one of {', '.join(FAILING)}")
    known = (read_aliases(aliases) if aliases else {}) | pairs(names or ())
    if html:
        check_target(html)

    def judge() -> list[RunReport]:
        return analyze_all(paths, format=chat_format, names=known)

    for reports, changed in followed(paths, judge) if follow else [(judge(), True)]:
        if not reports:
            typer.echo("no run yet, waiting for one; Ctrl-C ends it", err=True)
            continue
        if html:
            write_page(reports, html, chat_format)
        if changed and as_json:
            typer.echo(strict_json(to_json(reports), indent=None if follow else 2))
        elif changed:
            print_summary(reports, _console())
            if html:
                typer.echo(f"\npage: {printable(html)}")
            if follow:
                typer.echo(f"\n{datetime.now():%H:%M:%S}, going on; Ctrl-C ends it\n")
        sys.stdout.flush()
        if fail_on and any(report.verdict in FAILING[fail_on] for report in reports):
            raise typer.Exit(3)


@app.command()
def query(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    sql: Annotated[str, typer.Argument(help="A query over the tables of docs/schema.md.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of rows.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Ask a run's database, read-only."""
    from .queries import open_run
    from .tables import print_table, rows_json

    if as_json and as_csv:
        raise InputError("query: got --json and --csv, expected one of them")
    with contextlib.closing(open_run(run)) as opened:
        table = opened.query(sql)
    if as_json:
        typer.echo(rows_json(table.columns, table.rows))
    elif as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows([table.columns, *table.rows])
    else:
        print_table(table.columns, table.rows, _console())


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="tiny, a model folder, a hub name or a .gguf file.")],
    environment: Annotated[str, typer.Option(help="Where its tasks come from.")] = "chain",
    chat_format: Annotated[str, typer.Option("--format", help="The format it was trained in.")] = "auto",
    alternate: Annotated[str, typer.Option(help="Another chat format to try it in.")] = "bracket",
    tasks: Annotated[int, typer.Option(min=1, help="Tasks to play, three times each.")] = 32,
    reference: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What it is compared with: where its training began.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say of a checkpoint whether it has lost its call format, or what it can do."""
    with _needs_train("inspect"):
        from .trainer.inspected import judge, print_views, to_json
        from .trainer.inspection import Inspector
    from .rows import strict_json

    inspector = Inspector(environment, chat_format, alternate, tasks)
    views = inspector.views(model)
    known = inspector.views(reference) if reference else None
    judged = judge(views, known)
    if as_json:
        typer.echo(strict_json(to_json(judged, environment, (model, views), known and (reference, known)), indent=2))
    else:
        print_views(views, known, judged, _console())


@app.command()
def calibrate(
    logdir: Annotated[Path, typer.Argument(help="A folder of healthy runs or logs, or one of them.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count false alarms on your own healthy runs, beside the bound that was promised."""
    from .calibrate import calibrate as calibrated
    from .calibrate import print_calibration
    from .rows import strict_json

    found = calibrated(logdir)
    if as_json:
        typer.echo(strict_json(found.to_dict(), indent=2))
    else:
        print_calibration(found, _console())


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for `main`: rich would exit with 1


def _console() -> Console:
    """The terminal; a file or a pipe has no width that tables would have to be squeezed into, unless one is told."""
    return _Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 1000)


@contextlib.contextmanager
def _needs_train(command: str) -> Iterator[None]:
    """Turn a missing training library into the line that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("collapsewatch"):
            raise
        raise InputError(
            f"{command}: got no module {error.name!r}, expected the training extra: pip install 'collapsewatch[train]'"
        ) from error


def main() -> None:
    """Entry point: run the command; a wrong input is one line and exit 2, never a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems ask like this: close the run first
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        _fail(error.format_message())
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `collapsewatch query ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (ValueError, OSError) as error:
        if not type(error).__module__.startswith("collapsewatch"):
            raise
        _fail(str(error))
    if callable(code):  # `run`: what the script raises, and how it ends, is not ours to handle
        code()
        return
    if code == 130:  # what typer makes of Ctrl-C
        typer.echo("interrupted", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    typer.echo("error: " + " ".join(message.split()).removeprefix("error: "), err=True)
    sys.exit(2)
