import numpy as np
import pytest

from jaxpoison import (
    ScoreRates,
    accuracy,
    attack_success_rate,
    detection_rates,
    score_rates,
)


def test_rates_of_a_small_case():
    suspects = np.array([1, 1, 0, 1, 0, 0, 0, 0], bool)
    poisoned = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
    rates = detection_rates(suspects, poisoned)
    assert (rates.acc, rates.tpr, rates.tnr) == (6 / 8, 2 / 3, 4 / 5)


def test_without_truth_or_without_members_there_is_no_rate():
    suspects = np.array([True, False])
    assert detection_rates(suspects, None).acc is None
    assert detection_rates(suspects, np.array([False, False])).tpr is None
    assert attack_success_rate(np.zeros((0, 3)), 1) is None


def test_shares_of_logits():
    logits = np.eye(4)[[0, 1, 1, 3]]
    assert attack_success_rate(logits, 1) == 0.5
    assert accuracy(logits, np.array([0, 1, 2, 3])) == 0.75


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"one entry per image \(2\), found 3"):
        detection_rates(np.zeros(2, bool), np.zeros(3, bool))


def test_scores_are_rated_by_how_they_order():
    rng = np.random.default_rng(0)
    scores, poisoned = rng.normal(size=300), np.arange(300) < 40
    scores[:40] += 1
    scores = scores.round(1)  # with ties
    found = score_rates(scores, poisoned)
    pairs = np.subtract.outer(scores[:40], scores[40:])
    assert found.auroc == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    # Precision at every score that a poisoned image has, weighed by how many have it.
    precision = [poisoned[scores >= least].mean() for least in scores[:40]]
    assert found.average_precision == pytest.approx(np.mean(precision))
    allowed = np.sort(scores[40:])[-3]
    assert found.tpr_at_1_percent_fpr == (scores[:40] > allowed).mean()


def test_scores_of_one_kind_alone_are_not_rated():
    scores = np.arange(4.0)
    for poisoned in (None, np.zeros(4, bool), np.ones(4, bool)):
        assert score_rates(scores, poisoned) == ScoreRates(None, None, None)
    with pytest.raises(ValueError, match=r"one entry per image \(4\), found 3"):
        score_rates(scores, np.array([True, False, True]))
