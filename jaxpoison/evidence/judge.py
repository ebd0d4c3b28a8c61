"""A class judged by transplants: which of its images carry what turns other classes into it?

Regions of all images on all hosts would cost hours. So the images whose relevance is concentrated
most are pasted on few hosts, and those whose regions move these towards the class most, and some
of every proposed group, on all.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from sklearn.base import BaseEstimator

from jaxpoison._checks import check_fraction, check_integer
from jaxpoison._sampling import evenly
from jaxpoison.detectors.density import HeatmapDensity
from jaxpoison.detectors.detection import Detection
from jaxpoison.evidence.regions import concentration, relevant_windows, windows_at
from jaxpoison.evidence.transplant import (
    Hosts,
    TransplantEvidence,
    host_weights,
    transplant_evidence,
    transplant_margins,
)
from jaxpoison.evidence.trigger import Trigger, recovered_trigger, trigger_distances
from jaxpoison.evidence.verdict import Verdict, called, judged_by_transplants, most_turned, turns
from jaxpoison.gw.spaces import constant

# Members of a group that are asked, and class-mates, evenly over all, that are the control.
_OF_GROUP, _CONTROL = 8, 32
# Fewest images that are screened.
_SCREENED = 64
# A class that turns this share of what it takes to be called attacked, on some hosts, is asked
# on all.
_UNCLEAR_FROM = 0.5
# Where this share of those asked last is called, as many again are asked.
_GO_ON_FROM = 0.1
# An image is asked whether it carries the trigger if it differs from it by no more than so many
# times as much as most of those do that were called.
_REACH, _MOST_OF_THEM = 1.5, 0.9


@dataclass(frozen=True, eq=False)
class JudgedGroup:
    """A proposed group, and what its members' regions do.

    Attributes:
        members: Indices of its images within the class.
        hosts_turned: The share of hosts that some of them turn, on average, every host weighed by
            :func:`host_weights`; by the size that says most.
        evidence: Of these against class-mates evenly over the class.
    """

    members: Int[np.ndarray, " g"]
    hosts_turned: float
    evidence: TransplantEvidence


@dataclass(frozen=True, eq=False)
class ClassEvidence:
    """What transplants say of a class.

    Attributes:
        label: The class.
        sizes: Sides of the windows of relevance that were pasted.
        classes: Classes of the hosts.
        screening: Of all images: by how much their regions move a few hosts towards the class,
            in robust standard deviations of their class-mates; lower and in the order of
            concentration where that was not tried.
        asked: Indices of the images whose regions were pasted on all hosts, ascending.
        flips: Which hosts those turned into the class: sizes × asked images × hosts.
        shares: Of the asked images: the share of hosts they turn, by the size that says most,
            every host weighed by :func:`host_weights`.
        weights: What a flip of every host counts, for every size.
        groups: Proposed groups.
        trigger: What the windows of called images have in common; ``None`` where none are called.
        reach: How far an image may differ from the trigger to be asked whether it carries it.
        carriers: Indices of images that were called only then: at the place where they are most
            like the trigger, they turn enough hosts.
        carried: Shares of the hosts that those turn, weighed as ``shares``.
    """

    label: int
    sizes: tuple[int, ...]
    classes: Int[np.ndarray, " k"]
    screening: Float[np.ndarray, " n"]
    asked: Int[np.ndarray, " a"]
    flips: Bool[np.ndarray, "r a k"]
    shares: Float[np.ndarray, " a"]
    weights: Float[np.ndarray, "r k"]
    groups: tuple[JudgedGroup, ...]
    trigger: Trigger | None = None
    reach: float = 0.0
    carriers: Int[np.ndarray, " m"] = field(default_factory=lambda: np.zeros(0, int))
    carried: Float[np.ndarray, " m"] = field(default_factory=lambda: np.zeros(0))

    @property
    def hosts_turned(self) -> float:
        """The share of hosts by which the class is judged, of :func:`most_turned`."""
        return most_turned(self.shares, [group.hosts_turned for group in self.groups])

    @property
    def verdict(self) -> Verdict:
        """Whether the class is attacked."""
        return judged_by_transplants(self.hosts_turned)

    @property
    def called(self) -> Bool[np.ndarray, " n"]:
        """Which images are called poisoned, in an attacked class.

        Those that turn enough hosts, all members of groups that do, and those that carry the
        trigger of these.
        """
        found = np.zeros(len(self.screening), bool)
        if self.verdict.suspicious:
            found[self.asked] = called(self.shares)
            for group in self.groups:
                found[group.members] |= turns(np.array(group.hosts_turned))
        found[self.carriers] = True
        return found

    @property
    def scores(self) -> Float[np.ndarray, " n"]:
        """Of every image; higher is more suspicious.

        The share of hosts, from 0 to 1, where all were asked; below 0 and in the order of the
        screening elsewhere.
        """
        scores = self.screening - self.screening.max() - 1
        scores[self.asked] = self.shares
        scores[self.carriers] = np.maximum(scores[self.carriers], self.carried)
        return scores

    def turned(self) -> dict[int, float]:
        """By class of the host, the share of hosts that called images turn; none without them."""
        chosen = self.called[self.asked]
        if not chosen.any():
            return {}
        flips = self.flips[:, chosen]
        most = flips.mean((1, 2)).argmax()
        return {
            int(k): float(flips[most][:, self.classes == k].mean()) for k in np.unique(self.classes)
        }

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """JSON values and arrays, from which :meth:`of_parts` makes it again."""
        groups = []
        arrays: dict[str, np.ndarray] = {name: getattr(self, name) for name in _ARRAYS}
        for k, group in enumerate(self.groups):
            found = dataclasses.asdict(group.evidence)
            del found["classes"]
            found["by_class"] = group.evidence.by_class.tolist()
            groups.append({"hosts_turned": group.hosts_turned, "evidence": found})
            arrays[f"group_{k}"] = group.members
        if self.trigger is not None:
            arrays |= {f"trigger_{name}": getattr(self.trigger, name) for name in _OF_TRIGGER}
        values = {
            "label": self.label,
            "sizes": list(self.sizes),
            "reach": self.reach,
            "groups": groups,
        }
        return values, arrays

    @classmethod
    def of_parts(cls, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> ClassEvidence:
        """The evidence that :meth:`parts` describes.

        Args:
            values: Its JSON values.
            arrays: Its arrays, and perhaps others.
        """
        classes = np.unique(arrays["classes"])
        groups = []
        for k, group in enumerate(values["groups"]):
            found = {**group["evidence"], "by_class": np.array(group["evidence"]["by_class"])}
            evidence = TransplantEvidence(classes=classes, **found)
            groups.append(JudgedGroup(arrays[f"group_{k}"], group["hosts_turned"], evidence))
        trigger = None
        if "trigger_values" in arrays:
            trigger = Trigger(**{name: arrays[f"trigger_{name}"] for name in _OF_TRIGGER})
        return cls(
            label=values["label"],
            sizes=tuple(values["sizes"]),
            reach=values["reach"],
            groups=tuple(groups),
            trigger=trigger,
            **{name: arrays[name] for name in _ARRAYS},
        )


# Arrays of evidence and of its trigger, by the names of their fields.
_ARRAYS = (
    "classes",
    "screening",
    "asked",
    "flips",
    "shares",
    "weights",
    "carriers",
    "carried",
)
_OF_TRIGGER = ("values", "spread", "places")


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
    seed: int = 0,
    progress: str | None = None,
) -> ClassEvidence:
    """Asks the network which images of a class carry what turns others into it.

    Images are screened, those first whose relevance a small window holds most of
    (:func:`concentration`): their windows of most relevance are pasted on few hosts. Those that
    move these most, members of the proposed groups and some class-mates as a control are then
    pasted on all hosts; and as long as many of those asked last are called, as many again. From
    the images called the trigger is recovered, and searched for in the others.

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
        seed: Of the choice of hosts for the screening, and of permutations.
        progress: Title of progress bars; none are shown without it.

    Raises:
        TypeError: A number is not an integer.
        ValueError: Shapes do not fit, there are no images, all heatmaps are constant, or a number
            is out of range.

    Example:
        >>> hosts = jaxpoison.hosts_for(5, train.images, train.labels, logits)
        >>> groups = jaxpoison.HeatmapDensity().fit(heatmaps).groups_[1:]
        >>> found = jaxpoison.judge_class(model, images, heatmaps, hosts, 5, groups)
        >>> found.verdict.suspicious, np.flatnonzero(found.called)
    """
    check_fraction("screened", screened, below_one=False)
    check_integer("screened_by", screened_by, at_least=1)
    check_integer("asked", asked, at_least=1)
    masks = [relevant_windows(heatmaps, size) for size in sizes]
    rng = np.random.default_rng(seed)
    few = hosts.take(rng.permutation(len(hosts.labels))[:screened_by])

    def margins(rows: np.ndarray, hosts: Hosts, doing: str) -> Float[np.ndarray, "r m k"]:
        title = None if progress is None else f"{progress}, {doing}"
        return np.stack(
            [
                transplant_margins(model, images[rows], of[rows], hosts, label, progress=title)
                for of in masks
            ]
        )

    # A constant heatmap has no region: such an image is not asked.
    shaped = ~constant(heatmaps)
    if not shaped.any():
        raise ValueError(f"all {len(heatmaps)} heatmaps are constant: they show no region")
    dense = concentration(heatmaps, min(sizes))
    by_concentration = np.argsort(-np.where(shaped, dense, -1), kind="stable")[: shaped.sum()]
    first = by_concentration[: max(_SCREENED, round(screened * len(images)))]
    gains = _screening(margins(first, few, "few hosts") - few.margins)
    # Others come after them. No share is above 1.
    screening = gains.min() - 2 + dense
    screening[first] = gains
    order = np.argsort(-screening, kind="stable")
    order = order[shaped[order]]
    n = len(order)
    control = np.flatnonzero(shaped)[evenly(n, _CONTROL)]
    of_groups = [group[evenly(len(group), _OF_GROUP)] for group in groups]
    rows = np.unique(np.concatenate([order[:asked], control, *of_groups]))
    flips = margins(rows, hosts, "all hosts") > 0
    weights = [host_weights(of[np.isin(rows, control)]) for of in flips]
    done = min(asked, n)
    while done < n:
        last = order[done - min(asked, done) : done]
        shares = _shares(flips[:, np.isin(rows, last)], weights)
        if turns(shares).mean() < _GO_ON_FROM:
            break
        done = min(2 * done, n)
        new = np.setdiff1d(order[:done], rows)
        if not len(new):
            continue
        flips = np.concatenate([flips, margins(new, hosts, "all hosts") > 0], axis=1)
        rows = np.concatenate([rows, new])
        flips, rows = flips[:, np.argsort(rows)], np.sort(rows)
    judged = []
    for members, some in zip(groups, of_groups, strict=True):
        mates = np.setdiff1d(control, members)
        among = np.union1d(some, mates)
        of_these = flips[:, np.isin(rows, among)]
        evidence = transplant_evidence(
            of_these, np.searchsorted(among, some), hosts.labels, tried=len(groups), seed=seed
        )
        own = flips[:, np.isin(rows, some)]
        turned = max(float((of @ w).mean()) for of, w in zip(own, weights, strict=True))
        judged.append(JudgedGroup(members, turned, evidence))
    found = ClassEvidence(
        label,
        tuple(sizes),
        hosts.labels,
        screening,
        rows,
        flips,
        _shares(flips, weights),
        np.stack(weights),
        tuple(judged),
    )
    those = found.called
    if not those.any():
        return found
    trigger = recovered_trigger(images[those], heatmaps[those], size=max(sizes))
    distances, _ = trigger_distances(trigger, images)
    reach = _REACH * float(np.quantile(distances[those], _MOST_OF_THEM))
    found = dataclasses.replace(found, trigger=trigger, reach=reach)
    others = np.flatnonzero(~those)
    carriers, carried = find_carriers(model, images[others], found, hosts, progress=progress)
    return dataclasses.replace(found, carriers=others[carriers], carried=carried)


def find_carriers(
    model: Any,
    images: UInt8[np.ndarray, "n h w c"],
    evidence: ClassEvidence,
    hosts: Hosts,
    *,
    progress: str | None = None,
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Searches images of any class for the trigger of an attacked one.

    At the place where an image is most like the trigger, if it is so enough, its window is pasted
    on the hosts; it carries the trigger if these turn.

    Args:
        model: Takes images in [0, 1], gives logits.
        images: Searched; their labels play no part.
        evidence: Of the attacked class.
        hosts: Those that were used for it.
        progress: Title of progress bars; none are shown without it.

    Returns:
        Indices of the images that carry it, and the weighed share of hosts that each turns.
        None where nothing of the class was called.
    """
    none = np.zeros(0, int), np.zeros(0)
    if evidence.trigger is None or not len(images):
        return none
    title = None if progress is None else f"{progress}, looking for the trigger"
    distances, places = trigger_distances(evidence.trigger, images, progress=title)
    likely = np.flatnonzero(distances <= evidence.reach)
    if not len(likely):
        return none
    size = max(evidence.sizes)
    masks = windows_at(places[likely], size, images.shape[1:3])
    title = None if progress is None else f"{progress}, carriers"
    margins = transplant_margins(
        model, images[likely], masks, hosts, evidence.label, progress=title
    )
    shares = (margins > 0) @ evidence.weights[evidence.sizes.index(size)]
    carries = turns(shares)
    return likely[carries], shares[carries]


