import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxpoison import (
    CompactInception,
    ResNet18,
    layer_inputs,
    layer_outputs,
    load_model,
    predict,
    save_model,
)
from jaxpoison.lrp.graph import last_dense_layer
from jaxpoison.models import convolution
from jaxpoison.models.convolution import conv_general_dilated
from jaxpoison.models.inference import parameter_count
from jaxpoison.models.layers import AvgPool, MaxPool
from jaxpoison.models.surgery import replace_modules
from jaxpoison.parallel import map_batches

pytestmark = pytest.mark.mixes_types
NHWC = ("NHWC", "HWIO", "NHWC")


def both(x, w, padding, strides=(1, 1), **options):
    """Values and gradients of our convolution and of lax's."""
    results = []
    for function in (conv_general_dilated, lax.conv_general_dilated):

        def run(x, w, function=function):
            return function(x, w, strides, padding, dimension_numbers=NHWC, **options)

        y, vjp = jax.vjp(run, x, w)
        cotangent = jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(jnp.bfloat16)
        results.append((y, *vjp(cotangent.astype(y.dtype))))
    return results


@pytest.mark.parametrize(
    ("shape", "kernel", "padding"),
    [
        ((6, 9, 7, 5), (3, 3, 5, 4), "SAME"),
        ((4, 8, 8, 3), (5, 5, 3, 6), "SAME"),
        ((8, 16, 16, 4), (2, 2, 4, 4), "VALID"),
        ((3, 7, 7, 4), (2, 2, 4, 3), "SAME"),
        ((5, 6, 6, 3), (1, 1, 3, 8), "SAME"),
        ((2, 6, 5, 3), (3, 2, 3, 4), ((2, 0), (1, 3))),
        ((2, 6, 5, 3), (1, 1, 3, 4), ((1, 1), (1, 1))),
        ((129, 32, 32, 2), (3, 3, 2, 2), "SAME"),
    ],
)
def test_convolution_is_laxs(shape, kernel, padding, rng):
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    w = jnp.asarray(rng.normal(size=kernel), jnp.float32)
    for ours, theirs in zip(*both(x, w, padding), strict=True):
        # Both sum in float32, in another order.
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("units", [False, True])
def test_bfloat16_convolution_sums_in_float32(units, rng, monkeypatch):
    monkeypatch.setattr(convolution, "_has_matrix_units", lambda: units)
    jax.clear_caches()
    multiplied, dot = set(), lax.dot

    def spy(a, b, **options):
        multiplied.add((a.dtype.name, b.dtype.name))
        return dot(a, b, **options)

    monkeypatch.setattr(lax, "dot", spy)
    x = jnp.asarray(rng.normal(size=(4, 8, 8, 64)), jnp.bfloat16)
    w = jnp.asarray(rng.normal(size=(3, 3, 64, 8)), jnp.bfloat16)
    exact = both(x.astype(jnp.float32), w.astype(jnp.float32), "SAME")[1]
    multiplied.clear()
    ours = both(x, w, "SAME")[0]
    jax.clear_caches()
    assert multiplied == ({("bfloat16",) * 2} if units else {("float32",) * 2})
    for value, reference in zip(ours, exact, strict=True):
        assert value.dtype == jnp.bfloat16
        # bfloat16 has 8 bits: rounding the result and the cotangent, nothing more.
        error = np.abs(np.asarray(value, np.float32) - reference).max()
        assert error < 2**-7 * np.abs(reference).max()


