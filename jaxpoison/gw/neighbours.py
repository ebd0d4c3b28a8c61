"""Nearest neighbours under the Gromov-Wasserstein distance, without all pairs.

Cheap bounds are no guide here: of the ten nearest of real heatmaps, the two hundred smallest second
lower bounds (Mémoli 2011) hold three quarters. Distances to a few landmarks are a start;
from there, the neighbours of neighbours are looked at, until they change little.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from jaxpoison._checks import check_integer
from jaxpoison._code import hash_of_code
from jaxpoison._files import read_arrays, write_arrays
from jaxpoison.gw.pairs import pair_distances
from jaxpoison.gw.solver import EntropicGW
from jaxpoison.gw.spaces import SmallSpaces

# Up to so many spaces, all pairs are measured.
ALL_PAIRS = 4096
_LANDMARKS, _CANDIDATES = 64, 150
# Most rounds, and the share of neighbours that is to change for another one.
_ROUNDS, _CHANGE = 8, 0.002
# Neighbours that are followed, beside twice those that are asked for.
_FOLLOWED = 10
# Pairs that are kept on disk together, and rows compared with all others at once.
_BLOCK, _ROWS = 1 << 20, 1024


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest spaces of every space.

    Attributes:
        index: Indices of the nearest others, the nearest first.
        distances: Their distances: roots of debiased ones.
        landmarks: Indices of some spaces from which all were measured; none where all pairs were.
        to_landmarks: Distances from these.
        pairs: How many pairs were measured.

    Examples:
        >>> spaces = jp.quantised(jp.measure_spaces(heatmaps), 10)
        >>> found = jp.nearest_neighbours(spaces, 3)
        >>> found.index.shape, bool((np.diff(found.distances) >= 0).all())
        ((20, 3), True)
    """

    index: Int[np.ndarray, "n k"]
    distances: Float[np.ndarray, "n k"]
    landmarks: Int[np.ndarray, " m"]
    to_landmarks: Float[np.ndarray, "n m"]
    pairs: int


def nearest_neighbours(
    spaces: SmallSpaces,
    k: int = 10,
    solver: EntropicGW | None = None,
    *,
    all_pairs: int = ALL_PAIRS,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = False,
) -> Neighbours:
    """The nearest neighbours of every space.

    Distances are debiased, as in :func:`debiased_distances`, and their roots taken. Few spaces are
    compared pair by pair. With many, candidates are those with alike distances to landmarks;
    they are measured, and then neighbours of neighbours, in turn (NN-descent: Dong, Moses, Li
    2011). Pairs that are measured and memory grow a little faster than the number of spaces: 419 a
    heatmap for 2,000 of GTSRB, of whose ten nearest 99.8 % are found, 901 for 20,000 and 98.6 %
    (14 and 254 s on two cores; experiments/results/neighbours). Only the comparison of vectors of
    64 landmarks grows with the square. Pairs are split over this process's devices.

    Args:
        spaces: Quantised heatmaps.
        k: How many neighbours.
        solver: How the problem is solved.
        all_pairs: Up to so many spaces, all pairs are measured, and neighbours are exact.
        seed: Of the choice of landmarks.
        folder: Where measured pairs are kept, to go on after an interruption; nowhere without it.
        progress: Show progress bars.

    Raises:
        TypeError: A number is not an integer.
        ValueError: ``k`` is not between 1 and the number of other spaces.

    Examples:
        >>> spaces = jp.quantised(jp.measure_spaces(heatmaps), 10)
        >>> jp.nearest_neighbours(spaces, 10).index[0].shape  # the ten heatmaps most like the first
        (10,)
    """
    check_integer("k", k, at_least=1)
    check_integer("all_pairs", all_pairs, at_least=0)
    n = len(spaces)
    if k >= n:
        raise ValueError(f"k must be at most the number of other spaces, {n - 1}, found {k}")
    measured = _Measured(spaces, EntropicGW() if solver is None else solver, folder, progress)
    if n <= all_pairs:
        pairs = np.stack(np.triu_indices(n, 1), -1)
        index, distances = _nearest(n, k, pairs, measured(pairs))
        none = np.zeros(0, int)
        return Neighbours(index, distances, none, np.zeros((n, 0)), measured.pairs)
    followed = min(2 * k + _FOLLOWED, n - 1)
    landmarks = np.random.default_rng(seed).choice(n, min(_LANDMARKS, n), replace=False)
    pairs = np.stack(np.meshgrid(np.arange(n), landmarks, indexing="ij"), -1).reshape(-1, 2)
    to_landmarks = measured(pairs).reshape(n, -1)
    known = _Known(n)
    known.add(pairs[pairs[:, 0] != pairs[:, 1]], to_landmarks.ravel()[pairs[:, 0] != pairs[:, 1]])
    new = known.missing(_alike(to_landmarks, min(max(_CANDIDATES, followed), n - 1)))
    for _ in range(_ROUNDS + 1):
        known.add(new, measured(new))
        before = known.index[:, :k].copy() if known.index.size else None
        known.keep(followed)
        if before is not None and (before != known.index[:, :k]).mean() < _CHANGE:
            break
        new = known.missing(_neighbours_of_neighbours(known.index))
        if not len(new):
            break
    index, distances = known.index[:, :k], known.distances[:, :k]
    return Neighbours(index, distances, landmarks, to_landmarks, measured.pairs)