def _screening(gains: Float[np.ndarray, "r n k"]) -> Float[np.ndarray, " n"]:
    """Mean over hosts of the robust standard score of the gains; of the size that says most."""
    median = np.median(gains, 1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(gains - median), 1, keepdims=True)
    return ((gains - median) / np.maximum(spread, 1e-6)).mean(2).max(0)


def _shares(
    flips: Bool[np.ndarray, "r m k"], weights: Sequence[Float[np.ndarray, " k"]]
) -> Float[np.ndarray, " m"]:
    return np.max([of @ w for of, w in zip(flips, weights, strict=True)], axis=0)


@dataclass(frozen=True, eq=False)
class Case:
    """A class as :class:`TransplantJudge` looks at it.

    Attributes:
        model: Takes images in [0, 1], gives logits.
        images: All of the class.
        heatmaps: Their relevance towards it.
        hosts: Of :func:`hosts_for`.
        label: The class.
    """

    model: Any
    images: UInt8[np.ndarray, "n h w c"]
    heatmaps: Float[np.ndarray, "n h w"]
    hosts: Hosts
    label: int

    def __len__(self) -> int:
        """How many images the class has."""
        return len(self.images)


class TransplantJudge(BaseEstimator):
    """Density proposes groups of a class, transplants judge them and every image.

    See :class:`HeatmapDensity` and :func:`judge_class`.

    Args:
        sizes: Sides of the windows of relevance that are pasted.
        screened: Share of the images that are pasted on few hosts: those of the most concentrated
            relevance.
        screened_by: How many these hosts are.
        asked: Images whose windows are pasted on all hosts at first.
        at_first: Hosts on which a class is judged at first; on all of them only where that leaves
            a doubt. Always on all by default.
        random_state: Seed.
        progress: Show progress bars.

    Attributes:
        evidence_: What transplants say.
        detection_: The images called, and the score of every image.
    """

    def __init__(
        self,
        sizes: tuple[int, ...] = (3, 5),
        screened: float = 1.0,
        screened_by: int = 4,
        asked: int = 32,
        at_first: int | None = None,
        random_state: int = 0,
        progress: bool = False,
    ) -> None:
        self.sizes = sizes
        self.screened = screened
        self.at_first = at_first
        self.screened_by = screened_by
        self.asked = asked
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Case, y: None = None) -> TransplantJudge:  # noqa: N803
        """Judges a class.

        Args:
            X: The class.
            y: Ignored; the truth is never looked at.

        Raises:
            TypeError: An option has the wrong type.
            ValueError: An option is out of range, the class has too few images for groups, or
                a heatmap is not finite.
        """
        started = time.perf_counter()
        if self.at_first is not None:
            check_integer("at_first", self.at_first, at_least=1)
        # Constant heatmaps have no geometry: such images are in no group.
        shaped = np.flatnonzero(~constant(X.heatmaps))
        density = HeatmapDensity(progress=self.progress).fit(X.heatmaps[shaped])
        proposed = [shaped[group] for group in density.groups_[1:]]
        judge = partial(
            judge_class,
            X.model,
            X.images,
            X.heatmaps,
            label=X.label,
            groups=proposed,
            sizes=self.sizes,
            screened=self.screened,
            screened_by=self.screened_by,
            asked=self.asked,
            seed=self.random_state,
            progress="transplants" if self.progress else None,
        )
        unclear = True
        if self.at_first is not None and self.at_first < len(X.hosts.labels):
            drawn = np.random.default_rng(self.random_state).permutation(len(X.hosts.labels))
            few = X.hosts.take(np.sort(drawn[: self.at_first]))
            self.evidence_: ClassEvidence = judge(hosts=few)
            suspicion = self.evidence_.verdict.suspicion
            unclear = suspicion is not None and suspicion >= _UNCLEAR_FROM
        if unclear:
            self.evidence_ = judge(hosts=X.hosts)
        self.detection_ = Detection(
            labels=self.evidence_.called.astype(int),
            scores=self.evidence_.scores,
            seconds=time.perf_counter() - started,
            converged=True,
            notes={"groups": len(proposed), "asked": len(self.evidence_.asked)},
        )
        return self

    def sample_distances(self, chosen: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m m"]:
        """By how much the scores of some of the images differ, after ``fit``.

        Args:
            chosen: Their indices.
        """
        scores = self.detection_.scores[chosen]
        return np.abs(scores[:, None] - scores)
