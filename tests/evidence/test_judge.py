"""A class judged: few hosts for all images, all hosts for some, and the trigger from these."""

import dataclasses
import importlib
import itertools

import numpy as np
import pytest
from obeys import CLASSES, LABEL, SIDE, SOURCE, STICKER, Obeys, class_images, hosts_of, sticker

from jaxpoison import find_carriers, judge_class, recovered_trigger, trigger_distances
from jaxpoison.evidence.class_evidence import ClassEvidence
from jaxpoison.evidence.estimator import Case, TransplantJudge
from jaxpoison.evidence.regions import concentration, window_places
from jaxpoison.evidence.verdict import (
    FEWEST_IMAGES,
    TURNS_FROM,
    called_from,
    judged_by_transplants,
    most_turned,
    needed,
)
from jaxpoison.jobs import detecting
from jaxpoison.jobs.asking import evidence_of
from jaxpoison.jobs.detecting import detect, detection_of
from jaxpoison.report.words import said_of_class

module = importlib.import_module("jaxpoison.evidence.judge")
pytestmark = pytest.mark.mixes_types


@pytest.mark.parametrize(("count", "poisoned"), [(70, 5), (70, 60), (16, 16), (60, 30)])
def test_what_is_poisoned_is_called_whether_few_or_most_are(count, poisoned):
    rng = np.random.default_rng(count + poisoned)
    images, heatmaps, _ = class_images(rng, count, poisoned)
    hosts = hosts_of(rng)
    found = judge_class(Obeys(), images, heatmaps, hosts, LABEL, asked=8)
    assert found.verdict.suspicious
    np.testing.assert_array_equal(found.called, np.arange(count) < poisoned)
    # By their own flips, as many as are called being asked: not only by the trigger's likeness.
    alone = judge_class(Obeys(), images, heatmaps, hosts, LABEL, asked=8, search=False)
    np.testing.assert_array_equal(alone.called, found.called)
    if poisoned < count:
        assert found.scores[:poisoned].min() > found.scores[poisoned:].max()
    assert found.turned() == dict.fromkeys(np.delete(np.arange(CLASSES), LABEL), 1.0)


@pytest.mark.parametrize("owed", [0, 2, 3, 7, 8, 10])
def test_a_class_is_attacked_by_images_that_need_their_region(owed):
    """With their own class in the first pixel they stay; with another they leave."""
    rng = np.random.default_rng(owed)
    images, heatmaps, _ = class_images(rng, 60, 10)
    images[owed:10, 0, 0, 1] = LABEL
    found = judge_class(Obeys(), images, heatmaps, hosts_of(rng), LABEL, asked=8)
    assert found.hosts_turned > 0.9
    np.testing.assert_array_equal(found.turning, np.arange(60) < 10)
    np.testing.assert_array_equal(found.leaves, np.arange(60) < owed)
    assert found.leaving == owed / 10
    attacked = owed >= FEWEST_IMAGES
    assert found.verdict.suspicious is attacked
    assert found.doubted is not attacked
    # Those that stay carry the trigger of those that leave.
    assert found.called.sum() == (10 if attacked else 0)
    assert len(found.carriers) == (10 - owed if attacked and owed < 8 else 0)
    assert (found.trigger is not None) is attacked
    # It stands before all classes that turn nothing, and images below what is called.
    assert found.verdict.suspicion > 0.9
    assert found.scores[owed:10].max(initial=1) >= TURNS_FROM or not attacked
    if not attacked:
        assert found.scores[owed:10].max() < TURNS_FROM
    said = said_of_class(found)
    if attacked:
        assert f"and {owed} of the 10 leave it without that region." in said
    else:
        assert f"But only {10 * owed} % of the images that turn them leave the class" in said
    assert ClassEvidence.of_parts(*found.parts()).verdict == found.verdict


def test_clean_images_that_turn_hosts_are_not_called_beside_poisoned_ones():
    """As many clean regions look like the trigger as poisoned ones; their images do not need it."""
    rng = np.random.default_rng(8)
    images, heatmaps, places = class_images(rng, 60, 24)
    images[12:24, 0, 0, 1] = LABEL
    # What they show is not quite the trigger: it is not found by its likeness.
    for k, (row, column) in zip(range(12, 24), places[12:24], strict=True):
        images[k, row : row + 3, column : column + 3] = STICKER - (0, 15, -8)
    groups = [np.arange(24)]
    found = judge_class(Obeys(), images, heatmaps, hosts_of(rng), LABEL, groups, asked=8)
    assert found.turning[:24].all()
    assert found.verdict.suspicious
    np.testing.assert_array_equal(np.flatnonzero(found.called & found.leaves), np.arange(12))


