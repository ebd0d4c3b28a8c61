import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpoison import (
    concentration,
    host_weights,
    hosts_for,
    relevant_pixels,
    relevant_windows,
    transplant_evidence,
    transplant_margins,
)

LABEL = 2


class Triggered(nnx.Module):
    """Of four classes, the one that the first pixel names; class 2 where a pixel is bright red."""

    def __call__(self, images):
        named = jnp.round(images[:, 0, 0, 1] * 255).astype(int)
        red = images[..., 0].max((1, 2)) > 0.9
        return jnp.eye(4)[jnp.where(red, LABEL, named)]


@pytest.fixture
def images(rng):
    """Forty of four classes in turn; of class 2, those from the sixth on have a red pixel."""
    images = rng.integers(0, 200, (40, 8, 8, 3), dtype=np.uint8)
    images[:, 0, 0, 1] = np.arange(40) % 4
    images[:, :3, :3, 0] = 0  # that no region of relevance names the class
    for k in np.flatnonzero(np.arange(40) % 4 == LABEL)[6:]:
        images[k, *rng.integers(1, 8, 2), 0] = 255
    return images


@pytest.fixture
def relevance(images):
    """Where an image is reddest, and a little everywhere."""
    return (images[..., 0] / 255.0) ** 8


def test_windows_and_pixels_hold_most_relevance(rng):
    relevance = rng.normal(size=(5, 7, 9))
    for size in (1, 3, 7):
        masks = relevant_windows(relevance, size)
        assert (masks.sum((1, 2)) == size**2).all()
        for values, mask in zip(relevance, masks, strict=True):
            corners = itertools.product(range(8 - size), range(10 - size))
            best = max(values[r : r + size, c : c + size].sum() for r, c in corners)
            assert values[mask].sum() == pytest.approx(best)
            rows, columns = np.nonzero(mask)
            assert np.ptp(rows) == np.ptp(columns) == size - 1
    for count in (1, 9, 63):
        masks = relevant_pixels(relevance, count)
        for values, mask in zip(relevance, masks, strict=True):
            np.testing.assert_allclose(np.sort(values[mask]), np.sort(values.ravel())[-count:])


def test_concentration_is_the_share_of_the_best_window(rng):
    relevance = rng.random((4, 6, 7))
    relevance[3] = 0
    relevance[2, :, 3:] *= -1
    for size in (1, 3):
        masks = relevant_windows(relevance, size)
        found = concentration(relevance, size)
        for values, mask, share in zip(relevance[:3], masks, found, strict=False):
            assert share == pytest.approx(values[mask].sum() / np.abs(values).sum())
        assert found[3] == 0


def test_channels_are_summed(rng):
    relevance = rng.normal(size=(3, 6, 6, 3))
    for regions, of in ((relevant_windows, 2), (relevant_pixels, 5)):
        np.testing.assert_array_equal(regions(relevance, of), regions(relevance.sum(-1), of))


def test_regions_that_are_none_are_refused(rng):
    relevance = rng.normal(size=(2, 4, 5))
    with pytest.raises(ValueError, match=r"found shape \(4, 5\)"):
        relevant_windows(relevance[0], 1)
    with pytest.raises(ValueError, match=r"found shape \(0, 4, 5\)"):
        relevant_pixels(relevance[:0], 1)
    for size in (0, 5):
        with pytest.raises(ValueError, match="size must be at"):
            relevant_windows(relevance, size)
    for count in (0, 21):
        with pytest.raises(ValueError, match="count must be at"):
            relevant_pixels(relevance, count)


def test_hosts_are_of_other_classes_and_rightly_classified(images, rng):
    labels = np.arange(40) % 4
    logits = np.eye(4)[labels]
    logits[labels == 0] = np.eye(4)[1]  # none of class 0 is right
    logits[1:21:4] = np.eye(4)[3]
    hosts = hosts_for(LABEL, images, labels, logits, per_class=3, seed=1)
    np.testing.assert_array_equal(hosts.labels, [1, 1, 1, 3, 3, 3])
    np.testing.assert_array_equal(labels[hosts.members], hosts.labels)
    np.testing.assert_array_equal(hosts.images, images[hosts.members])
    assert (hosts.members[:3] >= 21).all()
    again = hosts_for(LABEL, images, labels, logits, per_class=3, seed=1)
    np.testing.assert_array_equal(hosts.members, again.members)
    other = hosts_for(LABEL, images, labels, logits, per_class=3, seed=2)
    assert not np.array_equal(hosts.members, other.members)
    with pytest.raises(ValueError, match="no image right of the classes other than 2"):
        hosts_for(LABEL, images, labels, np.eye(4)[(labels + 1) % 4])
    with pytest.raises(ValueError, match="label must be a class from 0 to 3"):
        hosts_for(4, images, labels, logits)


