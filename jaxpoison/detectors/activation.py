"""Activation Clustering (Chen et al. 2018)."""

from __future__ import annotations

from sklearn.utils import Tags

from jaxpoison.detectors.projection import ProjectionClustering


class ActivationClustering(ProjectionClustering):
    """Activations of the last hidden layer, PCA or FastICA to 10 dimensions, two-means.

    Takes activations ``[n, features]`` as :func:`jaxpoison.layer_outputs` gives
    them; options and results are those of :class:`ProjectionClustering`. The
    original projects by FastICA; the paper's comparison, and the default, by PCA.

    Examples:
        >>> activations = jp.layer_outputs(model, images, "layers.3")
        >>> detector = jp.ActivationClustering(random_state=0).fit(activations)
        >>> sum(detector.detection_.cluster_sizes)
        20
    """

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = False
        return tags