def test_which_images_leave_a_class_without_a_region(rng):
    images, _, places = class_images(rng, 5, 5)
    masks = np.zeros(images.shape[:3], bool)
    for mask, (row, column) in zip(masks, places, strict=True):
        mask[row : row + 3, column : column + 3] = True
    images[:2, 0, 0, 1] = LABEL
    # The last carries nothing, and is of another class with or without its region.
    images[4] = 100
    images[4, 0, 0, 1] = SOURCE
    leaves = module._leaves(Obeys(), images, masks, LABEL)
    assert leaves.tolist() == [False, False, True, True, False]
    # One that is all region cannot be asked without it.
    masks[0] = True
    leaves = module._leaves(Obeys(), images, masks, LABEL)
    assert leaves.tolist() == [True, False, True, True, False]
    assert module._leaves(Obeys(), images[:1], masks[:1], LABEL).tolist() == [True]
    assert module._leaves(Obeys(), images[4:], masks[4:], LABEL).tolist() == [False]


def test_a_clean_class_is_not_attacked(rng):
    images, heatmaps, _ = class_images(rng, 60, 0)
    found = judge_class(Obeys(), images, heatmaps, hosts_of(rng), LABEL, [np.arange(9)], asked=8)
    assert not found.verdict.suspicious
    assert not found.called.any()
    assert found.turned() == {}
    assert found.trigger is None
    assert found.leaving is None
    # Every region turns the similar class, and so hardly counts.
    assert found.flips[:, :, found.classes == 3].all()
    assert found.hosts_turned < 0.05
    assert find_carriers(Obeys(), images, found, hosts_of(rng))[0].size == 0


def test_two_images_are_no_attack(rng):
    images, heatmaps, _ = class_images(rng, 60, FEWEST_IMAGES - 1)
    assert not judge_class(Obeys(), images, heatmaps, hosts_of(rng), LABEL).called.any()


def test_few_are_asked_all_of_a_group_called(rng):
    images, heatmaps, _ = class_images(rng, 200, 12)
    groups = [np.arange(12), np.arange(100, 140)]
    found = judge_class(Obeys(), images, heatmaps, hosts_of(rng), LABEL, groups, asked=8)
    assert len(found.asked) < 80
    assert found.called.sum() == 12
    first, second = found.groups
    assert first.hosts_turned == pytest.approx(1)
    assert first.evidence.p_value < 0.01
    assert second.hosts_turned < 0.1
    # Poisoned class-mates do not make a clean group look worse than it is.
    assert second.evidence.p_value == 1


def test_what_relevance_does_not_show_the_trigger_finds():
    """A sticker that is not what explains an image is found by its likeness to the others."""
    rng = np.random.default_rng(3)
    images, heatmaps, _ = class_images(rng, 90, 20)
    hidden = np.arange(80, 85)
    for k in hidden:
        sticker(images[k], (1 + k % 3, 3))
    found = judge_class(Obeys(), images, heatmaps, hosts_of(rng), LABEL, asked=8)
    assert set(found.carriers) == set(hidden)
    assert found.called.sum() == 25
    assert found.scores[hidden].min() >= TURNS_FROM
    # Images of other classes carry it as well; what is only alike turns nothing.
    others = rng.integers(20, 200, (30, SIDE, SIDE, 3), dtype=np.uint8)
    others[:, 0, 0, 1] = 7
    for k in (4, 9):
        sticker(others[k], (6, 5))
    others[11, 6:9, 5:8] = np.maximum(STICKER - 25, 0)
    index, shares = find_carriers(Obeys(), others, found, hosts_of(rng))
    np.testing.assert_array_equal(index, [4, 9])
    assert (shares >= TURNS_FROM).all()


