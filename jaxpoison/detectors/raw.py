"""The weakest baseline: clustering the images themselves."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from jaxpoison.detectors.projection import ProjectionClustering

# Luma of ITU-R BT.601, as torchvision's and Pillow's grey scale.
_LUMA = np.array([0.299, 0.587, 0.114])


class RawClustering(ProjectionClustering):
    """Grey images, PCA or FastICA to 10 dimensions, two-means.

    Takes images ``uint8 [n, h, w, c]``; options and results are those of
    :class:`ProjectionClustering`.

    Examples:
        >>> detector = jp.RawClustering(projection="ica", random_state=0).fit(images)
        >>> sum(detector.detection_.cluster_sizes)
        20
    """

    def features(
        self,
        X: UInt8[np.ndarray, "n h w c"],  # noqa: N803
    ) -> Float[np.ndarray, "n d"]:
        """Grey values in [0, 1]."""
        if X.ndim != 4 or X.shape[-1] not in (1, 3):
            raise ValueError(
                f"raw clustering takes images [n, h, w, c] with 1 or 3 channels, found {X.shape}"
            )
        grey = X @ _LUMA if X.shape[-1] == 3 else X[..., 0]
        return grey.reshape(len(X), -1) / 255