@pytest.mark.parametrize(
    "options",
    [
        {"feature_group_count": 2, "w": (3, 3, 2, 6)},
        {"rhs_dilation": (2, 2), "w": (3, 3, 4, 6)},
        {"lhs_dilation": (2, 1), "w": (3, 3, 4, 6)},
    ],
)
def test_other_convolutions_go_to_lax(options, rng):
    kernel = options.pop("w")
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 4)), jnp.float32)
    w = jnp.asarray(rng.normal(size=kernel), jnp.float32)
    for ours, theirs in zip(*both(x, w, ((1, 1), (2, 2)), **options), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("side", "kernel", "strides", "padding"),
    [
        (8, (3, 3), (2, 2), ((1, 1), (1, 1))),
        (7, (3, 3), (2, 2), "SAME"),
        (8, (1, 1), (2, 2), "VALID"),
        (7, (5, 3), (2, 1), ((1, 1), (2, 0))),
        (8, (2, 2), (2, 2), "SAME"),
        (8, (1, 4), (1, 3), "VALID"),
    ],
)
def test_strided_convolution_is_laxs(side, kernel, strides, padding, rng):
    x = jnp.asarray(rng.normal(size=(2, side, side + 1, 4)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(*kernel, 4, 5)), jnp.float32)
    for ours, theirs in zip(*both(x, w, padding, strides), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [((3, 3), (2, 2), ((1, 1), (1, 1))), ((2, 3), (2, 1), ((3, 2), (4, 3)))],
)
def test_strided_bfloat16_convolution_is_laxs(kernel, strides, padding, rng):
    x = jnp.asarray(rng.normal(size=(2, 8, 9, 8)), jnp.bfloat16)
    w = jnp.asarray(rng.normal(size=(*kernel, 8, 5)), jnp.bfloat16)
    exact = both(x.astype(jnp.float32), w.astype(jnp.float32), padding, strides)[1]
    for value, reference in zip(both(x, w, padding, strides)[0], exact, strict=True):
        error = np.abs(np.asarray(value, np.float32) - reference).max()
        assert error < 2**-6 * np.abs(reference).max()


def test_what_does_not_fit_raises_what_lax_raises():
    x, w = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))
    for a, b in ((x, w[:, :, :2]), (x.astype(jnp.bfloat16), w), (x, w.astype(jnp.bfloat16))):
        messages = []
        for function in (conv_general_dilated, lax.conv_general_dilated):
            with pytest.raises((TypeError, ValueError)) as raised:
                jax.eval_shape(
                    lambda a, b, f=function: f(a, b, (1, 1), "SAME", dimension_numbers=NHWC), a, b
                )
            messages.append(str(raised.value))
        assert messages[0] == messages[1]
    cropped = conv_general_dilated(x, w, (1, 1), ((-1, 0), (0, 0)), dimension_numbers=NHWC)
    assert cropped.shape == (2, 5, 6, 4)
    assert conv_general_dilated(x[:0], w, (1, 1), "SAME", dimension_numbers=NHWC).shape[0] == 0


def test_a_network_runs_without_compilation(small, noise):
    small.eval()
    images = jnp.asarray(noise.images[:2], jnp.float32) / 255
    with jax.disable_jit():
        plain = small(images)
    np.testing.assert_allclose(plain, small(images), rtol=1e-4, atol=1e-5)


def network(x, w):
    """A convolution, a pooling and something that is not linear."""
    y = conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=NHWC)
    return jnp.tanh(MaxPool(2)(y)).sum()


def plain_network(x, w):
    y = lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=NHWC)
    return jnp.tanh(nnx.max_pool(y, (2, 2), (2, 2))).sum()


