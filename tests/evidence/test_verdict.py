import numpy as np
import pytest

from jaxpoison import DETECTORS, Separation, Verdict, judged
from jaxpoison.evidence.verdict import CASCADE, SUSPICIOUS_FROM, passed_on


def apart(silhouette):
    return Separation(silhouette, np.zeros(10))


@pytest.mark.parametrize("detector", list(SUSPICIOUS_FROM))
def test_a_class_is_called_from_the_detectors_own_silhouette_on(detector):
    least = SUSPICIOUS_FROM[detector]
    assert judged(detector, apart(least)).suspicious
    assert judged(detector, apart(least - 1e-6)).suspicious is False
    assert judged(detector, apart(least / 2)).suspicion == pytest.approx(0.5)
    # One cluster alone is no reason to suspect anything.
    assert judged(detector, apart(None)) == Verdict(0.0)


def test_others_cannot_tell():
    for detector in DETECTORS.keys() - SUSPICIOUS_FROM.keys():
        assert judged(detector, apart(0.99)) == Verdict(None)
        assert judged(detector, apart(0.99)).suspicious is None


def test_classes_are_passed_on():
    assert set(CASCADE) <= SUSPICIOUS_FROM.keys()
    assert passed_on(apart(0.5))
    assert not passed_on(apart(0.49))
    assert not passed_on(apart(None))
