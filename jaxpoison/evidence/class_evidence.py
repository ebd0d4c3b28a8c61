"""What transplants say of a class, and what follows for its images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxpoison.evidence.transplant import TransplantEvidence
from jaxpoison.evidence.trigger import Trigger
from jaxpoison.evidence.verdict import (
    MOST_LEAVE,
    TURNS_FROM,
    Verdict,
    called_from,
    judged_by_transplants,
    most_turned,
    needed,
    turns,
)


@dataclass(frozen=True, eq=False)
class JudgedGroup:
    """A proposed group, and what its members' regions do.

    Attributes:
        members: Indices of its images within the class.
        hosts_turned: The share of hosts that some of them turn, on average, every host weighed by
            :func:`host_weights`; by the size that says most.
        evidence: Of these against class-mates that were asked; ``None`` where there are too few
            of either to compare.
    """

    members: Int[np.ndarray, " g"]
    hosts_turned: float
    evidence: TransplantEvidence | None


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
        distinct: Which of the asked images are not copies of one before, to the byte.
        weights: What a flip of every host counts, for every size.
        groups: Proposed groups.
        trigger: What the windows of called images have in common; ``None`` where none are called.
        carriers: Indices of images that were called only then: at the place where they are most
            like the trigger, they turn enough hosts.
        carried: Shares of the hosts that those turn, weighed as ``shares``.
        leaves: Which images the network puts into the class, but not when their windows of most
            relevance, of all sizes, are filled from around them (:func:`occlusion`). Poisoned
            images owe the class to the trigger and leave it; a part of what a class shows is not
            missed. Tried are those of :attr:`turning`.

    Examples:
        >>> hosts = jp.hosts_for(5, train.images, train.labels, jp.predict(model, train.images))
        >>> evidence = jp.judge_class(model, images, heatmaps, hosts, 5)
        >>> evidence.label, evidence.called.shape, 0 <= evidence.hosts_turned <= 1
        (5, (20,), True)
    """

    label: int
    sizes: tuple[int, ...]
    classes: Int[np.ndarray, " k"]
    screening: Float[np.ndarray, " n"]
    asked: Int[np.ndarray, " a"]
    flips: Bool[np.ndarray, "r a k"]
    shares: Float[np.ndarray, " a"]
    distinct: Bool[np.ndarray, " a"]
    weights: Float[np.ndarray, "r k"]
    groups: tuple[JudgedGroup, ...]
    leaves: Bool[np.ndarray, " n"]
    trigger: Trigger | None = None
    carriers: Int[np.ndarray, " m"] = field(default_factory=lambda: np.zeros(0, int))
    carried: Float[np.ndarray, " m"] = field(default_factory=lambda: np.zeros(0))

    @property
    def hosts_turned(self) -> float:
        """The share of hosts that regions turn, of :func:`most_turned`; needed or not."""
        groups = [group.hosts_turned for group in self.groups]
        return most_turned(self.shares[self.distinct], groups)

    @property
    def turning(self) -> Bool[np.ndarray, " n"]:
        """Which images turn enough hosts: by their own region, or as members of a group."""
        found = np.zeros(len(self.screening), bool)
        found[self.asked] = turns(self.shares)
        for group in self.groups:
            found[group.members] |= turns(np.array(group.hosts_turned))
        return found

    @property
    def leaving(self) -> float | None:
        """The share of those that leave the class without their region; ``None`` of none."""
        turning = self.turning
        return float(self.leaves[turning].mean()) if turning.any() else None

    @property
    def _trusted(self) -> Bool[np.ndarray, " n"]:
        """Images of which what they turn says that they are poisoned."""
        if self.leaving is not None and self.leaving >= MOST_LEAVE:
            return np.ones(len(self.leaves), bool)
        return self.leaves

    @property
    def verdict(self) -> Verdict:
        """Whether the class is attacked."""
        shares = np.where(self.leaves[self.asked], self.shares, 0.0)
        groups = [group.hosts_turned for group in self.groups if needed(self.leaves[group.members])]
        return judged_by_transplants(self.hosts_turned, most_turned(shares[self.distinct], groups))

    @property
    def doubted(self) -> bool:
        """Whether its regions turn enough hosts, but too few of its images need them."""
        return not self.verdict.suspicious and self.hosts_turned >= TURNS_FROM

    @property
    def called_from(self) -> float:
        """The share of hosts from which on an image is called, if the class is attacked."""
        return called_from(self.shares[self._trusted[self.asked]])

    @property
    def called(self) -> Bool[np.ndarray, " n"]:
        """Which images are called poisoned, in an attacked class.

        Those that turn enough hosts, and all members of groups that do: each of them if most leave
        the class without their region, else those that leave it. And those that carry the trigger
        of these.
        """
        found = np.zeros(len(self.screening), bool)
        if self.verdict.suspicious:
            found[self.asked] = self.shares >= self.called_from
            for group in self.groups:
                found[group.members] |= turns(np.array(group.hosts_turned))
            found &= self._trusted
        found[self.carriers] = True
        return found

    @property
    def scores(self) -> Float[np.ndarray, " n"]:
        """Of every image; higher is more suspicious.

        The share of hosts, from 0 to 1, where all were asked; below 0 and in the order of the
        screening elsewhere. Of images that turn enough to be called, but do not need their region,
        it is below what is called.
        """
        scores = self.screening - self.screening.max() - 1
        stays = turns(self.shares) & ~self._trusted[self.asked]
        scores[self.asked] = np.where(stays, _BELOW * TURNS_FROM * self.shares, self.shares)
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
            said = None
            if group.evidence is not None:
                said = dataclasses.asdict(group.evidence)
                del said["classes"]
                said["by_class"] = group.evidence.by_class.tolist()
            groups.append({"hosts_turned": group.hosts_turned, "evidence": said})
            arrays[f"group_{k}"] = group.members
        if self.trigger is not None:
            arrays |= {f"trigger_{name}": getattr(self.trigger, name) for name in _OF_TRIGGER}
        values = {
            "label": self.label,
            "sizes": list(self.sizes),
            "reach": None if self.trigger is None else self.trigger.reach,
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
            said, evidence = group["evidence"], None
            if said is not None:
                by_class = np.array(said["by_class"])
                evidence = TransplantEvidence(classes=classes, **{**said, "by_class": by_class})
            groups.append(JudgedGroup(arrays[f"group_{k}"], group["hosts_turned"], evidence))
        trigger = None
        if "trigger_values" in arrays:
            found = {name: arrays[f"trigger_{name}"] for name in _OF_TRIGGER}
            trigger = Trigger(**found, reach=values["reach"])
        return cls(
            label=values["label"],
            sizes=tuple(values["sizes"]),
            groups=tuple(groups),
            trigger=trigger,
            **{name: arrays[name] for name in _ARRAYS},
        )


# Scores of images that stay in their class, as a share of what they would be called from.
_BELOW = 0.99
# Arrays of evidence and of its trigger, by the names of their fields.
_ARRAYS = (
    "classes",
    "screening",
    "asked",
    "flips",
    "shares",
    "distinct",
    "weights",
    "leaves",
    "carriers",
    "carried",
)
_OF_TRIGGER = ("values", "spread", "places")