def test_derivatives_of_any_kind_are_laxs(rng):
    """Forwards, linearised, twice, and many at once."""
    x = jnp.asarray(rng.normal(size=(2, 8, 6, 3)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.float32)
    dx, dw = (jnp.asarray(rng.normal(size=a.shape), jnp.float32) for a in (x, w))

    def of(f):
        several = jnp.stack([x, 2 * x])
        return [
            *jax.jvp(f, (x, w), (dx, dw)),
            jax.linearize(f, x, w)[1](dx, dw),
            jax.hessian(lambda x: f(x[None], w))(x[0]),
            jax.hessian(f, 1)(x, w),
            jax.jvp(jax.grad(f, (0, 1)), (x, w), (dx, dw)),
            jax.vmap(jax.grad(f), (0, None))(several, w),
            jax.vmap(jax.grad(f, 1), (None, 0))(x, jnp.stack([w, -w])),
            jax.jacfwd(f)(x, w),
        ]

    for ours, theirs in zip(
        jax.tree.leaves(of(network)), jax.tree.leaves(of(plain_network)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_the_network_is_differentiated_forwards(small, noise):
    images = jnp.asarray(noise.images[:2], jnp.float32) / 255
    small.eval()
    direction = jnp.ones_like(images)
    _, forwards = jax.jvp(small, (images,), (direction,))
    _, pull = jax.vjp(small, images)
    cotangent = jnp.cos(jnp.arange(8.0)).reshape(2, 4)
    backwards = (pull(cotangent)[0] * direction).sum()
    assert float((forwards * cotangent).sum()) == pytest.approx(float(backwards), rel=1e-3)


@pytest.mark.parametrize("side", [8, 7])
def test_max_pool_and_its_gradient(side, rng):
    x = jnp.asarray(rng.normal(size=(2, side, side, 3)), jnp.float32)
    g = jnp.asarray(rng.normal(size=(2, side // 2, side // 2, 3)), jnp.float32)
    ours, vjp = jax.vjp(MaxPool(2), x)
    theirs, reference = jax.vjp(lambda x: nnx.max_pool(x, (2, 2), (2, 2)), x)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(vjp(g)[0], reference(g)[0])


def test_max_pool_gives_ties_to_the_first():
    x = jnp.ones((1, 4, 4, 1))
    _, vjp = jax.vjp(MaxPool(2), x)
    (gradient,) = vjp(jnp.ones((1, 2, 2, 1)))
    expected = np.zeros((4, 4))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


class LibraryPool(nnx.Module):
    def __call__(self, x):
        return nnx.max_pool(x, (2, 2), (2, 2))


def test_compiled_gradient_of_the_network_is_that_of_library_layers(noise):
    """Compiled as a whole: a compiler may recompute what a backward pass compares."""

    def flat_gradient(model):
        model.set_attributes(nnx.Dropout, deterministic=True)
        graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)

        @jax.jit
        @jax.grad
        def gradient(parameters):
            logits = nnx.merge(graphdef, parameters, rest, copy=True)(images)
            return -jnp.take_along_axis(nnx.log_softmax(logits), labels[:, None], 1).mean()

        return np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient(parameters))])

    images, labels = jnp.asarray(noise.images) / 255.0, jnp.asarray(noise.labels)
    ours = CompactInception(4, rngs=nnx.Rngs(0))
    library = CompactInception(4, rngs=nnx.Rngs(0))
    library.set_attributes(nnx.Conv, conv_general_dilated=lax.conv_general_dilated)
    for k in range(1, 5):
        setattr(library, f"pool{k}", LibraryPool())
    found, expected = flat_gradient(ours), flat_gradient(library)
    # Near a tie, rounding may choose another winner; that moves a few values a little.
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


def test_average_pool_counts_padded_zeros():
    y = AvgPool(3)(jnp.ones((1, 4, 4, 1)))[0, :, :, 0]
    np.testing.assert_allclose(y[0], [4 / 9, 6 / 9, 6 / 9, 4 / 9], rtol=1e-6)


def test_inception_has_the_papers_size():
    model = CompactInception(43, rngs=nnx.Rngs(0))
    assert parameter_count(model) == 1_110_027
    model.eval()
    assert model(jnp.zeros((2, 32, 32, 3))).shape == (2, 43)


def test_inception_names_the_size_it_wants():
    with pytest.raises(ValueError, match="takes images of 32x32, found 28x32"):
        CompactInception(4, rngs=nnx.Rngs(0))(jnp.zeros((1, 28, 32, 3)))


@pytest.fixture(scope="module")
def small():
    return CompactInception(4, rngs=nnx.Rngs(0))


def test_predict_does_not_depend_on_batches_nor_change_the_model(small, noise):
    small.train()
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(small, nnx.BatchStat)))
    whole = predict(small, noise.images, batch_size=40)
    parts = predict(small, noise.images, batch_size=16)
    np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-5)
    after = nnx.to_pure_dict(nnx.state(small, nnx.BatchStat))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not small.dropout1.deterministic