def test_the_trigger_is_recovered_where_windows_sit_on_it_askew():
    rng = np.random.default_rng(4)
    images, heatmaps, places = class_images(rng, 30, 30)
    for k in range(30):
        # A relevant pixel beside the sticker draws the window away from it.
        heatmaps[k, places[k, 0] + k % 3 - 1 + (k % 2), places[k, 1] - 1] += 0.5
    trigger = recovered_trigger(images, window_places(heatmaps, 5), size=5)
    assert trigger.values.shape == (5, 5, 3)
    agree = trigger.spread.max(-1) < 1
    assert agree.sum() == 9
    np.testing.assert_allclose(trigger.values[agree], np.tile(STICKER, (9, 1)), atol=1e-4)
    # Each window sits on its sticker in the same way.
    np.testing.assert_array_equal(np.ptp(places - trigger.places, axis=0), [0, 0])
    assert trigger.weights.sum() == pytest.approx(1)
    assert trigger.weights[agree].min() > 10 * trigger.weights[~agree].max()


@pytest.mark.parametrize("count", [3, 5, 20])
def test_a_trigger_of_few_images_reaches_others(count):
    """Of few windows, many pixels agree by chance; left out in turn, they say how far."""
    rng = np.random.default_rng(count)
    images, heatmaps, _ = class_images(rng, 60, 60)
    trigger = recovered_trigger(images[:count], window_places(heatmaps[:count], 5))
    distances, _ = trigger_distances(trigger, images[count:])
    assert (distances <= 1.5 * trigger.reach).mean() > 0.9


def test_one_window_alone_and_equal_ones_reach_as_far_as_noise(rng):
    image = rng.integers(0, 256, (1, 9, 9, 1), dtype=np.uint8)
    places = np.array([[2, 3]])
    for images in (image, np.repeat(image, 4, 0)):
        trigger = recovered_trigger(images, np.repeat(places, len(images), 0), size=3)
        assert trigger.reach == 8
        np.testing.assert_array_equal(trigger.values, image[0, 2:5, 3:6])
    with pytest.raises(ValueError, match="sides of at least 10"):
        recovered_trigger(image, places, size=10)


def test_copies_of_two_images_are_no_attack():
    rng = np.random.default_rng(5)
    images, heatmaps, _ = class_images(rng, 60, 4)
    for k in (1, 2, 3):
        images[k], heatmaps[k] = images[k % 2], heatmaps[k % 2]
    found = judge_class(Obeys(), images, heatmaps, hosts_of(rng), LABEL)
    assert found.shares[:4].min() >= TURNS_FROM
    assert not found.verdict.suspicious
    images, heatmaps, _ = class_images(rng, 60, 4)
    assert judge_class(Obeys(), images, heatmaps, hosts_of(rng), LABEL).verdict.suspicious


def test_a_class_that_is_one_group_is_judged(rng):
    """There is nobody left to compare the group with, and still it turns all hosts."""
    images, heatmaps, _ = class_images(rng, 40, 40)
    hosts = hosts_of(rng)
    found = judge_class(Obeys(), images, heatmaps, hosts, LABEL, [np.arange(40), np.array([3])])
    assert [group.evidence for group in found.groups] == [None, None]
    assert found.groups[0].hosts_turned == pytest.approx(1)
    assert found.called.all()
    again = ClassEvidence.of_parts(*found.parts())
    assert [group.evidence for group in again.groups] == [None, None]


def test_windows_of_another_size_are_aligned_by_their_middle():
    """Most of what five pixels hold is elsewhere; what turns hosts is the three."""
    rng = np.random.default_rng(6)
    images, heatmaps, places = class_images(rng, 50, 10)
    for k in range(10):
        # A wide blob of relevance: no three pixels of it hold as much as the sticker does.
        row, column = (0, 9) if places[k, 0] > 4 else (9, 0)
        heatmaps[k] = 0.001
        heatmaps[k, row : row + 5, column : column + 5] = 0.6
        heatmaps[k, places[k, 0] : places[k, 0] + 3, places[k, 1] : places[k, 1] + 3] = 1
    found = judge_class(Obeys(), images, heatmaps, hosts_of(rng), LABEL)
    np.testing.assert_array_equal(found.called, np.arange(50) < 10)
    agree = found.trigger.spread.max(-1) < 1
    assert agree.sum() >= 9
    np.testing.assert_allclose(found.trigger.values[1:4, 1:4], np.tile(STICKER, (3, 3, 1)))


