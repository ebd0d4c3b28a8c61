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

from jaxpoison._checks import check_class, check_integer
from jaxpoison._precision import in_full_precision
from jaxpoison.models.inference import PureModel, pure
from jaxpoison.parallel import map_batches, over_devices

# Pasted images that go through the network at once, on all devices together.
_PASTED = 512
# Permutations where there are too many to try all.
_PERMUTATIONS = 9_999


@dataclass(frozen=True, eq=False)
class Hosts:
    """Images of other classes, on which regions are pasted.

    Attributes:
        members: Their indices in the data.
        images: They themselves.
        labels: Their classes, ascending.
    """

    members: Int[np.ndarray, " k"]
    images: UInt8[np.ndarray, "k h w c"]
    labels: Int[np.ndarray, " k"]


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
        TypeError: ``label`` or ``per_class`` is not an integer.
        ValueError: There is no such class, ``per_class`` is below 1, or there is no host at all.
    """
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
        raise ValueError(f"the network gets no image right of the classes other than {label}")
    members = np.concatenate(chosen)
    return Hosts(members, images[members], labels[members])


def transplant_flips(
    model: Any,
    images: UInt8[np.ndarray, "n h w c"],
    masks: Bool[np.ndarray, "n h w"],
    hosts: Hosts,
    label: int,
    *,
    progress: str | None = None,
) -> Bool[np.ndarray, "n k"]:
    """Pastes a region of every image on every host, at its place, and asks the network.

    After SentiNet (Chou, Tramèr, Pellegrino 2020, section 4), with a region of relevance as the
    mask. Each batch is pasted and classified on the devices; the pasted images of a batch are
    all that is held there beside the hosts.

    Args:
        model: Takes images in [0, 1], gives logits.
        images: Whose regions are pasted.
        masks: The regions, of :func:`relevant_windows` or :func:`relevant_pixels`.
        hosts: Of :func:`hosts_for`.
        label: The class of ``images``.
        progress: Title of a progress bar; none is shown without it.

    Returns:
        Whether the host is classified as ``label`` with the region on it: images × hosts.

    Raises:
        TypeError: ``label`` is not an integer.
        ValueError: There are no images, the shapes do not fit, or ``label`` is negative.

    Example:
        >>> hosts = jaxpoison.hosts_for(5, train.images, train.labels, logits)
        >>> masks = jaxpoison.relevant_windows(relevance, 3)
        >>> flips = jaxpoison.transplant_flips(model, images, masks, hosts, 5)
        >>> flips.mean(1)  # per image, the share of hosts that turn into class 5
    """
    check_integer("label", label, at_least=0)
    if masks.shape != images.shape[:3] or images.shape[1:] != hosts.images.shape[1:]:
        raise ValueError(
            "expected one mask per image and hosts of the same size, found images "
            f"{images.shape}, masks {masks.shape}, hosts {hosts.images.shape}"
        )
    network, state = pure(model)
    classes = map_batches(
        partial(_classes_with_regions, network),
        (state, hosts.images),
        images,
        masks,
        batch_size=max(1, _PASTED // len(hosts.images)),
        progress=progress,
    )
    return classes == label


@partial(jax.jit, static_argnums=0)
@in_full_precision
def _classes_with_regions(network: PureModel, shared: Any, images: Array, masks: Array) -> Array:
    def classes(shared: Any, images: Array, masks: Array) -> Array:
        state, hosts = shared
        pasted = jnp.where(masks[:, None, :, :, None], images[:, None], hosts[None])
        logits = network(state, pasted.reshape(-1, *hosts.shape[1:]).astype(jnp.float32) / 255)
        return logits.argmax(-1).reshape(len(images), len(hosts))

    return over_devices(classes)(shared, images, masks)


def transplant_scores(
    flips: Bool[np.ndarray, "n k"], control: Bool[np.ndarray, "m k"] | None = None
) -> Float[np.ndarray, " n"]:
    """How much every image's region alone speaks for a trigger.

    A flip counts by how rare it is: by the negative logarithm of the share of the control that
    flips the same host. So hosts of similar classes, which clean regions flip as well, count
    little (a digit moved to another speed limit).

    Args:
        flips: Of :func:`transplant_flips`.
        control: Flips of the same hosts by other regions; by default by these images
            themselves, which tells poisoned images apart as long as most are clean.

    Returns:
        Mean over hosts, in nats; higher is more suspicious.

    Raises:
        ValueError: The control has other hosts.

    Example:
        >>> transplant_scores(np.array([[True, True], [False, True], [False, True]])).round(2)
        array([0.56, 0.07, 0.07])
    """
    control = flips if control is None else control
    if control.shape[1:] != flips.shape[1:]:
        raise ValueError(
            f"the control must have the same {flips.shape[1]} hosts, found {control.shape[1]}"
        )
    # Half a flip and half a miss beside those seen: no share is 0 or 1.
    share = (control.sum(0) + 0.5) / (len(control) + 1)
    return (flips * -np.log(share)).mean(1)


@dataclass(frozen=True, eq=False)
class TransplantEvidence:
    """What transplants say of a group of images.

    Attributes:
        share: Of hosts that the members' regions turn into the class, mean over members.
        control: The same for the class-mates.
        by_host: ``share``, host by host.
        p_value: Of a permutation test on ``share - control``, over who is a member; for one
            group alone, not corrected for others that were tried.
    """

    share: float
    control: float
    by_host: Float[np.ndarray, " k"]
    p_value: float

    @property
    def effect(self) -> float:
        """How much more the members' regions turn than the class-mates'."""
        return self.share - self.control


def transplant_evidence(
    flips: Bool[np.ndarray, "n k"], group: Int[np.ndarray, " g"], *, seed: int = 0
) -> TransplantEvidence:
    """Judges a group of a class against the class-mates outside it.

    The test is exact where the ways to draw the group are few, and draws 9,999 of them otherwise
    (SciPy's ``permutation_test``).

    Args:
        flips: Of the class's images, or some of them; of :func:`transplant_flips`.
        group: Indices of the members among them.
        seed: Of the permutations.

    Raises:
        ValueError: Fewer than two images are in the group, or fewer than two outside.

    Example:
        >>> evidence = jaxpoison.transplant_evidence(flips, detector.groups_[1])
        >>> evidence.share, evidence.control, evidence.p_value
    """
    inside = np.zeros(len(flips), bool)
    inside[group] = True
    if min(inside.sum(), (~inside).sum()) < 2:
        raise ValueError(
            f"expected at least two images in the group and two outside, found {inside.sum()} and "
            f"{(~inside).sum()}"
        )
    shares = flips.mean(1)
    test = permutation_test(
        (shares[inside], shares[~inside]),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        batch=256,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return TransplantEvidence(
        float(shares[inside].mean()),
        float(shares[~inside].mean()),
        flips[inside].mean(0),
        float(test.pvalue),
    )
