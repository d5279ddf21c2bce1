"""One rank's rollouts of one step as arrays, and sums over them by prompt group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """One rank's rollouts of one step.

    `ids` (N, T) token ids after the prompt; `mask` (N, T) bool, True on the model's own tokens;
    `logp` (N, T, K) log-probability of each control token where `ids[:, t]` was sampled, NaN where unknown;
    `entropy` (N, T) nats or None; `group`, `reward`, `advantage`, `env_errors` (N,); `row` (N,) the rollout's
    number, which names it in the store; `length` (N,) tokens after the prompt; `label_logp` (N, T) log-probability
    of `ids` as trained, `sampler_logp` (N, T) as the sampler gave it, both None or NaN where unknown; `altered`
    (N,) 1 where the trained ids are not those that were sampled, 0 where they are, NaN where nobody knows; `guided`
    (N,) True where a supervisor's guide stood behind the sampling, so that it is not the policy's own draw.
    """

    ids: npt.NDArray[np.int64]
    mask: Bools
    logp: npt.NDArray[np.floating]
    entropy: npt.NDArray[np.floating] | None
    group: npt.NDArray[np.int64]
    reward: Floats
    advantage: Floats
    env_errors: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    label_logp: npt.NDArray[np.floating] | None = None
    sampler_logp: npt.NDArray[np.floating] | None = None
    altered: Floats | None = None
    guided: Bools | None = None


class GroupSums:
    """Accumulates (numerator, denominator) by stream and prompt group; `group` (N,) as in Rollouts."""

    def __init__(self, group: npt.NDArray[np.int64]) -> None:
        self._groups, self._index = np.unique(group, return_inverse=True)
        self.by_stream: dict[str, dict[int, tuple[float, float]]] = {}

    def add(self, stream: str, numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> None:
        """Both (N,), one value per rollout."""
        width = len(self._groups)
        top = np.bincount(self._index, np.asarray(numerator, float), width)
        bottom = np.bincount(self._index, np.asarray(denominator, float), width)
        pairs = zip(self._groups.tolist(), top.tolist(), bottom.tolist(), strict=True)
        self.by_stream[stream] = {group: (a, b) for group, a, b in pairs if b > 0}

    def add_mean(self, stream: str, values: npt.NDArray[np.floating], where: Bools) -> None:
        """The mean of `values` (N, T) over the positions `where` (N, T)."""
        self.add(stream, np.where(where, values, 0.0).sum(axis=1), where.sum(axis=1))
