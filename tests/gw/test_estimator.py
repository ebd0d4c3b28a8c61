import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from jaxpoison import GromovWassersteinKMeans


@pytest.fixture(scope="module")
def fitted(heatmaps):
    return GromovWassersteinKMeans(epsilon=0.02, n_init=2, random_state=1).fit(heatmaps)


def test_is_an_estimator(fitted, heatmaps):
    again = clone(fitted)
    assert again.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        again.predict(heatmaps)
    assert (again.fit_predict(heatmaps) == fitted.labels_).all()
    pipeline = make_pipeline(FunctionTransformer(np.square), clone(fitted))
    assert len(pipeline.fit_predict(np.sqrt(heatmaps))) == len(heatmaps)


def test_finds_the_poisoned_and_keeps_its_word(fitted, heatmaps):
    # Sixteen poisoned heatmaps come first.
    poisoned = fitted.labels_ == fitted.labels_[0]
    assert poisoned[:16].mean() > 0.9
    assert poisoned[16:].mean() < 0.1
    assert fitted.cluster_centers_.shape == (2, 10, 10)
    assert 1 <= fitted.n_iter_ <= 20
    np.testing.assert_array_equal(fitted.predict(heatmaps), fitted.labels_)
    nearest = fitted.transform(heatmaps).min(1)
    assert fitted.inertia_ == pytest.approx(nearest.sum(), rel=1e-4)