class _Measured:
    """Measures pairs, block by block; what a block found is read again."""

    def __init__(
        self, spaces: SmallSpaces, solver: EntropicGW, folder: Path | None, progress: bool
    ) -> None:
        self.spaces, self.solver, self.folder, self.progress = spaces, solver, folder, progress
        self.pairs = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            parts = [np.asarray(spaces.distances), np.asarray(spaces.weights)]
            made_by = f"{solver!r} {hash_of_code(pair_distances)}"
            self._made_of = b"".join(p.tobytes() for p in parts) + made_by.encode()
        own = np.repeat(np.arange(len(spaces))[:, None], 2, 1)
        self._own = self._values(own)

    def __call__(self, pairs: Int[np.ndarray, "m 2"]) -> Float[np.ndarray, " m"]:
        self.pairs += len(pairs)
        # The iteration may end elsewhere from the other side: always from the smaller index.
        values = self._values(np.sort(pairs, 1))
        return np.sqrt(np.maximum(values - self._own[pairs].sum(1) / 2, 0))

    def _values(self, pairs: Int[np.ndarray, "m 2"]) -> Float[np.ndarray, " m"]:
        blocks = [self._block(pairs[k : k + _BLOCK]) for k in range(0, len(pairs), _BLOCK)]
        return np.concatenate(blocks).astype(np.float64) if blocks else np.zeros(0)

    def _block(self, pairs: Int[np.ndarray, "m 2"]) -> Float[np.ndarray, " m"]:
        def found() -> Float[np.ndarray, " m"]:
            return pair_distances(self.spaces, pairs, self.solver, progress=self.progress).values

        if self.folder is None:
            return found()
        name = hashlib.sha256(self._made_of + np.ascontiguousarray(pairs).tobytes()).hexdigest()
        path = self.folder / f"{name[:24]}.npz"
        kept = read_arrays(path)
        if kept is not None:
            return kept["values"]
        values = found()
        write_arrays(path, {"values": values})
        return values