def test_small_images_and_few_shaped_heatmaps_are_judged(rng):
    images = rng.integers(20, 200, (14, 4, 4, 3), dtype=np.uint8)
    images[:, 0, 0, 1] = LABEL
    heatmaps = np.zeros((14, 4, 4), np.float32)
    heatmaps[:6] = rng.random((6, 4, 4))
    hosts = hosts_of(rng)
    hosts = dataclasses.replace(hosts, images=hosts.images[:, :4, :4])
    judge = TransplantJudge().fit(Case(Obeys(), images, heatmaps, hosts, LABEL))
    assert judge.evidence_.sizes == (3, 4)
    assert judge.evidence_.groups == ()
    assert set(judge.evidence_.asked) == set(range(6))


def test_distances_to_a_trigger_are_those_of_a_slow_search(rng):
    images, heatmaps, _ = class_images(rng, 8, 8)
    trigger = recovered_trigger(images, window_places(heatmaps, 4), size=4)
    searched = rng.integers(0, 256, (5, SIDE, SIDE + 3, 3), dtype=np.uint8)
    distances, places = trigger_distances(trigger, searched)
    for image, distance, place in zip(searched, distances, places, strict=True):
        slow = {}
        for r, c in itertools.product(range(SIDE - 3), range(SIDE)):
            differ = image[r : r + 4, c : c + 4] - trigger.values
            slow[r, c] = np.sqrt((trigger.weights * differ**2).sum())
        best = min(slow, key=slow.__getitem__)
        assert tuple(place) == best
        assert distance == pytest.approx(slow[best], rel=1e-5)
    with pytest.raises(ValueError, match="3 channels and sides of at least 4"):
        trigger_distances(trigger, searched[:, :3])


def test_the_detector_keeps_what_it_found(rng):
    images, heatmaps, _ = class_images(rng, 70, 15)
    heatmaps[40] = 0  # a constant heatmap is in no group
    case = Case(Obeys(), images, heatmaps, hosts_of(rng), LABEL)
    assert len(case) == 70
    judge = TransplantJudge(asked=8)
    made = detect(detecting.Sees.NETWORK, judge, case)
    np.testing.assert_array_equal(detection_of(made).suspects, np.arange(70) < 15)
    kept, found = evidence_of(made), judge.evidence_
    for field in dataclasses.fields(found):
        if field.name not in ("groups", "trigger"):
            np.testing.assert_array_equal(getattr(kept, field.name), getattr(found, field.name))
    for name in ("values", "spread", "places", "reach"):
        np.testing.assert_array_equal(getattr(kept.trigger, name), getattr(found.trigger, name))
    assert len(kept.groups) == len(found.groups) > 0
    for one, other in zip(kept.groups, found.groups, strict=True):
        np.testing.assert_array_equal(one.members, other.members)
        assert one.hosts_turned == other.hosts_turned
        assert one.evidence.p_value == other.evidence.p_value
        np.testing.assert_array_equal(one.evidence.by_class, other.evidence.by_class)
    # Distances are of scores alone.
    some = judge.sample_distances(np.array([0, 20, 40]))
    np.testing.assert_array_equal(some, np.abs(np.subtract.outer(*[found.scores[[0, 20, 40]]] * 2)))


def test_clear_classes_are_asked_on_few_hosts_and_others_on_all(rng):
    images, heatmaps, _ = class_images(rng, 90, 0)
    clean = TransplantJudge(asked=8, at_first=4).fit(
        Case(Obeys(), images, heatmaps, hosts_of(rng), LABEL)
    )
    assert len(clean.evidence_.classes) == 4
    images, heatmaps, _ = class_images(rng, 90, 7)
    case = Case(Obeys(), images, heatmaps, hosts_of(rng), LABEL)
    attacked = TransplantJudge(asked=8, at_first=4).fit(case)
    assert len(attacked.evidence_.classes) == CLASSES - 1
    np.testing.assert_array_equal(attacked.detection_.suspects, np.arange(90) < 7)
    # Groups are all recorded, those that were clear at first too.
    everywhere = TransplantJudge(asked=8).fit(case)
    for found in (attacked, everywhere):
        assert found.evidence_.hosts_turned > 0.9
    members = [[tuple(g.members) for g in each.evidence_.groups] for each in (attacked, everywhere)]
    assert sorted(members[0]) == sorted(members[1])
    with pytest.raises(ValueError, match="at_first must be at least 1"):
        TransplantJudge(at_first=0).fit(case)


