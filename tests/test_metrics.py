import numpy as np
import pytest

from jaxpoison import accuracy, attack_success_rate, detection_rates


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
