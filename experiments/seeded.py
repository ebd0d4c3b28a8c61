"""Weights that depend on a seed and NumPy's generator alone."""

import jax.numpy as jnp
import numpy as np
from flax import nnx


def seeded(model: nnx.Module, seed: int) -> nnx.Module:
    """The model with seeded weights and batch statistics, in evaluation mode."""
    rng = np.random.default_rng(seed)

    def draw(like: nnx.Variable, center: float, spread: float) -> None:
        values = center + spread * rng.normal(size=like[...].shape)
        like[...] = jnp.asarray(values, jnp.float32)

    modules = sorted(nnx.iter_modules(model), key=lambda item: tuple(map(str, item[0])))
    for _, module in modules:
        if isinstance(module, nnx.Conv | nnx.Linear):
            draw(module.kernel, 0, float(np.sqrt(2 / np.prod(module.kernel[...].shape[:-1]))))
            if module.bias is not None:
                draw(module.bias, 0, 0.1)
        elif isinstance(module, nnx.BatchNorm):
            draw(module.mean, 0, 0.1)
            draw(module.bias, 0, 0.1)
            draw(module.scale, 1, 0.1)
            draw(module.var, 1, 0.1)
    model.eval()
    return model


def seeded_arrays(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Seeded values for a state dict of PyTorch's, kernels in its order."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if not shape:
            return np.array(1)
        values = rng.normal(size=shape)
        if len(shape) > 1:
            values *= np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("running_var", "weight")):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        return values.astype(np.float32)

    return {name: draw(name, shapes[name]) for name in sorted(shapes)}
