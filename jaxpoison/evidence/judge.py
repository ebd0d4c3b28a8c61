"""A class judged by transplants: which of its images carry what turns other classes into it?

Regions of all images on all hosts would cost hours. So the images whose relevance is concentrated
most are pasted on few hosts, and those whose regions move these towards the class most, and some
of every proposed group, on more of them, or on all. What was asked once is not asked again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jaxpoison._checks import check_class, check_fraction, check_integer
from jaxpoison._sampling import evenly
from jaxpoison.evidence.class_evidence import ClassEvidence, JudgedGroup
from jaxpoison.evidence.occlusion import occlusion
from jaxpoison.evidence.regions import concentration, window_places, windows_at
from jaxpoison.evidence.transplant import (
    Hosts,
    host_weights,
    margins_of_pairs,
    transplant_evidence,
    transplant_margins,
)
from jaxpoison.evidence.trigger import recovered_trigger, trigger_distances
from jaxpoison.evidence.verdict import UNCLEAR_FROM, turns
from jaxpoison.gw.spaces import constant
from jaxpoison.models.inference import class_count, predict

# Members of a group that are asked, and class-mates, evenly over all, that are the control.
_OF_GROUP, _CONTROL = 8, 32
# Pixels of images, every size of window counted, whose regions are pasted in one go.
_PIXELS = 2**26
# Fewest images that are screened.
_SCREENED = 64
# Where this share of those asked last is called, as many again are asked.
_GO_ON_FROM = 0.1
# An image is asked whether it carries the trigger if it differs from it by no more than so many
# times its reach; the nearest of them, so many for every image called and so many more; on so many
# hosts at first.
_REACH, _FOR_EVERY_CALLED, _MORE, _HOSTS_AT_FIRST = 1.5, 20, 500, 8


def judge_class(
    model: Any,
    images: UInt8[np.ndarray, "n h w c"],
    heatmaps: Float[np.ndarray, "n h w"],
    hosts: Hosts,
    label: int,
    groups: Sequence[Int[np.ndarray, " g"]] = (),
    *,
    sizes: Sequence[int] = (3, 5),
    screened: float = 1.0,
    screened_by: int = 4,
    asked: int = 32,
    at_first: int | None = None,
    search: bool = True,
    seed: int = 0,
    progress: str | None = None,
) -> ClassEvidence:
    """Asks the network which images of a class carry what turns others into it.

    Images are screened, those first whose relevance a small window holds most of
    (:func:`concentration`): their windows of most relevance are pasted on few hosts. Those that
    move these most, members of the proposed groups and, where any of these flips a host, some
    class-mates as a control are then pasted on all hosts; and as long as many of those asked last
    are called, as many again. The windows of those that turn enough are filled from around them:
    called are the images that leave the class by that. From them the trigger is recovered, and
    searched for in the others.

    Args:
        model: Takes images in [0, 1], gives logits.
        images: All of the class.
        heatmaps: Their relevance towards it.
        hosts: Of :func:`hosts_for`.
        label: The class.
        groups: Indices of the images of every group that is proposed.
        sizes: Sides of the windows.
        screened: Share of the images that are screened, but 64 at the least.
        screened_by: Hosts for the screening.
        asked: Images asked first, by the screening.
        at_first: Hosts on which the class is judged at first; on all of them only where that
            leaves a doubt. Always on all by default.
        search: Recover the trigger, if images are called, and search the others for it.
        seed: Of the choice of hosts for the screening, and of permutations.
        progress: Title of progress bars; none are shown without it.

    Raises:
        TypeError: A number is not an integer, or the images are not ``uint8``.
        ValueError: Shapes do not fit, there are no images, all heatmaps are constant, or a number
            is out of range.

    Examples:
        >>> hosts = jp.hosts_for(5, train.images, train.labels, jp.predict(model, train.images))
        >>> groups = jp.HeatmapDensity(min_cluster_size=5).fit(heatmaps).groups_[1:]
        >>> found = jp.judge_class(model, images, heatmaps, hosts, 5, groups)
        >>> found.verdict.suspicious, np.flatnonzero(found.called)
        (False, array([], dtype=int64))
    """
    label = check_class("label", label, class_count(model, images))
    check_fraction("screened", screened, below_one=False)
    check_integer("screened_by", screened_by, at_least=1)
    check_integer("asked", asked, at_least=1)
    if at_first is not None:
        check_integer("at_first", at_first, at_least=1)
    sizes = tuple(sizes)
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(hosts.labels))
    windows = _Windows(model, images, heatmaps, sizes, hosts, label, progress)
    # A constant heatmap has no region: such an image is not asked.
    shaped = ~constant(heatmaps)
    if not shaped.any():
        raise ValueError(f"all {len(heatmaps)} heatmaps are constant: they show no region")
    dense = concentration(heatmaps, min(sizes))
    by_concentration = np.argsort(-np.where(shaped, dense, -1), kind="stable")[: shaped.sum()]
    first = by_concentration[: max(_SCREENED, round(screened * len(images)))]
    few = drawn[:screened_by]
    gains = _screening(windows.margins(first, few, "few hosts") - hosts.margins[few])
    # Others come after them. No share is above 1.
    screening = gains.min() - 2 + dense
    screening[first] = gains
    order = np.argsort(-screening, kind="stable")
    order = order[shaped[order]]

    found = _said_on(windows, drawn[:at_first], screening, order, groups, asked, seed)
    if at_first is not None and found.hosts_turned >= UNCLEAR_FROM:
        # What turned hardly any of the first hosts is not asked on the others.
        doubtful = found.asked[found.shares >= UNCLEAR_FROM]
        order = np.concatenate([doubtful, order[~np.isin(order, doubtful)]])
        clear = [group for group in found.groups if group.hosts_turned < UNCLEAR_FROM]
        open_ = [group.members for group in found.groups if group.hosts_turned >= UNCLEAR_FROM]
        found = _said_on(windows, drawn, screening, order, open_, max(1, len(doubtful)), seed)
        every = sorted((*found.groups, *clear), key=lambda group: -len(group.members))
        found = dataclasses.replace(found, groups=tuple(every))
    turning = np.flatnonzero(found.turning)
    if not len(turning):
        return found
    # Whichever size turns hosts, its window is among them.
    masks = [
        windows_at(of[turning], side, images.shape[1:3])
        for of, side in zip(windows.places, sizes, strict=True)
    ]
    regions = np.any(masks, axis=0)
    leaves = np.zeros(len(images), bool)
    leaves[turning] = _leaves(model, images[turning], regions, label)
    found = dataclasses.replace(found, leaves=leaves)
    those = np.flatnonzero(found.called)
    if not search or not len(those):
        return found
    # Of every image the size by which it turns most, the middle of its window kept.
    by_size = np.stack([of @ w for of, w in zip(found.flips, found.weights, strict=True)])
    best = np.full(len(images), int(by_size[:, np.isin(found.asked, those)].mean(1).argmax()))
    best[found.asked] = by_size.argmax(0)
    size = max(sizes)
    start = np.stack(
        [of - (size - side) // 2 for of, side in zip(windows.places, sizes, strict=True)]
    )
    trigger = recovered_trigger(images[those], start[best[those], those], size=size)
    found = dataclasses.replace(found, trigger=trigger)
    others = np.setdiff1d(np.arange(len(images)), those)
    carriers, carried = find_carriers(model, images, found, hosts, among=others, progress=progress)
    return dataclasses.replace(found, carriers=carriers, carried=carried)


def _leaves(
    model: Any, images: UInt8[np.ndarray, "n h w c"], regions: Bool[np.ndarray, "n h w"], label: int
) -> Bool[np.ndarray, " n"]:
    """Which images are in a class, and not without a region.

    Those that are all region are nothing without it. Images that the network puts elsewhere anyway
    say nothing of the region.
    """
    leaves = predict(model, images).argmax(-1) == label
    some = leaves & ~regions.all((1, 2))
    if some.any():
        leaves[some] = occlusion(model, images[some], regions[some], label).classes != label
    return leaves


class _Windows:
    """Windows of a class's images pasted on hosts; a pair that was asked once is not asked again.

    Attributes:
        places: Of the windows of most relevance, for every size.
    """

    def __init__(
        self,
        model: Any,
        images: UInt8[np.ndarray, "n h w c"],
        heatmaps: Float[np.ndarray, "n h w"],
        sizes: Sequence[int],
        hosts: Hosts,
        label: int,
        progress: str | None,
    ) -> None:
        self.images, self.sizes, self.hosts, self.label = images, tuple(sizes), hosts, label
        self.places = [window_places(heatmaps, size) for size in sizes]
        self._model, self._progress = model, progress
        self._margins = np.full((len(sizes), len(images), len(hosts.labels)), np.nan, np.float32)

    def margins(
        self, rows: Int[np.ndarray, " m"], columns: Int[np.ndarray, " k"], doing: str
    ) -> Float[np.ndarray, "r m k"]:
        """Of :func:`transplant_margins`, for every size, some images and some hosts."""
        among = np.ix_(np.arange(len(self.sizes)), rows, columns)
        pixels = int(np.prod(self.images.shape[1:3])) * len(self.sizes)
        count = max(1, _PIXELS // pixels)
        for start in range(0, len(rows), count):
            self._ask(rows[start : start + count], columns, doing)
        return self._margins[among]

    def _ask(self, rows: Int[np.ndarray, " m"], columns: Int[np.ndarray, " k"], doing: str) -> None:
        among = np.ix_(np.arange(len(self.sizes)), rows, columns)
        size, row, column = np.nonzero(np.isnan(self._margins[among]))
        if not len(size):
            return
        shape = self.images.shape[1:3]
        masks = [
            windows_at(of[rows], side, shape)
            for of, side in zip(self.places, self.sizes, strict=True)
        ]
        # Every size of an image is one to be pasted: all sizes go together.
        self._margins[size, rows[row], columns[column]] = margins_of_pairs(
            self._model,
            np.tile(self.images[rows], (len(masks), 1, 1, 1)),
            np.concatenate(masks),
            self.hosts,
            self.label,
            np.stack([size * len(rows) + row, columns[column]], -1),
            progress=None if self._progress is None else f"{self._progress}, {doing}",
        )


def _said_on(
    windows: _Windows,
    columns: Int[np.ndarray, " k"],
    screening: Float[np.ndarray, " n"],
    order: Int[np.ndarray, " m"],
    groups: Sequence[Int[np.ndarray, " g"]],
    asked: int,
    seed: int,
) -> ClassEvidence:
    """What transplants on some hosts say of a class.

    Args:
        windows: Asks the network.
        columns: Indices of the hosts.
        screening: Of all images.
        order: Those that have a region, those first that are to be asked first.
        groups: That are proposed.
        asked: Images asked first, by the order.
        seed: Of permutations.
    """
    n, images, columns = len(order), windows.images, np.sort(columns)

    def flips_of(rows: Int[np.ndarray, " a"]) -> Bool[np.ndarray, "r a k"]:
        return windows.margins(rows, columns, f"{len(columns)} hosts") > 0

    of_groups = [group[evenly(len(group), _OF_GROUP)] for group in groups]
    rows = control = np.unique(np.concatenate([order[:asked], *of_groups]))
    flips = flips_of(rows)
    if flips.any():
        control = np.sort(order)[evenly(n, _CONTROL)]
        rows = np.union1d(rows, control)
        flips = flips_of(rows)
    weights = [host_weights(of[np.isin(rows, control)]) for of in flips]
    done = min(asked, n)
    while done < n:
        last = order[done - min(asked, done) : done]
        shares = _shares(flips[:, np.isin(rows, last)], weights)
        if turns(shares).mean() < _GO_ON_FROM:
            break
        done = min(2 * done, n)
        rows = np.union1d(rows, order[:done])
        flips = flips_of(rows)
    judged = []
    for members, some in zip(groups, of_groups, strict=True):
        mates = np.setdiff1d(control, members)
        if len(mates) < 2:
            mates = np.setdiff1d(rows, members)
        evidence = None
        if min(len(some), len(mates)) >= 2:
            among = np.union1d(some, mates)
            evidence = transplant_evidence(
                flips[:, np.isin(rows, among)],
                np.searchsorted(among, some),
                windows.hosts.labels[columns],
                tried=len(groups),
                seed=seed,
            )
        own = flips[:, np.isin(rows, some)]
        turned = max(float((of @ w).mean()) for of, w in zip(own, weights, strict=True))
        judged.append(JudgedGroup(members, turned, evidence))
    flat = images[rows].reshape(len(rows), -1)
    distinct = np.zeros(len(rows), bool)
    distinct[np.unique(flat, axis=0, return_index=True)[1]] = True
    return ClassEvidence(
        windows.label,
        windows.sizes,
        windows.hosts.labels[columns],
        screening,
        rows,
        flips,
        _shares(flips, weights),
        distinct,
        np.stack(weights),
        tuple(judged),
        np.zeros(len(images), bool),
    )


def find_carriers(
    model: Any,
    images: UInt8[np.ndarray, "n h w c"],
    evidence: ClassEvidence,
    hosts: Hosts,
    *,
    among: Int[np.ndarray, " a"] | None = None,
    progress: str | None = None,
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Searches images of any class for the trigger of an attacked one.

    At the place where an image is most like the trigger, if it is so enough, its window is pasted
    on some hosts, and where any of these turns, on all; it carries the trigger if as many turn as
    make an image of the class be called. The images most like the trigger are asked, 500 and
    twenty for each that is called at the most.

    Args:
        model: Takes images in [0, 1], gives logits.
        images: Searched; their labels play no part.
        evidence: Of the attacked class.
        hosts: Those that were used for it.
        among: Indices of those that may be named; all by default.
        progress: Title of progress bars; none are shown without it.

    Returns:
        Indices of the images that carry it, and the weighed share of hosts that each turns.
        None where nothing of the class was called.

    Examples:
        >>> validation = attacked.validation
        >>> carriers, shares = jp.find_carriers(backdoored, validation.images, evidence, hosts)
        >>> carriers.tolist() == np.flatnonzero(validation.poisoned).tolist()
        True
    """
    none = np.zeros(0, int), np.zeros(0)
    among = np.arange(len(images)) if among is None else among
    if evidence.trigger is None or not len(among):
        return none
    title = None if progress is None else f"{progress}, looking for the trigger"
    distances, places = trigger_distances(evidence.trigger, images, progress=title)
    most = _FOR_EVERY_CALLED * int(evidence.called.sum()) + _MORE
    likely = among[np.argsort(distances[among], kind="stable")[:most]]
    likely = np.sort(likely[distances[likely] <= _REACH * evidence.trigger.reach])
    size = len(evidence.trigger.values)
    weights = evidence.weights[evidence.sizes.index(size)]

    def flips(rows: np.ndarray, hosts: Hosts) -> Bool[np.ndarray, "m k"]:
        title = None if progress is None else f"{progress}, carriers"
        masks = windows_at(places[rows], size, images.shape[1:3])
        margins = transplant_margins(
            model, images[rows], masks, hosts, evidence.label, progress=title
        )
        return margins > 0

    # Hosts that hardly anything else turns say most.
    for some in (np.argsort(-weights, kind="stable")[:_HOSTS_AT_FIRST], np.arange(len(weights))):
        if not len(likely):
            return none
        turned = flips(likely, hosts.take(some))
        shares = turned @ weights[some]
        kept = turned.any(1) if len(some) < len(weights) else shares >= evidence.called_from
        likely, shares = likely[kept], shares[kept]
    return likely, shares


def _screening(gains: Float[np.ndarray, "r n k"]) -> Float[np.ndarray, " n"]:
    """Mean over hosts of the robust standard score of the gains; of the size that says most."""
    median = np.median(gains, 1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(gains - median), 1, keepdims=True)
    return ((gains - median) / np.maximum(spread, 1e-6)).mean(2).max(0)


def _shares(
    flips: Bool[np.ndarray, "r m k"], weights: Sequence[Float[np.ndarray, " k"]]
) -> Float[np.ndarray, " m"]:
    return np.max([of @ w for of, w in zip(flips, weights, strict=True)], axis=0)
