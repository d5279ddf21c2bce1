"""The training side of a run's storage: hand a record over in microseconds, read it in a second.

`Store` only enqueues. Its background thread turns records into Arrow, appends them to the rank's journal and,
on rank 0, merges the journals of all ranks into `run.duckdb`. What a killed process loses is what it had not
yet journalled: at most `flush_s` of records, and nothing after `flush()`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from .database import StoreError, first_line
from .journal import Journal
from .merge import Merger
from .records import Alarm, Applied, Event, Evidence, StepRecord, TokenView
from .rows import Item, Rows, to_arrow

__all__ = ["Store", "StoreError"]

_WRITE_ITEMS = 256  # records per journal write: bounds the memory one write takes when a backlog is worked off
_log = logging.getLogger(__name__)


class Store:
    """Takes what happens in one process of a run, without ever holding up or failing the training.

    `faults` counts the background thread's errors by message, `dropped` the records that could not be kept:
    the queue was full (the disk was, for long), the record did not fit its table, or the store was closed.

    Args:
        run_dir: the run's folder, made if absent; an earlier process's rows in it are kept and continued.
        rank: of this process; rank 0 merges, and alone writes the tables without a rank (observations,
            evidence, alarms, interventions, events), because every rank reaches the same ones.
        flush_s: seconds from hand-over to the journal, what a killed process may lose.
        merge_s: seconds between merges into `run.duckdb`, what a reader may lag.
        queue_size: records held in memory while the disk does not take them.

    Raises:
        StoreError: the folder cannot be written, is in use by another process, or `run.duckdb` is foreign.
    """

    def __init__(
        self,
        run_dir: Path | str,
        rank: int = 0,
        flush_s: float = 0.5,
        merge_s: float = 1.0,
        queue_size: int = 4096,
    ) -> None:
        self.run_dir = Path(run_dir).absolute()
        self.rank = rank
        self.faults: dict[str, int] = {}
        self.dropped = 0
        self._flush_s, self._merge_s, self._queue_size = flush_s, merge_s, queue_size
        self._queue: deque[tuple[int, Item]] = deque()
        self._changed = threading.Condition()  # guards the queue, the counts below and the flags
        self._held = self._accepted = self._written = 0
        self._urgent = self._closed = False
        self._batch: list[tuple[str, Any]] = []  # converted, not yet in the journal; the thread's own
        self._deadline = 0.0
        self._merger = Merger(self.run_dir) if rank == 0 else None
        try:
            self._journal = Journal(self.run_dir, rank)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            if self._merger:
                self._merger.merge()
        except (OSError, duckdb.Error, StoreError) as error:
            self._journal.close()
            raise self._unusable(error) from error
        # Arrow imports pandas with the first value it converts, if there is one: not in the thread, where that
        # would slow the first step down, and fail when the interpreter is already shutting down.
        to_arrow(StepRecord(0, 0.0), rank, 0)
        # A step logged again after a resume is told from the first by its stamp, even if the clock went back.
        self._stamp = self._merger.last_logged if self._merger else 0
        self._thread = threading.Thread(target=self._run, name="collapsewatch-store", daemon=True)
        self._thread.start()
        _stores.add(self)
        atexit.register(self.close)

    def log_step(self, record: StepRecord) -> None:
        """Keep what was measured at one step; the record must not change afterwards."""
        self._put(record)

    def log_evidence(self, evidence: Evidence) -> None:
        """Keep what a detector holds after one step."""
        self._put(evidence)

    def log_alarm(self, alarm: Alarm) -> None:
        """Keep an alarm; call `flush` after it."""
        self._put(alarm)

    def log_applied(self, applied: Applied) -> None:
        """Keep an application of an intervention."""
        self._put(applied)

    def log_event(self, event: Event) -> None:
        """Keep something that happened to the run."""
        self._put(event)

    def log_views(self, views: Sequence[tuple[int, TokenView]]) -> None:
        """Keep rollouts token by token, each with its step, after the step's record."""
        for step, view in views:
            self._put((step, view))

    def append(self, table: str, rows: Rows) -> None:
        """Keep rows (column -> value) of any table of docs/schema.md; columns left out are NULL.

        Metrics known only after their step was logged belong to that logging of it.
        """
        self._put((table, rows))

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until all that was accepted is in the journal, safe from a kill; False when time runs out."""
        with self._changed:
            if self._closed:
                return self._written >= self._accepted
            target, self._urgent = self._accepted, True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._written >= target, timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Journal and merge everything, then remove the journal; what does not merge in time stays there."""
        with self._changed:
            if self._closed:
                return
            self._deadline = time.monotonic() + timeout
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout + 1.0)
        atexit.unregister(self.close)
        if left := self._accepted - self._written:
            self.dropped += left
            _log.warning("run %s: %d records could not be stored", self.run_dir, left)

    def _put(self, item: Item) -> None:
        with self._changed:
            if self._closed or len(self._queue) + self._held >= self._queue_size:
                self.dropped += 1
                return
            self._stamp = max(time.time_ns(), self._stamp + 1)
            self._queue.append((self._stamp, item))
            self._accepted += 1
            if len(self._queue) == self._queue_size // 2:
                self._urgent = True
                self._changed.notify_all()

    def _run(self) -> None:
        merge_at = time.monotonic() + self._merge_s
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._urgent, self._flush_s)
                self._urgent = False
            self._attempt(self._drain)
            if self._merger and time.monotonic() >= merge_at:
                self._attempt(self._merger.merge)
                merge_at = time.monotonic() + self._merge_s
        self._until_deadline(self._drain)
        self._journal.close()
        if self._merger:
            self._until_deadline(self._merger.merge)
            self._merger.close()

    def _until_deadline(self, work: Callable[[], bool]) -> None:
        while not self._attempt(work) and time.monotonic() < self._deadline:
            time.sleep(0.05)

    def _attempt(self, work: Callable[[], bool]) -> bool:
        try:
            return work()
        except Exception as error:  # the law: a monitoring failure never takes the training down
            self._fault(error)
            return False

    def _drain(self) -> bool:
        """Write the queue to the journal, oldest first; on an OSError the rest stays for the next try."""
        while self._batch or self._take():
            try:
                self._journal.write(self._batch)
            except OSError:
                raise
            except Exception as error:  # this batch will never fit
                self._fault(error)
                self.dropped += self._held
            self._batch = []
            with self._changed:
                self._written += self._held
                self._held = 0
                self._changed.notify_all()
        return True

    def _take(self) -> bool:
        """Convert the oldest records of the queue into `_batch`; False when there are none."""
        with self._changed:
            items = [self._queue.popleft() for _ in range(min(_WRITE_ITEMS, len(self._queue)))]
            self._held = len(items)
        parts: dict[str, list[Any]] = {}
        for stamp, item in items:
            try:
                batches = to_arrow(item, self.rank, stamp)
            except Exception as error:  # one record that does not fit must not take the others with it
                self._fault(error)
                self.dropped += 1
                continue
            for table, batch in batches:
                parts.setdefault(table, []).append(batch)
        for table, part in parts.items():
            whole = pa.Table.from_batches(part).combine_chunks().to_batches()
            self._batch.extend((table, batch) for batch in whole)
        return bool(items)

    def _fault(self, error: Exception) -> None:
        message = f"{type(error).__name__}: {first_line(error)}"
        if not self.faults:
            _log.warning("run %s: storing failed, training goes on: %s", self.run_dir, message)
        self.faults[message] = self.faults.get(message, 0) + 1

    def _unusable(self, error: Exception) -> StoreError:
        return StoreError(
            f"run folder: got {self.run_dir} ({first_line(error)}), expected a writable folder of one run"
        )

    def _abandon(self) -> None:
        """In a forked child: neither the thread nor the queue's contents are its own."""
        self._changed = threading.Condition()
        self._closed = True
        self._queue.clear()
        self._journal.close()
        if self._merger:
            self._merger.abandon()


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _abandon_all() -> None:
    for store in list(_stores):
        store._abandon()


os.register_at_fork(after_in_child=_abandon_all)
