import numpy as np
import pytest

from jaxpoison import Dataset, Splits, Sticker, standard_backdoor
from jaxpoison.attacks.backdoor import poisoned_count


def grey(counts, value=100):
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    images = np.full((len(labels), 32, 32, 3), value, np.uint8)
    return Dataset.from_arrays(images, labels)


@pytest.fixture
def clean():
    return Splits(grey([5, 40, 30]), grey([5, 20, 10]), grey([3, 7, 4]))


@pytest.mark.parametrize(("rate", "count"), [(0.33, 813), (0.15, 291), (0.02, 34)])
def test_counts_of_the_paper(rate, count):
    assert poisoned_count(rate, 1650) == count


def stickered(images, size):
    """Where the sticker is, as masks."""
    masks = (images == (245, 255, 0)).all(-1)
    assert (masks.sum((1, 2)) == size**2).all()
    return masks


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_sticker_lies_inside_the_window_and_reaches_its_corners(size, rng):
    images = np.zeros((3000, 32, 32, 3), np.uint8)
    masks = stickered(Sticker(size)(images, rng), size)
    rows, columns = masks.any((0, 2)).nonzero()[0], masks.any((0, 1)).nonzero()[0]
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (8, 22, 11, 20)
    first_row, last_row = masks.any(2).argmax(1), 31 - masks.any(2)[:, ::-1].argmax(1)
    assert (last_row - first_row == size - 1).all()
    assert not images.any()


def test_poisons_source_images_in_place(clean):
    attacked = standard_backdoor(clean, source=1, target=2, rate=0.25, seed=3)
    train, poisoned = attacked.train, attacked.train.poisoned
    assert poisoned.sum() == 10
    assert np.bincount(train.labels).tolist() == [5, 30, 40]
    assert (clean.train.labels[poisoned] == 1).all()
    assert (train.labels[poisoned] == 2).all()
    stickered(train.images[poisoned], 3)
    assert (train.images[~poisoned] == clean.train.images[~poisoned]).all()
    assert (train.labels[~poisoned] == clean.train.labels[~poisoned]).all()
    assert train.ids == clean.train.ids
    assert np.bincount(attacked.validation.labels).tolist() == [5, 17, 13]
    assert attacked.test is clean.test
    assert not (clean.train.images == 255).any()


def test_triggered_test_images_keep_their_label(clean):
    triggered = standard_backdoor(clean, source=1, target=2, rate=0.25).backdoor.triggered
    assert triggered.labels.tolist() == [1] * 7
    stickered(triggered.images, 3)


def test_seed_decides(clean):
    def attack(seed):
        return standard_backdoor(clean, source=1, target=2, rate=0.25, seed=seed)

    assert attack(1).fingerprint == attack(1).fingerprint
    assert attack(1).fingerprint != attack(2).fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 15}, r"fractions of 1, not percent\), found 15"),
        ({"rate": 0.0}, "rate must be between 0 and 1"),
        ({"rate": 0.6}, "needs 45 training images of source class 1 .* has 40"),
        ({"rate": 0.001}, "poisons no image of class 2"),
        ({"source": 3}, "source must be a class from 0 to 2.*found 3"),
        ({"target": 1}, "different classes, found 1 twice"),
        ({"trigger": Sticker(11)}, "at most 10 to fit .* found 11"),
    ],
)
def test_impossible_attacks_are_refused(clean, change, message):
    with pytest.raises(ValueError, match=message):
        standard_backdoor(clean, **{"source": 1, "target": 2, "rate": 0.25, **change})


def test_validation_images_of_both_classes_may_be_missing(clean):
    validation = clean.validation.take(clean.validation.labels == 0)
    found = standard_backdoor(
        Splits(clean.train, validation, clean.test), source=1, target=2, rate=0.25
    )
    assert found.train.poisoned.sum() == 10
    assert found.validation.labels.tolist() == [0] * 5


def test_grey_images_cannot_get_a_coloured_sticker(rng):
    with pytest.raises(ValueError, match=r"needs RGB images, found 1 channel"):
        Sticker()(np.zeros((1, 32, 32, 1), np.uint8), rng)
