"""Residual and feature transplants: for triggers that have no place.

A blend, a sinusoid, a warp lies over the whole image; no window holds it. What the images of a
group have in common against their class-mates, in their pixels or in their activations, is added
to images of other classes instead.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxpoison._checks import check_class
from jaxpoison._precision import in_full_precision
from jaxpoison.evidence.transplant import Hosts
from jaxpoison.models.inference import PureModel, class_count, evaluation_view, pure
from jaxpoison.models.surgery import Path, find_module, replace_modules
from jaxpoison.parallel import map_batches, over_devices

# Images that go through the network at once, on all devices together.
_AT_ONCE = 512


def mean_deviation(
    values: Float[np.ndarray, "n ..."] | UInt8[np.ndarray, "n ..."], group: Int[np.ndarray, " g"]
) -> Float[np.ndarray, ...]:
    """The mean of a group, less that of the others: its residual, in pixels or activations.

    Args:
        values: Of all images of a class.
        group: Indices of the group's members.

    Raises:
        ValueError: No image is in the group, or none outside it.

    Examples:
        >>> jp.mean_deviation(np.array([[1.0], [3.0], [8.0]]), np.array([2]))
        array([6.], dtype=float32)
    """
    inside = np.zeros(len(values), bool)
    inside[group] = True
    if not inside.any() or inside.all():
        raise ValueError(
            f"expected images in the group and outside it, found {inside.sum()} and "
            f"{(~inside).sum()}"
        )
    values = values.astype(np.float32)
    return values[inside].mean(0) - values[~inside].mean(0)


def residual_flips(
    model: Any,
    residuals: Float[np.ndarray, "g h w c"],
    hosts: Hosts,
    label: int,
    *,
    progress: str | None = None,
) -> Bool[np.ndarray, "g k"]:
    """Adds residuals to every host, and asks the network.

    Values outside 0 and 255 are clipped.

    Args:
        model: Takes images in [0, 1], gives logits.
        residuals: Of pixel values from 0 to 255, of :func:`mean_deviation`.
        hosts: Of :func:`hosts_for`.
        label: The class of the images that the residuals are of.
        progress: Title of a progress bar; none is shown without it.

    Returns:
        Whether the host is classified as ``label`` with the residual on it: residuals × hosts.

    Raises:
        TypeError: ``label`` is not an integer.
        ValueError: There are no residuals, the shapes do not fit, or ``label`` is no class of the
            model.

    Examples:
        >>> hosts = jp.hosts_for(5, train.images, train.labels, jp.predict(model, train.images))
        >>> residual = jp.mean_deviation(images, np.arange(5))
        >>> jp.residual_flips(model, residual[None], hosts, 5).shape == (1, len(hosts.labels))
        True
    """
    label = check_class("label", label, class_count(model, hosts.images))
    if residuals.shape[1:] != hosts.images.shape[1:]:
        raise ValueError(
            f"expected residuals of the hosts' size {hosts.images.shape[1:]}, found "
            f"{residuals.shape[1:]}"
        )
    network, state = pure(model)
    classes = map_batches(
        partial(_classes_with_residuals, network),
        (state, hosts.images),
        residuals.astype(np.float32),
        batch_size=max(1, _AT_ONCE // len(hosts.images)),
        progress=progress,
    )
    return classes == label


@partial(jax.jit, static_argnums=0)
@in_full_precision
def _classes_with_residuals(network: PureModel, shared: Any, residuals: Array) -> Array:
    def classes(shared: Any, residuals: Array) -> Array:
        state, hosts = shared
        added = jnp.clip(hosts[None].astype(jnp.float32) + residuals[:, None], 0, 255)
        logits = network(state, added.reshape(-1, *hosts.shape[1:]) / 255)
        return logits.argmax(-1).reshape(len(residuals), len(hosts))

    return over_devices(classes)(shared, residuals)


def feature_flips(
    model: nnx.Module,
    layer: str,
    deviations: Float[np.ndarray, "g d"],
    hosts: Hosts,
    label: int,
    *,
    progress: str | None = None,
) -> Bool[np.ndarray, "g k"]:
    """Adds deviations to a layer's output for every host, and asks the network.

    After CCA-UD (Guo et al. 2023, arXiv 2301.04554, section IV).

    Args:
        model: Takes images in [0, 1], gives logits.
        layer: Path of the module whose output is shifted, with dots.
        deviations: Of its output, flattened, of :func:`mean_deviation`.
        hosts: Of :func:`hosts_for`.
        label: The class of the images that the deviations are of.
        progress: Title of a progress bar; none is shown without it.

    Returns:
        Whether the host is classified as ``label``: deviations × hosts.

    Raises:
        TypeError: ``label`` is not an integer.
        ValueError: The model has no such module or does not call it exactly once, the
            deviations have another length than its output, there are none, or ``label`` is
            no class of the model.

    Examples:
        >>> hosts = jp.hosts_for(5, train.images, train.labels, jp.predict(model, train.images))
        >>> outputs = jp.layer_outputs(model, images, "layers.3")
        >>> deviation = jp.mean_deviation(outputs, np.arange(5))
        >>> flips = jp.feature_flips(model, "layers.3", deviation[None], hosts, 5)
        >>> flips.shape == (1, len(hosts.labels))
        True
    """
    label = check_class("label", label, class_count(model, hosts.images))
    path = find_module(model, layer)
    graph, state = nnx.split(evaluation_view(model))
    classes = map_batches(
        partial(_classes_with_deviations, graph, path),
        (state, hosts.images),
        deviations.astype(np.float32),
        batch_size=max(1, _AT_ONCE // len(hosts.images)),
        progress=progress,
    )
    return classes == label


@partial(jax.jit, static_argnums=(0, 1))
@in_full_precision
def _classes_with_deviations(
    graph: nnx.GraphDef, path: Path, shared: Any, deviations: Array
) -> Array:
    def classes(shared: Any, deviations: Array) -> Array:
        state, hosts = shared
        images = hosts.astype(jnp.float32) / 255

        def one(deviation: Array) -> Array:
            calls: list[tuple[int, ...]] = []
            shifted = replace_modules(
                nnx.merge(graph, state),
                lambda here, module: (
                    _Shifted(module, deviation, calls.append) if here == path else None
                ),
            )
            found = shifted(images).argmax(-1)
            if len(calls) != 1:
                raise ValueError(
                    f"the model must call {'.'.join(map(str, path))} once, found {len(calls)} calls"
                )
            return found

        return jax.lax.map(one, deviations)

    return over_devices(classes)(shared, deviations)


class _Shifted(nnx.Module):
    """A module to whose output something is added."""

    def __init__(self, module: nnx.Module, shift: Array, called: Any) -> None:
        self.module = module
        self.shift = nnx.data(shift)
        self.called = called

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        output = self.module(*args, **kwargs)
        self.called(output.shape)
        if output[0].size != self.shift.size:
            raise ValueError(
                f"expected deviations of {output[0].size} values, as the layer's output has, "
                f"found {self.shift.size}"
            )
        return output + self.shift.reshape(1, *output.shape[1:])