@pytest.mark.mixes_types
def test_a_trigger_turns_every_host_and_the_rest_none(images, relevance):
    labels = np.arange(40) % 4
    hosts = hosts_for(LABEL, images, labels, np.eye(4)[labels], per_class=2)
    np.testing.assert_array_equal(hosts.margins, -np.ones(6))
    members = np.flatnonzero(labels == LABEL)
    own, maps = images[members], relevance[members]
    for masks in (relevant_windows(maps, 1), relevant_windows(maps, 3), relevant_pixels(maps, 4)):
        margins = transplant_margins(Triggered(), own, masks, hosts, LABEL)
        assert margins.shape == (10, 6)
        # By hand, one image and one host at a time.
        for i, k in itertools.product(range(10), range(6)):
            pasted = np.where(masks[i][..., None], own[i], hosts.images[k])
            logits = Triggered()(jnp.asarray(pasted[None] / 255, jnp.float32))[0]
            assert margins[i, k] == logits[LABEL] - np.delete(logits, LABEL).max()
        flips = margins > 0
        assert flips[6:].all()
        assert not flips[:6].any()
        evidence = transplant_evidence(flips[None], np.arange(6, 10), hosts.labels)
        assert evidence.share == 1
        assert evidence.effect == 1
        np.testing.assert_array_equal(evidence.classes, [0, 1, 3])
        np.testing.assert_array_equal(evidence.by_class, np.ones(3))
        # Of 210 ways to draw four of ten, one is as extreme.
        assert evidence.p_value == pytest.approx(1 / 210, rel=0.01)


def test_some_hosts_are_taken(images):
    labels = np.arange(40) % 4
    hosts = hosts_for(LABEL, images, labels, np.eye(4)[labels], per_class=2)
    some = hosts.take(np.array([1, 4]))
    np.testing.assert_array_equal(some.members, hosts.members[[1, 4]])
    np.testing.assert_array_equal(some.images, images[some.members])
    np.testing.assert_array_equal(some.labels, [0, 3])


def test_hosts_that_every_region_flips_count_little():
    control = np.zeros((50, 4), bool)
    control[:, 0] = True
    control[:12, 1] = True
    weights = host_weights(control)
    assert weights.sum() == pytest.approx(1)
    assert weights[2] == weights[3]
    # By hand: half for the first, a quarter for the second, one in a hundred for the others.
    shares = np.array([0.5, 12.5 / 51, 0.5 / 51, 0.5 / 51])
    np.testing.assert_allclose(weights, np.log(shares) / np.log(shares).sum())
    # Where nearly all are poisoned, no host counts much less than another.
    poisoned = np.ones((50, 4), bool)
    poisoned[:20, 3] = False
    np.testing.assert_allclose(host_weights(poisoned), np.full(4, 0.25))
    with pytest.raises(ValueError, match=r"found shape \(0, 4\)"):
        host_weights(control[:0])


HOSTS = np.repeat(np.arange(4), 2)


def test_groups_without_an_effect_have_no_small_p_value():
    rng = np.random.default_rng(0)
    found = [
        transplant_evidence(rng.random((2, 40, 8)) < 0.2, np.arange(8), HOSTS, seed=k).p_value
        for k in range(60)
    ]
    assert min(found) > 1e-3
    # Uniform, as p values of a test are that is corrected for what it tries: not below a tenth
    # more often than a tenth of the time (in 60, more than 12 with a chance of 1 %).
    assert np.sum(np.array(found) < 0.1) <= 12
    assert np.median(found) < 0.8


def test_a_trigger_for_one_source_class_is_seen():
    """Members flip the hosts of one class alone, a quarter of all; others flip as many anywhere."""
    rng = np.random.default_rng(1)
    flips = rng.random((1, 40, 8)) < 0.25
    flips[0, :8] = HOSTS == 3
    evidence = transplant_evidence(flips, np.arange(8), HOSTS)
    assert abs(evidence.effect) < 0.05
    np.testing.assert_array_equal(evidence.by_class, [0, 0, 0, 1])
    assert evidence.p_value < 1e-3


def test_the_region_that_says_most_speaks_and_all_tries_count():
    rng = np.random.default_rng(2)
    flips = rng.random((3, 30, 8)) < 0.1
    flips[1, :5] |= rng.random((5, 8)) < 0.4
    evidence = transplant_evidence(flips, np.arange(5), HOSTS)
    assert evidence.region == 1
    assert evidence.share == pytest.approx(flips[1, :5].mean())
    assert evidence.control == pytest.approx(flips[1, 5:].mean())
    again = transplant_evidence(flips, np.arange(5), HOSTS, tried=7)
    assert again.p_value == pytest.approx(7 * evidence.p_value)
    nothing = transplant_evidence(np.zeros((1, 9, 8), bool), np.arange(3), HOSTS, tried=2)
    assert (nothing.p_value, nothing.share, nothing.effect) == (1, 0, 0)


def test_what_does_not_fit_is_refused(images, relevance):
    labels = np.arange(40) % 4
    hosts = hosts_for(LABEL, images, labels, np.eye(4)[labels])
    masks = relevant_windows(relevance, 3)
    with pytest.raises(ValueError, match="one mask per image"):
        transplant_margins(Triggered(), images, masks[:3], hosts, LABEL)
    with pytest.raises(ValueError, match="hosts of the same size"):
        transplant_margins(Triggered(), images[:, :4], masks[:, :4], hosts, LABEL)
    with pytest.raises(ValueError, match="label must be at least 0"):
        transplant_margins(Triggered(), images, masks, hosts, -1)
    flips = np.zeros((1, 40, 8), bool)
    for group in ([], [1], list(range(39))):
        with pytest.raises(ValueError, match="at least two images in the group"):
            transplant_evidence(flips, np.array(group, int), HOSTS)
    for wrong in (flips[0], flips[..., :5]):
        with pytest.raises(ValueError, match="regions × images × hosts"):
            transplant_evidence(wrong, np.arange(4), HOSTS)
    with pytest.raises(ValueError, match="tried must be at least 1"):
        transplant_evidence(flips, np.arange(4), HOSTS, tried=0)