def test_features_are_what_the_last_dense_layer_gets(small, noise):
    assert last_dense_layer(small, noise.images) == "dense3"
    features = layer_inputs(small, noise.images, "dense3", batch_size=16)
    assert features.shape == (40, 128)
    np.testing.assert_array_equal(
        features, layer_outputs(small, noise.images, "dense2", batch_size=16)
    )
    small.eval()
    last = small.dense3
    np.testing.assert_allclose(last(features), predict(small, noise.images), rtol=1e-4, atol=1e-5)


class Attending(nnx.Module):
    """Declares its layers in another order than it calls them, and attends in between."""

    def __init__(self, rngs, head=True):
        self.head = nnx.Linear(8, 4, rngs=rngs) if head else None
        self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=8, decode=False, rngs=rngs)
        self.patches = nnx.Conv(3, 8, (8, 8), strides=8, rngs=rngs)

    def __call__(self, x):
        tokens = self.patches(x).reshape(len(x), -1, 8)
        if self.head is None:
            return tokens.mean(1)
        return self.head((tokens + self.attention(tokens)).mean(1))


def test_the_last_dense_layer_is_the_last_that_is_called(noise):
    assert last_dense_layer(Attending(nnx.Rngs(0)), noise.images) == "head"
    assert last_dense_layer(ResNet18(4, rngs=nnx.Rngs(0)), noise.images) == "dense"
    convolutional = Attending(nnx.Rngs(0), head=False)
    convolutional.attention = None
    with pytest.raises(ValueError, match="Attending calls no dense layer, .*: name a layer whose"):
        last_dense_layer(convolutional, noise.images)


def test_unknown_layer_lists_those_there_are(small, noise):
    with pytest.raises(ValueError, match="no module 'dense9'; it has .*dense1.linear, dense2"):
        layer_outputs(small, noise.images, "dense9")


def test_few_rows_share_compilations():
    sizes = []

    @jax.jit
    def double(shared, x):
        sizes.append(len(x))
        return 2 * x

    for n in (1, 3, 4, 5, 8, 20, 30):
        rows = np.arange(n, dtype=np.float32)
        np.testing.assert_array_equal(map_batches(double, (), rows, batch_size=12), 2 * rows)
    assert sizes == [2, 4, 8, 12]


def test_map_batches_refuses_nothing():
    with pytest.raises(ValueError, match="at least one image, found none"):
        map_batches(lambda shared, x: x, (), np.zeros((0, 3)))


def test_saved_models_come_back(small, noise, tmp_path):
    save_model(tmp_path / "model", small)
    other = CompactInception(4, rngs=nnx.Rngs(7))
    assert np.abs(predict(other, noise.images) - predict(small, noise.images)).max() > 1e-3
    load_model(tmp_path / "model", other)
    np.testing.assert_array_equal(predict(other, noise.images), predict(small, noise.images))
    with pytest.raises(FileNotFoundError, match="no model checkpoint at .*elsewhere"):
        load_model(tmp_path / "elsewhere", other)


class Shared(nnx.Module):
    def __init__(self):
        self.blocks = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(0)) for _ in range(2)])
        self.again = self.blocks[1]

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.again(x)


class Double(nnx.Module):
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, x):
        return 2 * self.inner(x)


def test_surgery_replaces_shared_and_listed_modules_in_a_copy():
    model, x = Shared(), jnp.ones((1, 3))
    changed = replace_modules(
        model, lambda path, m: Double(m) if isinstance(m, nnx.Linear) else None
    )
    assert changed.again is changed.blocks[1]
    np.testing.assert_allclose(changed(x), 8 * model(x), rtol=1e-6)
