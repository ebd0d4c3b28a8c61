import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison import (
    PGD,
    AmplitudePattern,
    Dataset,
    Splits,
    Sticker,
    label_consistent_backdoor,
    perturbed,
    projected_gradient_ascent,
)
from jaxpoison.metrics import success_rate_by_class


@pytest.fixture
def clean(rng):
    def part(counts):
        labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        images = rng.integers(60, 190, (len(labels), 32, 32, 3)).astype(np.uint8)
        return Dataset.from_arrays(images, labels)

    return Splits(part([5, 40, 30]), part([5, 20, 10]), part([3, 7, 4]))


def test_pattern_reads_as_in_the_paper():
    grey = np.full((1, 32, 32, 3), 100, np.uint8)
    marked = AmplitudePattern(64)(grey)[0].astype(int) - 100
    assert (marked == marked[..., :1]).all()
    rows, columns = np.nonzero(marked[..., 0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (19, 21, 19, 21)
    # From the lower right pixel: right to left, bottom to top.
    read = marked[21:18:-1, 21:18:-1, 0]
    assert (read == 64 * np.array([[1, -1, 1], [-1, 1, -1], [1, -1, -1]])).all()
    assert (grey == 100).all()


def test_pattern_mirrors_into_four_corners():
    grey = np.full((1, 32, 32, 3), 100, np.uint8)
    marked = AmplitudePattern(30, distance=1, four_corners=True)(grey)[0]
    one = AmplitudePattern(30, distance=1)(grey)[0]
    assert (marked == marked[::-1]).all()
    assert (marked == marked[:, ::-1]).all()
    assert (marked[16:, 16:] == one[16:, 16:]).all()
    assert (marked != 100).sum() == 4 * (one != 100).sum() == 4 * 27


def test_full_pattern_is_black_and_white(clean):
    images = clean.train.images
    full = AmplitudePattern(32).full(images)
    assert (full == AmplitudePattern(256)(images)).all()
    assert set(np.unique(full[:, 19:22, 19:22])) == {0, 255}


def test_patterns_are_checked():
    with pytest.raises(ValueError, match="amplitude must be at most 256, found 300"):
        AmplitudePattern(300)
    with pytest.raises(ValueError, match="does not fit into images of 32x32 .* distance 30"):
        AmplitudePattern(distance=30)(np.zeros((1, 32, 32, 3), np.uint8))


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("radius", [300.0, 0.04])
def test_ascent_is_that_of_a_plain_loop(rng, norm, radius):
    weights = rng.normal(size=(4 * 4 * 3, 5))
    images = rng.uniform(0, 1, (6, 4, 4, 3))
    labels = np.arange(6) % 5
    settings = PGD(norm=norm, radius=radius)
    found = projected_gradient_ascent(
        lambda x: linear(jnp.asarray(weights, jnp.float32), x),
        jnp.asarray(images, jnp.float32),
        jnp.asarray(labels),
        settings,
    )
    for start, label, moved in zip(images, labels, np.asarray(found), strict=True):
        x = start
        for _ in range(settings.steps):
            scores = np.exp(x.ravel() @ weights)
            gradient = weights @ (scores / scores.sum() - np.eye(5)[label])
            change = x + settings.step_size * np.sign(gradient).reshape(x.shape) - start
            if norm == "linf":
                change = np.clip(change, -radius, radius)
            else:
                change *= min(1, radius / np.linalg.norm(change))
            x = np.clip(start + change, 0, 1)
        np.testing.assert_allclose(moved, x, atol=1e-6)


def test_images_at_rest_are_perturbed_batch_by_batch(rng):
    weights = jnp.asarray(rng.normal(size=(4 * 4 * 3, 5)), jnp.float32)
    images = rng.integers(0, 256, (7, 4, 4, 3)).astype(np.uint8)
    labels = np.arange(7) % 5
    found = perturbed(linear, weights, images, labels, batch_size=4)
    expected = projected_gradient_ascent(
        lambda x: linear(weights, x), jnp.asarray(images / 255, jnp.float32), labels, PGD()
    )
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, 255 * np.asarray(expected), atol=0.51)
    # Five steps of 0.015 on pixels of 0 to 1.
    moved = np.abs(found.astype(int) - images)
    assert moved.max() == 19
    with pytest.raises(ValueError, match=r"one class per image \(7\), found 6"):
        perturbed(linear, weights, images, labels[:6])


def test_loss_rises(rng):
    weights = jnp.asarray(rng.normal(size=(48, 5)), jnp.float32)
    images = jnp.asarray(rng.uniform(0.2, 0.8, (9, 4, 4, 3)), jnp.float32)
    labels = np.arange(9) % 5
    moved = projected_gradient_ascent(lambda x: linear(weights, x), images, labels, PGD())
    before, after = (linear(weights, x)[np.arange(9), labels] for x in (images, moved))
    assert (after < before).all()


def test_target_images_are_spoilt_and_keep_their_label(clean):
    seen = []

    def perturb(images, labels):
        seen.append((images, labels))
        return images + 7

    attacked = label_consistent_backdoor(
        clean, perturb, target=2, rate=0.3, trigger=Sticker(2), seed=4
    )
    ((images, labels),) = seen
    assert len(images) == 9 + 3
    assert (labels == 2).all()
    train, poisoned = attacked.train, attacked.train.poisoned
    assert poisoned.sum() == 9
    assert (clean.train.labels[poisoned] == 2).all()
    assert (train.labels == clean.train.labels).all()
    assert train.ids == clean.train.ids
    assert (train.images[~poisoned] == clean.train.images[~poisoned]).all()
    marked = (train.images[poisoned] == (245, 255, 0)).all(-1)
    assert (marked.sum((1, 2)) == 4).all()
    assert (train.images[poisoned][~marked] == clean.train.images[poisoned][~marked] + 7).all()
    changed = (attacked.validation.images != clean.validation.images).any((1, 2, 3))
    assert changed.sum() == 3
    assert (clean.validation.labels[changed] == 2).all()
    assert attacked.test is clean.test
    assert attacked.backdoor.source is None


def test_all_other_test_images_get_the_full_trigger(clean):
    weak = AmplitudePattern(16)
    attacked = label_consistent_backdoor(
        clean, lambda images, _: images, target=1, rate=0.1, trigger=weak, test_trigger=weak.full
    )
    assert attacked.backdoor.triggered.labels.tolist() == [0] * 3 + [2] * 4
    spots = attacked.backdoor.triggered.images[:, 19:22, 19:22]
    assert set(np.unique(spots)) == {0, 255}
    spots = attacked.train.images[attacked.train.poisoned][:, 19:22, 19:22]
    assert 0 not in spots


def test_impossible_attacks_are_refused(clean):
    def never(*_):
        raise AssertionError("what cannot be attacked was perturbed first")

    for change, message in (
        ({"rate": 33}, "fractions of 1, not percent"),
        ({"rate": 0.001}, "poisons no image of class 2: it has 30 training images"),
        ({"target": 3}, "target must be a class from 0 to 2.*found 3"),
        ({"trigger": Sticker(12)}, "sticker size must be at most 10"),
        ({"test_trigger": AmplitudePattern(distance=31)}, "the pattern does not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            label_consistent_backdoor(clean, never, **{"target": 2, "rate": 0.3, **change})
    for change, message in (
        ({"norm": "l1"}, "PGD norm must be one of l2, linf; found 'l1'"),
        ({"steps": 0}, "PGD steps must be at least 1"),
        ({"radius": -1.0}, "PGD radius must be"),
    ):
        with pytest.raises(ValueError, match=message):
            PGD(**change)


def test_success_by_class():
    logits = np.eye(3)[[1, 1, 0, 1, 2]]
    shares = success_rate_by_class(logits, np.array([0, 0, 0, 2, 2]), 1)
    assert shares == {0: pytest.approx(2 / 3), 2: 0.5}