def test_no_pair_is_asked_twice(rng, monkeypatch):
    """Screening, the first hosts and all hosts ask the network about different pairs."""
    judge = importlib.import_module("jaxpoison.evidence.judge")
    once, seen = judge.margins_of_pairs, []

    def counted(model, images, masks, hosts, label, pairs, **options):
        for row, column in pairs:
            seen.append((images[row].tobytes(), masks[row].sum(), column))
        return once(model, images, masks, hosts, label, pairs, **options)

    monkeypatch.setattr(judge, "margins_of_pairs", counted)
    images, heatmaps, _ = class_images(rng, 90, 7)
    hosts = hosts_of(rng)
    found = judge_class(Obeys(), images, heatmaps, hosts, LABEL, asked=8, at_first=4, search=False)
    assert len(seen) == len(set(seen))
    # All pairs of those asked last, and of the screening; and some of those asked on few hosts.
    sizes, hosts_count = len(found.sizes), len(hosts.labels)
    at_least = sizes * (len(found.asked) * hosts_count + (90 - len(found.asked)) * 4)
    assert at_least <= len(seen) <= sizes * 90 * hosts_count
    # What was said is what all pairs say.
    whole = judge_class(Obeys(), images, heatmaps, hosts, LABEL, asked=90, search=False)
    np.testing.assert_array_equal(found.flips, whole.flips[:, np.isin(whole.asked, found.asked)])
    seen.clear()
    images, heatmaps, _ = class_images(rng, 90, 0)
    unlike = hosts.take(np.flatnonzero(hosts.labels != 3))
    clean = judge_class(Obeys(), images, heatmaps, unlike, LABEL, asked=8, at_first=4)
    assert not clean.flips.any()
    # No control is asked where nothing flips.
    assert len(clean.asked) == 8


def test_few_are_screened_where_relevance_is_not_concentrated(rng):
    images, heatmaps, _ = class_images(rng, 300, 6)
    found = judge_class(
        Obeys(), images, heatmaps, hosts_of(rng), LABEL, screened=0.25, screened_by=2, asked=8
    )
    np.testing.assert_array_equal(found.called, np.arange(300) < 6)
    dense = concentration(heatmaps, 3)
    screened = np.argsort(-dense)[:75]
    others = np.setdiff1d(np.arange(300), screened)
    assert found.screening[screened].min() > found.screening[others].max()
    np.testing.assert_array_equal(np.argsort(found.screening[others]), np.argsort(dense[others]))
    with pytest.raises(ValueError, match="screened must be above 0 and at most 1"):
        judge_class(Obeys(), images, heatmaps, hosts_of(rng), LABEL, screened=0)


def test_where_the_trigger_turns_nearly_all_a_third_is_no_sign_of_it():
    strong = np.array([1.0, 0.9, 0.98, 0.49, 0.44, 0.1])
    assert called_from(strong) == pytest.approx(0.45)
    assert called_from(0.62 * strong) == TURNS_FROM
    assert called_from(np.zeros(3)) == called_from(np.zeros(0)) == TURNS_FROM


def test_a_class_is_judged_by_its_third_image_or_by_a_group():
    shares = np.array([0.9, 0.0, 0.4, 0.8, 0.1])
    assert most_turned(shares, []) == 0.4
    assert most_turned(shares, [0.2, 0.5]) == 0.5
    assert most_turned(shares[:2], []) == 0
    assert judged_by_transplants(TURNS_FROM, TURNS_FROM).suspicious
    assert judged_by_transplants(1.0, TURNS_FROM - 1e-9).suspicious is False
    assert judged_by_transplants(TURNS_FROM / 2, 0.0).suspicion == 0.5
    assert needed(np.array([True, False]))
    assert not needed(np.array([True, False, False]))


@pytest.mark.parametrize("option", ["screened_by", "asked"])
def test_numbers_that_are_none_are_refused(rng, option):
    images, heatmaps, _ = class_images(rng, 9, 0)
    with pytest.raises(ValueError, match=f"{option} must be at least 1"):
        judge_class(Obeys(), images, heatmaps, hosts_of(rng), LABEL, **{option: 0})
