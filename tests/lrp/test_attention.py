"""Attention: softmax and products of two values that depend on the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpoison import conservation, explain, predict, relevance_function
from jaxpoison.lrp.composites import COMPOSITES, epsilon_plus
from jaxpoison.lrp.operations import with_operation_rules
from jaxpoison.lrp.rules import Epsilon

pytestmark = pytest.mark.mixes_types


class Block(nnx.Module):
    """Of a transformer, normalised first (Dosovitskiy et al. 2021, fig. 1)."""

    def __init__(self, width, rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class ViT(nnx.Module):
    def __init__(self, *, token):
        rngs, width = nnx.Rngs(0), 16
        self.patches = nnx.Conv(3, width, (8, 8), strides=8, rngs=rngs)
        self.token = nnx.Param(jax.random.normal(rngs.params(), (width,))) if token else None
        self.places = nnx.Param(jax.random.normal(rngs.params(), (16 + token, width)))
        self.blocks = nnx.List([Block(width, rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 5, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x)
        x = x.reshape(len(x), -1, x.shape[-1])
        if self.token is not None:
            token = jnp.broadcast_to(self.token[...][None, None], (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([token, x], 1)
        x = x + self.places[...][None]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x.mean(1) if self.token is None else x[:, 0])


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_vision_transformer_is_explained(name, noise):
    model, images = ViT(token=True), noise.images[:3]
    pixels = jnp.asarray(images, jnp.float32) / 255
    relevance, logits = jax.jit(relevance_function(model, COMPOSITES[name]()))(pixels)
    np.testing.assert_allclose(logits, predict(model, images), rtol=1e-5, atol=1e-5)
    assert np.isfinite(relevance).all()
    assert (np.abs(relevance).reshape(3, 4, 8, 4, 8, 3).max((2, 4, 5)) > 0).all()


def test_relevance_is_kept_but_for_what_softmax_and_biases_absorb(noise):
    """All that is given is handed on, layer by layer, or is booked as absorbed."""
    model, images = ViT(token=False), noise.images[:1]
    composite = epsilon_plus()
    pixels = jnp.asarray(images, jnp.float32) / 255
    relevance, logits = jax.jit(relevance_function(model, composite))(pixels)
    rows = conservation(model, images, logits.argmax(-1), composite=composite)
    of = {row.layer.path: row for row in rows}
    kept = 1 - sum(row.bias + row.stabilizer for row in rows)
    softmax = 0
    for block in ("blocks.0", "blocks.1"):
        got = [of[f"{block}.attention.{name}"].given for name in ("query", "key", "value")]
        softmax += of[f"{block}.attention.out"].handed - sum(got)
        # Half of what the weighted sum of values is given.
        assert got[2] == pytest.approx(of[f"{block}.attention.out"].handed / 2, rel=1e-3)
        # A score is a product, too.
        assert got[0] == pytest.approx(got[1], rel=1e-3, abs=1e-4)
    assert abs(softmax) > 0.01
    assert relevance.sum() / logits.max() == pytest.approx(kept - softmax, rel=1e-3, abs=1e-3)


def by_hand(q, k, v, outgoing):
    """Relevance of queries, keys and values, as the paper's equations say it, in float64."""
    scores = np.einsum("qd,kd->qk", q, k)
    s = np.exp(scores - scores.max(-1, keepdims=True))
    s /= s.sum(-1, keepdims=True)
    z = s @ v
    # Proposition 3.3, for the weighted sum of values.
    shares = s[:, :, None] * v[None] / (2 * z[:, None])
    of_s, of_v = (shares * outgoing[:, None]).sum(2), (shares * outgoing[:, None]).sum(0)
    # Proposition 3.1.
    of_scores = scores * (of_s - s * of_s.sum(-1, keepdims=True))
    shares = q[:, None] * k[None] / (2 * scores[:, :, None]) * of_scores[:, :, None]
    return shares.sum(1), shares.sum(0), of_v


def exponentials(scores, axis):
    e = jnp.exp(scores)
    return e / e.sum(axis, keepdims=True)


def shifted(scores, axis):
    e = jnp.exp(scores - scores.max(axis, keepdims=True))
    return e / jnp.sum(e, axis, keepdims=True)


WAYS = {
    "written out": lambda q, k, v: nnx.softmax(q @ k.T) @ v,
    "written out, transposed": lambda q, k, v: nnx.softmax(k @ q.T, axis=0).T @ v,
    "jitted": lambda q, k, v: jax.jit(nnx.softmax)(q @ k.T) @ v,
    "by exponentials": lambda q, k, v: exponentials(q @ k.T, -1) @ v,
    "by shifted exponentials": lambda q, k, v: shifted(k @ q.T, 0).T @ v,
    "elementwise": lambda q, k, v: (nnx.softmax(q @ k.T)[:, :, None] * v[None]).sum(1),
    "JAX's": lambda q, k, v: jax.nn.dot_product_attention(
        q[:, None], k[:, None], v[:, None], scale=1.0
    )[:, 0],
    "Flax's": lambda q, k, v: nnx.dot_product_attention(
        np.sqrt(q.shape[-1]) * q[:, None], k[:, None], v[:, None]
    )[:, 0],
}


@pytest.mark.parametrize("way", WAYS)
def test_attention_has_one_relevance_however_it_is_written(way, rng):
    q, k, v = rng.uniform(0.1, 1, (3, 6, 4))
    outgoing = rng.normal(size=(6, 4))

    def attended(inputs):
        return WAYS[way](*inputs)

    inputs = tuple(jnp.asarray(x, jnp.float32) for x in (q, k, v))

    @jax.jit
    def propagated(inputs, outgoing):
        value, vjp = jax.vjp(with_operation_rules(attended, frozenset(), Epsilon()), inputs)
        return value, vjp(outgoing)[0]

    value, found = propagated(inputs, jnp.asarray(outgoing, jnp.float32))
    np.testing.assert_allclose(value, attended(inputs), rtol=1e-5)
    for ours, expected in zip(found, by_hand(q, k, v, outgoing), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=1e-4)


class Ends(nnx.Module):
    def __init__(self, end):
        self.dense = nnx.Linear(3072, 4, rngs=nnx.Rngs(0))
        self.end = end

    def __call__(self, x):
        return self.end(self.dense(x.reshape(len(x), -1)))


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda x: nnx.softmax(x)[:, ::-1], "ends in a softmax"),
        (lambda x: jnp.exp(x), "ends in an exponential"),
        (lambda x: x - jnp.log(jnp.exp(x).sum(-1, keepdims=True)), "the operation 'log'"),
        (lambda x: jnp.exp(x) / (1 + jnp.exp(x)), "the operation 'add'"),
        (lambda x: x - jax.lax.stop_gradient(x), "the operation 'stop_gradient'"),
    ],
)
def test_exponentials_are_nothing_but_parts_of_a_softmax(end, message, noise):
    with pytest.raises(ValueError, match=message):
        explain(Ends(end), noise.images[:2], np.array([0, 1]))


def test_factors_share_alike():
    """Proposition 3.2: of a product of activations, as in a gated linear unit."""
    x = jnp.array([[1.0, 2.0, -3.0]])
    model = with_operation_rules(lambda x: nnx.relu(x) * (2 * x), frozenset(), Epsilon())
    np.testing.assert_allclose(jax.vjp(model, x)[1](jnp.ones((1, 3)))[0], [[1, 1, 0]], atol=1e-5)
