"""scikit-learn's own checks of estimators.

They give every estimator rows of numbers. Those of ours that take images or heatmaps say by their
tags that they do not, and would be checked for nothing: here they take each row as an image of
one pixel's height, and are checked like the others.
"""

import numpy as np
import pytest
from scipy.sparse import issparse
from sklearn.utils.estimator_checks import parametrize_with_checks

from jaxpoison import (
    ActivationClustering,
    GromovWassersteinKMeans,
    HeatmapClustering,
    HeatmapDensity,
    MeanDistanceClustering,
    RawClustering,
    TransplantJudge,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def image_of(rows):
    """Rows as images of one pixel's height; what is none as it is."""
    if issparse(rows):
        return rows
    array = np.asarray(rows)
    return array[:, None] if array.ndim == 2 else array


def on_rows(estimator, channel=False):
    """An estimator of the same kind and options that takes rows."""
    kind = type(estimator)

    class OnRows(kind):
        def _fitted_to(self, X):
            found = super()._fitted_to(image_of(X))
            return found[..., None] if channel and found.ndim == 3 else found

        def _checked(self, X):
            return super()._checked(image_of(X))

        def __sklearn_tags__(self):
            tags = super().__sklearn_tags__()
            tags.input_tags.two_d_array = True
            return tags

    # Where pickle looks for it.
    OnRows.__qualname__ = OnRows.__name__ = f"{kind.__name__}OnRows"
    globals()[OnRows.__name__] = OnRows
    return OnRows(**estimator.get_params())


_ROWS_HAVE_NONE = "an image has rows and columns, and no number of features"
_ANY_SIZE = "what is fitted takes heatmaps of any size"
_NO_SHAPE = "it says which shape images have"
_OF_IMAGES = {
    "check_n_features_in": _ROWS_HAVE_NONE,
    "check_n_features_in_after_fitting": _ROWS_HAVE_NONE,
    "check_estimators_empty_data_messages": _NO_SHAPE,
}
_OF_HEATMAPS = _OF_IMAGES | {
    "check_estimators_dtypes": "of its rows of five small integers one is constant: no heatmap",
    "check_clustering": "two pixels have one distance: there is no geometry to cluster",
    "check_fit2d_1feature": "a heatmap of one pixel is constant, which is what it says",
}
_OF_TRANSFORMERS = _OF_HEATMAPS | {
    "check_transformer_general": _ANY_SIZE,
    "check_fit2d_predict1d": _NO_SHAPE,
}
ESTIMATORS = [
    ActivationClustering(n_components=2),
    ActivationClustering(projection="ica", n_components=2),
    on_rows(RawClustering(n_components=2), channel=True),
    on_rows(MeanDistanceClustering()),
    on_rows(HeatmapClustering(mode="quick", n_init=1, max_rounds=2, center_size=3)),
    on_rows(HeatmapDensity(points=3, min_cluster_size=2, min_samples=2)),
    on_rows(GromovWassersteinKMeans(mode="quick", center_size=3, max_iter=2)),
]


def exceptions(estimator):
    """What cannot hold, and why."""
    if isinstance(estimator, ActivationClustering):
        return {}
    if isinstance(estimator, RawClustering):
        return _OF_IMAGES
    return _OF_TRANSFORMERS if hasattr(estimator, "transform") else _OF_HEATMAPS


@parametrize_with_checks(ESTIMATORS, expected_failed_checks=exceptions, xfail_strict=True)
def test_scikit_learns_checks_pass(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", [RawClustering, HeatmapClustering, HeatmapDensity])
def test_tags_say_what_is_taken(kind):
    tags = kind().__sklearn_tags__().input_tags
    assert (tags.two_d_array, tags.three_d_array, tags.sparse) == (False, True, False)


def test_the_judge_takes_a_case_alone():
    assert not TransplantJudge().__sklearn_tags__().input_tags.two_d_array
    with pytest.raises(TypeError, match="TransplantJudge looks at a Case, found ndarray"):
        TransplantJudge().fit(np.zeros((4, 8, 8, 3)))