class _Known:
    """The pairs measured so far, and the nearest of every space among them."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._keys = np.zeros(0, np.int64)
        self._rows = [np.zeros((0, 2), int), np.zeros(0)]
        self.index = np.zeros((n, 0), int)
        self.distances = np.zeros((n, 0))

    def missing(self, pairs: Int[np.ndarray, "m 2"]) -> Int[np.ndarray, "m 2"]:
        """Pairs that are not measured yet, each once, the smaller index first."""
        keys = _distinct(self._keys_of(pairs[pairs[:, 0] != pairs[:, 1]]))
        keys = np.setdiff1d(keys, self._keys, assume_unique=True)
        return np.stack(np.divmod(keys, self._n), -1)

    def _keys_of(self, pairs: Int[np.ndarray, "m 2"]) -> Int[np.ndarray, " m"]:
        return pairs.min(1).astype(np.int64) * self._n + pairs.max(1)

    def add(self, pairs: Int[np.ndarray, "m 2"], distances: Float[np.ndarray, " m"]) -> None:
        keys, first = np.unique(self._keys_of(pairs), return_index=True)
        self._keys = _distinct(np.concatenate([self._keys, keys]))
        self._rows = [
            np.concatenate([self._rows[0], pairs[first]]),
            np.concatenate([self._rows[1], distances[first]]),
        ]

    def keep(self, followed: int) -> None:
        """Finds the nearest, and forgets the distances of all others."""
        own = np.repeat(np.arange(self._n), self.index.shape[1])
        pairs = np.concatenate([np.stack([own, self.index.ravel()], -1), self._rows[0]])
        distances = np.concatenate([self.distances.ravel(), self._rows[1]])
        _, first = np.unique(self._keys_of(pairs), return_index=True)
        self.index, self.distances = _nearest(self._n, followed, pairs[first], distances[first])
        self._rows = [np.zeros((0, 2), int), np.zeros(0)]


def _nearest(
    n: int, k: int, pairs: Int[np.ndarray, "m 2"], distances: Float[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """The nearest of every space among pairs, each given once; the fewest that any has, if less."""
    rows, others = np.concatenate([pairs, pairs[:, ::-1]]).T
    both = np.concatenate([distances, distances])
    order = np.lexsort((others, both, rows))
    rows, others, both = rows[order], others[order], both[order]
    counts = np.bincount(rows, minlength=n)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    places = starts[:, None] + np.arange(min(k, counts.min()))
    return others[places], both[places]


def _alike(vectors: Float[np.ndarray, "n m"], count: int) -> Int[np.ndarray, "l 2"]:
    """Pairs of spaces with alike vectors: of every one with its nearest, in Euclidean distance."""
    squares = (vectors**2).sum(1)
    found = []
    for first in range(0, len(vectors), _ROWS):
        rows = np.arange(first, min(first + _ROWS, len(vectors)))
        distances = squares[None] - 2 * vectors[rows] @ vectors.T
        distances[np.arange(len(rows)), rows] = np.inf
        nearest = np.argpartition(distances, count - 1, 1)[:, :count]
        found.append(np.stack([np.repeat(rows, count), nearest.ravel()], -1))
    return np.concatenate(found)


def _neighbours_of_neighbours(index: Int[np.ndarray, "n f"]) -> Int[np.ndarray, "l 2"]:
    """Pairs of spaces that are both neighbours of a third, or one the neighbour of the other's."""
    n, followed = index.shape
    # Who has a space among its neighbours, as many as it has neighbours itself.
    rows = np.repeat(np.arange(n), followed)
    order = np.argsort(index.ravel(), kind="stable")
    counts = np.bincount(index.ravel(), minlength=n)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    places = starts[:, None] + np.arange(followed)
    there = np.arange(followed) < counts[:, None]
    having = rows[order][np.minimum(places, len(order) - 1)]
    around = np.concatenate([index, np.where(there, having, np.arange(n)[:, None])], 1)
    found = []
    for first in range(0, n, _ROWS):
        own = np.arange(first, min(first + _ROWS, n))
        near = np.zeros((len(own), n), bool)
        near[np.arange(len(own))[:, None], index[around[own]].reshape(len(own), -1)] = True
        rows, others = np.nonzero(near)
        rows = own[rows]
        found.append(np.minimum(rows, others) * n + np.maximum(rows, others))
    return np.stack(np.divmod(_distinct(np.concatenate(found)), n), -1)


def _distinct(keys: Int[np.ndarray, " m"]) -> Int[np.ndarray, " l"]:
    """The different ones, ascending; ``np.unique`` hashes integers, which takes far longer."""
    keys = np.sort(keys)
    return keys[np.diff(keys, prepend=-1) > 0]
