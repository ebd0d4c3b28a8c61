"""Which layer feeds which: read off the model's jaxpr, not guessed from attribute order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core
from jaxtyping import Array, UInt8

from jaxpoison.lrp.operations import called_jaxpr
from jaxpoison.models.inference import evaluation_view
from jaxpoison.models.surgery import Path, Wrapper, replace_modules

# Stands for the model's input where layers stand for themselves.
INPUT = -1


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer.

    Attributes:
        path: Path of the layer in the model.
        upstream: The calls whose results its input was made from, whatever
            lies between; ``INPUT`` for the model's input.
        direct: The call whose result is its input, unchanged; ``None`` if there
            is no such call.
        uses: How often its result is used.
    """

    path: Path
    upstream: frozenset[int]
    direct: int | None
    uses: int


def layer_calls(
    model: nnx.Module, images: Array, kinds: tuple[type[nnx.Module], ...]
) -> tuple[LayerCall, ...]:
    """All calls of layers of the given types, in the order of the computation.

    Args:
        model: A model in evaluation mode; not changed.
        images: An input; only its shape and type matter.
        kinds: Types of layers to look at; others are seen through.
    """
    paths: list[Path] = []

    def mark(path: Path, layer: nnx.Module) -> nnx.Module | None:
        if not isinstance(layer, kinds):
            return None
        paths.append(path)
        return _Marked(layer, len(paths) - 1)

    marked: Callable[[Array], Array] = replace_modules(model, mark)  # pyright: ignore[reportAssignmentType]
    jaxpr = jax.make_jaxpr(marked)(jax.ShapeDtypeStruct(images.shape, images.dtype)).jaxpr
    walk = _Walk()
    outputs = walk.run(jaxpr, [_Origin(frozenset({INPUT}), None)])
    for origin in outputs:
        if origin.direct is not None:
            walk.uses[origin.direct] += 1
    return tuple(
        LayerCall(paths[layer], origin.upstream, origin.direct, walk.uses[call])
        for call, (layer, origin) in enumerate(walk.calls)
    )


def last_dense_layer(model: nnx.Module, images: UInt8[np.ndarray, "n h w c"]) -> str:
    """Path of the dense layer that a model computes last: what it gets are its features.

    Args:
        model: Takes images in [0, 1], gives logits.
        images: Only their shape matters.

    Raises:
        ValueError: The model has no dense layer.
    """
    one = jnp.zeros((1, *images.shape[1:]), jnp.float32)
    calls = layer_calls(evaluation_view(model), one, _DENSE)
    if not calls:
        raise ValueError(
            f"{type(model).__name__} calls no dense layer, whose inputs would be the activations: "
            "name a layer whose outputs are to be used"
        )
    return ".".join(map(str, calls[-1].path))


_DENSE = (nnx.Linear, nnx.LinearGeneral)
_NAME = "_marked_layer_"


class _Marked(Wrapper):
    def __init__(self, layer: nnx.Module, index: int) -> None:
        super().__init__(layer)
        self._own_index = index

    def __call__(self, *inputs: Array, **options: Any) -> Array:
        graphdef, state = nnx.split(self._own_module)

        def apply(state: Any, inputs: tuple[Array, ...]) -> Array:
            return nnx.merge(graphdef, state)(*inputs, **options)

        apply.__name__ = f"{_NAME}{self._own_index}"
        return jax.jit(apply)(state, inputs)


@dataclass(frozen=True)
class _Origin:
    upstream: frozenset[int]
    direct: int | None


_NOWHERE = _Origin(frozenset(), None)


class _Walk:
    def __init__(self) -> None:
        self.calls: list[tuple[int, _Origin]] = []
        self.uses: Counter[int] = Counter()

    def run(self, jaxpr: Any, inputs: list[_Origin]) -> list[_Origin]:
        origins = dict(zip(jaxpr.invars, inputs, strict=True))

        def origin(atom: Any) -> _Origin:
            return _NOWHERE if isinstance(atom, core.Literal) else origins.get(atom, _NOWHERE)

        for equation in jaxpr.eqns:
            sources = [origin(v) for v in equation.invars]
            marked = re.fullmatch(rf"{_NAME}(\d+)", str(equation.params.get("name", "")))
            inner = called_jaxpr(equation)
            if marked is None and inner is not None:
                # Uses are counted inside.
                results = self.run(inner[0], sources)
                origins.update(zip(equation.outvars, results, strict=True))
                continue
            for source in sources:
                if source.direct is not None:
                    self.uses[source.direct] += 1
            upstream = frozenset().union(*(s.upstream for s in sources))
            result = _Origin(upstream, None)
            if marked is not None:
                directs = {s.direct for s in sources if s.upstream}
                direct = directs.pop() if len(directs) == 1 else None
                call = len(self.calls)
                self.calls.append((int(marked[1]), _Origin(upstream, direct)))
                result = _Origin(frozenset({call}), call)
            for variable in equation.outvars:
                origins[variable] = result
        return [origin(v) for v in jaxpr.outvars]
