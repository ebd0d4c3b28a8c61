"""Transplants: does the region that explains an image turn other classes' images into its class?

A trigger does; what a class really looks like hardly does, in a region so small. The regions
come from the relevance, and are pasted at their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from scipy.stats import permutation_test

from jaxpoison._checks import check_class, check_images, check_integer
from jaxpoison._precision import in_full_precision
from jaxpoison._progress import Bar
from jaxpoison.models.inference import PureModel, class_count, pure
from jaxpoison.parallel import map_batches, over_devices

# Pasted images that go through the network at once, on all devices together; and pairs of images
# and hosts that are brought together at once, and their pixels.
_PASTED, _PAIRS, _PIXELS = 256, 4096, 2**25
# Permutations where there are too many to try all.
_PERMUTATIONS = 9_999
# Most that a host is thought to be turned by clean regions. Where most of a class is poisoned, its
# own images are no control: all hosts then weigh the same.
_EASIEST = 0.5


@dataclass(frozen=True, eq=False)
class Hosts:
    """Images of other classes, on which regions are pasted.

    Attributes:
        members: Their indices in the data.
        images: They themselves.
        labels: Their classes, ascending.
        margins: By how much the logit of the class that has no hosts exceeds the largest other
            one, before anything is pasted; negative.

    Examples:
        >>> hosts = jp.hosts_for(5, train.images, train.labels, jp.predict(model, train.images))
        >>> 5 in hosts.labels, hosts.images.shape[1:]
        (False, (32, 32, 3))
    """

    members: Int[np.ndarray, " k"]
    images: UInt8[np.ndarray, "k h w c"]
    labels: Int[np.ndarray, " k"]
    margins: Float[np.ndarray, " k"]

    def take(self, index: Int[np.ndarray, " m"]) -> Hosts:
        """Some of the hosts."""
        return Hosts(
            self.members[index], self.images[index], self.labels[index], self.margins[index]
        )


def hosts_for(
    label: int,
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    logits: Float[np.ndarray, "n classes"],
    *,
    per_class: int = 1,
    seed: int = 0,
) -> Hosts:
    """Draws hosts from every class but one, of the images that the network classifies rightly.

    A class of which it gets none right has no host.

    Args:
        label: The class that has none.
        images: Of all classes.
        labels: Their classes.
        logits: Of the network, for them.
        per_class: Most hosts of a class.
        seed: Of the draw.

    Raises:
        TypeError: ``label`` or ``per_class`` is not an integer, or the images are not ``uint8``.
        ValueError: There is no such class, ``per_class`` is below 1, or there is no host at all.

    Examples:
        >>> logits = np.eye(10, dtype="float32")[train.labels]  # of a network that is always right
        >>> hosts = jp.hosts_for(5, train.images, train.labels, logits, per_class=2)
        >>> hosts.labels.tolist()
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 6, 6, 7, 7, 8, 8, 9, 9]
    """
    check_images("images", images)
    label = check_class("label", label, logits.shape[-1])
    check_integer("per_class", per_class, at_least=1)
    rng = np.random.default_rng(seed)
    right = logits.argmax(-1) == labels
    chosen: list[np.ndarray] = []
    for other in np.unique(labels):
        able = np.flatnonzero(right & (labels == other))
        if other != label and len(able):
            chosen.append(np.sort(rng.choice(able, min(per_class, len(able)), replace=False)))
    if not chosen:
        raise ValueError(
            f"the network gets no image right of the classes other than {label}: there is nothing "
            "to paste regions on"
        )
    members = np.concatenate(chosen)
    others = np.delete(logits[members], label, -1).max(-1)
    return Hosts(members, images[members], labels[members], logits[members, label] - others)


def transplant_margins(
    model: Any,
    images: UInt8[np.ndarray, "n h w c"],
    masks: Bool[np.ndarray, "n h w"],
    hosts: Hosts,
    label: int,
    *,
    progress: str | None = None,
) -> Float[np.ndarray, "n k"]:
    """Pastes a region of every image on every host, at its place, and asks the network.

    After SentiNet (Chou, Tramèr, Pellegrino 2020, section 4), with a region of relevance as the
    mask. Batches of pairs are pasted and classified on the devices.

    Args:
        model: Takes images in [0, 1], gives logits.
        images: Whose regions are pasted.
        masks: The regions, of :func:`relevant_windows` or :func:`relevant_pixels`.
        hosts: Of :func:`hosts_for`.
        label: The class of ``images``.
        progress: Title of a progress bar; none is shown without it.

    Returns:
        By how much the logit of ``label`` exceeds the largest other one with the region on the
        host: images × hosts. The host is classified as ``label``, it *flips*, where that is
        positive.

    Raises:
        TypeError: ``label`` is not an integer, or the images are not ``uint8``.
        ValueError: There are no images, the shapes do not fit, or ``label`` is no class of the
            model.

    Examples:
        >>> hosts = jp.hosts_for(5, train.images, train.labels, jp.predict(model, train.images))
        >>> masks = jp.relevant_windows(heatmaps, 3)
        >>> margins = jp.transplant_margins(model, images, masks, hosts, 5)
        >>> shares = (margins > 0).mean(1)  # per image, of hosts that turn into class 5
        >>> shares.shape
        (20,)
    """
    label = check_class("label", label, class_count(model, images))
    if masks.shape != images.shape[:3] or images.shape[1:] != hosts.images.shape[1:]:
        raise ValueError(
            "expected one mask per image and hosts of the same size, found images "
            f"{images.shape}, masks {masks.shape}, hosts {hosts.images.shape}"
        )
    if not len(images):
        raise ValueError("expected at least one image, found none")
    count = len(hosts.images)
    pairs = np.stack(np.divmod(np.arange(len(images) * count), count), -1)
    found = margins_of_pairs(model, images, masks, hosts, label, pairs, progress=progress)
    return found.reshape(len(images), count)


def margins_of_pairs(
    model: Any,
    images: UInt8[np.ndarray, "n h w c"],
    masks: Bool[np.ndarray, "n h w"],
    hosts: Hosts,
    label: int,
    pairs: Int[np.ndarray, "m 2"],
    *,
    progress: str | None = None,
) -> Float[np.ndarray, " m"]:
    """As :func:`transplant_margins`, for some pairs of an image and a host alone."""
    network, state = pure(model)
    parts = [np.zeros(0, np.float32)]
    height, width = images.shape[1:3]
    at_once = max(_PASTED, min(_PAIRS, _PIXELS // (height * width)))
    with Bar(progress or "", len(pairs), unit="pairs", show=progress is not None) as bar:
        for first in range(0, len(pairs), at_once):
            some = pairs[first : first + at_once]
            # Always whole batches: however many pairs there are, a network is compiled once.
            rows, columns = np.pad(some, ((0, -len(some) % _PASTED), (0, 0)), "edge").T
            found = map_batches(
                partial(_margins_with_regions, network),
                (state, np.int32(label)),
                images[rows],
                masks[rows],
                hosts.images[columns],
                batch_size=_PASTED,
            )
            parts.append(found[: len(some)])
            bar.advance(len(some))
    return np.concatenate(parts)


@partial(jax.jit, static_argnums=0)
@in_full_precision
def _margins_with_regions(
    network: PureModel, shared: Any, images: Array, masks: Array, hosts: Array
) -> Array:
    def margins(shared: Any, images: Array, masks: Array, hosts: Array) -> Array:
        state, label = shared
        pasted = jnp.where(masks[..., None], images, hosts)
        logits = network(state, pasted.astype(jnp.float32) / 255)
        other = jnp.arange(logits.shape[-1]) != label
        largest = jnp.where(other[None], logits, -jnp.inf).max(-1)
        return logits[:, label] - largest

    return over_devices(margins)(shared, images, masks, hosts)


def host_weights(control: Bool[np.ndarray, "m k"]) -> Float[np.ndarray, " k"]:
    """What a flip of every host counts: the more, the fewer regions of the control flip it.

    The negative logarithm of their share, scaled to sum 1. So hosts of similar classes, which
    clean regions flip as well, count little (a digit moved to another speed limit). Half of the
    control is the most that is thought to flip a host, whatever is seen: where most of a class
    is poisoned, its own images are no control, and all hosts weigh about the same.

    Args:
        control: Which hosts flip by regions of images most of which are thought to be clean.

    Raises:
        ValueError: The control is empty.

    Examples:
        >>> jp.host_weights(np.array([[True, False], [True, False], [False, False]])).round(2)
        array([0.25, 0.75])
    """
    if not control.size:
        raise ValueError(f"the control must hold images and hosts, found shape {control.shape}")
    # Half a flip and half a miss beside those seen: no share is 0 or 1.
    share = (control.sum(0) + 0.5) / (len(control) + 1)
    weights = -np.log(np.minimum(share, _EASIEST))
    return weights / weights.sum()


@dataclass(frozen=True, eq=False)
class TransplantEvidence:
    """What transplants say of a group of images, by the region that says most.

    Attributes:
        region: Index of that region among those that were tried.
        share: Of hosts that the members' regions turn into the class, mean over members.
        control: The same for the class-mates.
        classes: Classes of the hosts.
        by_class: ``share``, by class of the host. A trigger that works in one source class alone
            (TaCT: Tang et al. 2021) shows here.
        p_value: Of a permutation test over who is a member, corrected for all regions, for
            single classes of hosts and for the groups that were tried.

    Examples:
        >>> flips = np.zeros((1, 40, 6), bool)
        >>> flips[:, :10] = True  # ten of forty images turn every host
        >>> found = jp.transplant_evidence(flips, np.arange(10), np.arange(6))
        >>> found.share, found.control, found.effect, found.p_value < 0.01
        (1.0, 0.0, 1.0, True)
    """

    region: int
    share: float
    control: float
    classes: Int[np.ndarray, " c"]
    by_class: Float[np.ndarray, " c"]
    p_value: float

    @property
    def effect(self) -> float:
        """How much more the members' regions turn than the class-mates'."""
        return self.share - self.control


def transplant_evidence(
    flips: Bool[np.ndarray, "r n k"],
    group: Int[np.ndarray, " g"],
    labels: Int[np.ndarray, " k"],
    *,
    tried: int = 1,
    seed: int = 0,
) -> TransplantEvidence:
    """Judges a group of a class against the class-mates outside it.

    What is tested is how much more the members flip than the others: of all hosts, and of those
    of every class alone, by every region. Each of these differences is divided by its standard
    deviation under permutations; the largest is compared with the largest under each permutation
    (Westfall and Young 1993, max-T), and the p value multiplied by the number of groups. The
    test is exact where the ways to draw the group are few, and draws 9,999 of them otherwise
    (SciPy's ``permutation_test``).

    Args:
        flips: Of the class's images, or some of them, by one or more regions: where
            :func:`transplant_margins` is positive.
        group: Indices of the members among them.
        labels: Classes of the hosts.
        tried: How many groups are judged.
        seed: Of the permutations.

    Raises:
        TypeError: ``tried`` is not an integer.
        ValueError: Fewer than two images are in the group, or fewer than two outside; the
            shapes do not fit; ``tried`` is below 1.

    Examples:
        >>> flips = np.random.default_rng(0).random((2, 40, 6)) < 0.1  # windows × images × hosts
        >>> found = jp.transplant_evidence(flips, np.arange(10), np.arange(6))
        >>> found.p_value > 0.01
        True
    """
    check_integer("tried", tried, at_least=1)
    if flips.ndim != 3 or labels.shape != flips.shape[2:]:
        raise ValueError(
            "expected flips as regions × images × hosts and one class per host, found shapes "
            f"{flips.shape} and {labels.shape}"
        )
    inside = np.zeros(flips.shape[1], bool)
    inside[group] = True
    if min(inside.sum(), (~inside).sum()) < 2:
        raise ValueError(
            f"expected at least two images in the group and two outside, found {inside.sum()} and "
            f"{(~inside).sum()}"
        )
    shares = flips.mean(2)
    effects = shares[:, inside].mean(1) - shares[:, ~inside].mean(1)
    region = int(effects.argmax())
    classes = np.unique(labels)
    of_class = np.stack([flips[:, :, labels == k].mean(2) for k in classes], -1)
    by_class = of_class[region, inside].mean(0)
    # images × (regions × (all hosts, and each class's))
    tested = np.concatenate([shares[..., None], of_class], -1)
    tested = tested.transpose(1, 0, 2).reshape(len(inside), -1)
    p_value = _largest_difference(tested[inside], tested[~inside], seed)
    return TransplantEvidence(
        region,
        float(shares[region, inside].mean()),
        float(shares[region, ~inside].mean()),
        classes,
        by_class,
        min(1.0, tried * p_value),
    )


def _largest_difference(
    inside: Float[np.ndarray, "g t"], outside: Float[np.ndarray, "m t"], seed: int
) -> float:
    """The p value of the largest of several differences of means, corrected for their number."""
    varies = np.ptp(np.concatenate([inside, outside]), axis=0) > 0
    if not varies.any():
        return 1.0
    test = permutation_test(
        (inside[:, varies], outside[:, varies]),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        batch=64,
        alternative="greater",
        axis=0,
        rng=np.random.default_rng(seed),
    )
    spread = test.null_distribution.std(0)
    seen = (test.statistic / spread).max()
    under_chance = (test.null_distribution / spread).max(-1)
    # What differs by rounding alone is as large.
    as_large = int((under_chance >= seen - 1e-9 * abs(seen)).sum())
    exact = len(under_chance) < _PERMUTATIONS
    return as_large / len(under_chance) if exact else (as_large + 1) / (len(under_chance) + 1)
