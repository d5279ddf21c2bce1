"""`collapsewatch run`: a script as `python` would run it, but for one callback in every trainer it makes.

Nothing heavy is imported before the script imports it: what a script sets in the environment on its first lines
(threads, devices, caches) counts as ever.
"""

from __future__ import annotations

import builtins
import importlib
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType

from .imported import after_import


class LaunchError(ValueError):
    """Nothing that could be run, or run like this."""


def prepare(
    target: str,
    args: Sequence[str] = (),
    module: bool = False,
    logdir: Path | None = None,
    name: str | None = None,
    chat_format: str | None = None,
    fa_per_10k: float | None = None,
) -> Callable[[], None]:
    """`launch` with its arguments, ready to be called; settings go into the environment, where `Watch` finds them.

    Raises:
        LaunchError: there is no such script, or the budget is none.
    """
    if not module and not Path(target).is_file():
        raise LaunchError(f"script: got {target!r}, expected a Python file")
    if fa_per_10k is not None and not 0 < fa_per_10k <= 10_000:
        raise LaunchError(f"--fa-per-10k: got {fa_per_10k}, expected more than 0 and at most 10000")
    settings = {"LOGDIR": logdir, "NAME": name, "FORMAT": chat_format, "FA_PER_10K": fa_per_10k}
    os.environ.update({f"COLLAPSEWATCH_{key}": str(value) for key, value in settings.items() if value is not None})
    return partial(launch, target, args, module)


def launch(target: str, args: Sequence[str] = (), module: bool = False) -> None:
    """Run the script `target`, or the module of that name, as `__main__`, watched.

    Whatever it raises passes through, and is shown without the frames of this package.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    after_import("transformers.trainer", _watch_trainers)
    sys.argv[:] = [target, *args]
    shown, sys.excepthook = sys.excepthook, lambda *raised: shown(*_without_us(*raised))
    if module:
        _set_first_path(os.getcwd())
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        _set_first_path(str(Path(target).resolve().parent))
        _run_script(target)
    watch = sys.modules.get("collapsewatch.watch")
    if watch is None or not watch.trainings():
        print(f"collapsewatch: nothing was watched, for {target} trained with no GRPO trainer", file=sys.stderr)


def _run_script(path: str) -> None:
    # Not `runpy`, which takes the module away when the script ends: its threads and exit handlers still need it.
    main = ModuleType("__main__")
    main.__file__ = str(Path(path).absolute())
    main.__loader__ = SourceFileLoader("__main__", main.__file__)
    main.__dict__.update(__builtins__=builtins, __cached__=None, __annotations__={})
    sys.modules["__main__"] = main
    exec(compile(Path(path).read_bytes(), main.__file__, "exec"), main.__dict__)


def _set_first_path(folder: str) -> None:
    if not sys.flags.safe_path:  # `python -P` puts no folder there that could be replaced
        sys.path[0] = folder


def _watch_trainers(trainer: ModuleType) -> None:
    trainer.DEFAULT_CALLBACKS.append(importlib.import_module("collapsewatch.watch").Watch)


def _without_us(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """What an except hook gets, from the script's first frame on."""
    ours = (*Path(__file__).parent.glob("*.py"), runpy.__file__)
    names = {*map(str, ours), "<frozen runpy>"}
    inner = trace
    while inner is not None and inner.tb_frame.f_code is not launch.__code__:
        inner = inner.tb_next
    if inner is None:  # a script may call the hook itself
        return kind, error, trace
    while inner is not None and inner.tb_frame.f_code.co_filename in names:
        inner = inner.tb_next
    return kind, error.with_traceback(inner), inner
