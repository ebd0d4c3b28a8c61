"""Networks as others write them: handled, or refused in a line that names cause and remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpoison import (
    InputTimesGradient,
    conservation,
    explain,
    feature_flips,
    hosts_for,
    judge_class,
    layer_outputs,
    layer_relevance,
    occlusion,
    perturbed,
    predict,
    pure,
    recovered_trigger,
    relevance_function,
    residual_flips,
    transplant_margins,
    trigger_distances,
)
from jaxpoison.evidence.occlusion import filled
from jaxpoison.lrp.composites import COMPOSITES, epsilon_plus, paper
from jaxpoison.lrp.rules import Epsilon

pytestmark = pytest.mark.mixes_types
CLASSES = np.arange(4)


class Network(nnx.Module):
    """A convolution, something done with its output, a dense layer."""

    def __init__(self, between=nnx.relu, channels=4):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.between = between
        self.dense = nnx.Linear(8 * 8 * channels, 4, rngs=rngs)

    def features(self, x):
        y = self.between(self.conv(x))
        return y.reshape(len(y), -1)

    def __call__(self, x):
        return self.dense(self.features(x))


@pytest.fixture
def pixels(noise):
    return noise.images[:4, :8, :8]


class GivesDict(Network):
    def __call__(self, x):
        return {"logits": super().__call__(x), "features": self.features(x)}


class GivesTuple(Network):
    def __call__(self, x):
        return super().__call__(x), self.features(x)


class GivesMaps(Network):
    def __call__(self, x):
        return self.conv(x)


class NeedsOption(Network):
    def __call__(self, x, train):
        return super().__call__(x)


class TrainsByDefault(Network):
    def __call__(self, x, *, train=True):
        return super().__call__(x)


class RandomByDefault(Network):
    def __call__(self, x, deterministic=False):
        return super().__call__(x)


WAYS = {
    "predict": lambda model, pixels: predict(model, pixels),
    "features": lambda model, pixels: layer_outputs(model, pixels, "conv"),
    "LRP": lambda model, pixels: explain(model, pixels),
    "LRP of classes": lambda model, pixels: explain(model, pixels, CLASSES),
    "gradient": lambda model, pixels: explain(model, pixels, method=InputTimesGradient()),
    "conservation": lambda model, pixels: conservation(model, pixels, CLASSES),
    "layers": lambda model, pixels: layer_relevance(model, pixels, CLASSES, ("conv",)),
}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GivesDict, "one array of logits.*found a dict with features, logits: wrap it"),
        (GivesTuple, "one array of logits.*found a tuple: wrap it"),
        (GivesMaps, r"logits of the shape images x classes, found \(\d, 8, 8, 4\)"),
    ],
)
@pytest.mark.parametrize("way", [way for way in WAYS if way != "features"])
def test_outputs_that_are_no_logits_are_refused(kind, message, way, pixels):
    with pytest.raises(TypeError, match=message):
        WAYS[way](kind(), pixels)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NeedsOption, "NeedsOption is called with images alone, and its 'train' is needed: wrap"),
        (TrainsByDefault, "its 'train' is True by default: wrap it in a module whose __call__"),
        (RandomByDefault, "its 'deterministic' is False by default"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_calls_with_options_are_refused(kind, message, way, pixels):
    with pytest.raises(ValueError, match=message):
        WAYS[way](kind(), pixels)


def test_options_that_are_for_evaluation_by_default_are_fine(pixels):
    class Evaluates(Network):
        def __call__(self, x, train=False, scale=1.0):
            return scale * super().__call__(x)

    np.testing.assert_array_equal(predict(Evaluates(), pixels), predict(Network(), pixels))


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (nnx.softmax, "ends in a softmax.*hand over the model without it"),
        (nnx.log_softmax, "applies a log_softmax.*hand over the model without it"),
        (nnx.sigmoid, "ends in a sigmoid.*hand over the model without it"),
        (lambda x: 2 * nnx.sigmoid(x) - 1, "ends in a sigmoid"),
    ],
)
def test_probabilities_are_not_explained(last, message, pixels):
    class Probable(Network):
        def __call__(self, x):
            return last(super().__call__(x))

    for way in ("LRP", "conservation", "layers"):
        with pytest.raises(ValueError, match=message):
            WAYS[way](Probable(), pixels)
    # They are classified and differentiated all the same.
    assert (
        predict(Probable(), pixels).argmax(-1).tolist()
        == predict(Network(), pixels).argmax(-1).tolist()
    )
    assert WAYS["gradient"](Probable(), pixels).relevance.shape == (4, 8, 8, 3)


class Counts(Network):
    def __init__(self):
        super().__init__()
        self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls[...] += 1
        return super().__call__(x)


class Sows(Network):
    def __call__(self, x):
        features = self.features(x)
        self.sow(nnx.Intermediate, "hidden", features)
        return self.dense(features)


class KeepsTheLast(Network):
    def __init__(self):
        super().__init__()
        self.last = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        logits = super().__call__(x)
        self.last[...] = logits.mean()
        return logits


@pytest.mark.parametrize("kind", [Counts, Sows, KeepsTheLast])
@pytest.mark.filterwarnings("ignore:.*sow:DeprecationWarning")
def test_models_that_keep_something_of_a_call(kind, pixels):
    found = {name: way(kind(), pixels) for name, way in WAYS.items()}
    plain = {name: way(Network(), pixels) for name, way in WAYS.items()}
    np.testing.assert_array_equal(found["predict"], plain["predict"])
    for name in ("LRP", "LRP of classes", "gradient"):
        np.testing.assert_array_equal(found[name].relevance, plain[name].relevance)
    np.testing.assert_array_equal(found["layers"]["conv"], plain["layers"]["conv"])
    assert found["conservation"] == plain["conservation"]


def spectral(layer):
    wrapper = nnx.SpectralNorm(layer, rngs=nnx.Rngs(3))
    # As after a training: the largest singular value is known well.
    for _ in range(100):
        wrapper(jnp.ones((1, 8, 8, 3)), update_stats=True)
    layer.kernel[...] *= 3
    return wrapper


def weighted(layer):
    wrapper = nnx.WeightNorm(layer, rngs=nnx.Rngs(3))
    layer.kernel[...] *= 3
    return wrapper


@pytest.mark.parametrize("normalised", [spectral, weighted])
def test_normalised_weights_are_those_of_a_call(normalised, pixels):
    model = Network()
    kernel = np.array(model.conv.kernel[...])
    model.conv = normalised(model.conv)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model)))
    found = {name: way(model, pixels) for name, way in WAYS.items() if name != "features"}
    jax.tree.map(
        np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model))
    )  # the model is not changed
    # The same network with the weights put in by hand.
    plain = Network()
    flat = kernel.reshape(-1, kernel.shape[-1])
    if normalised is spectral:
        scale = 1 / np.linalg.svd(flat)[1][0]
    else:
        scale = 1 / np.linalg.norm(flat, axis=0)
    plain.conv.kernel[...] = jnp.asarray(kernel * scale)
    rtol = 0.02 if normalised is spectral else 1e-5
    for name in ("LRP", "gradient"):
        expected = WAYS[name](plain, pixels).relevance
        np.testing.assert_allclose(
            found[name].relevance, expected, rtol=rtol, atol=rtol * np.abs(expected).max()
        )


class Normed(nnx.Module):
    def __init__(self, norm):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
        self.norm = norm
        self.dense = nnx.Linear(8 * 8 * 4, 4, rngs=nnx.Rngs(1))

    def __call__(self, x):
        y = nnx.relu(self.norm(self.conv(x)))
        return self.dense(y.reshape(len(y), -1))


def test_instance_norm_is_group_norm_of_single_channels(pixels):
    of_instances = Normed(nnx.InstanceNorm(4, rngs=nnx.Rngs(2)))
    of_groups = Normed(nnx.GroupNorm(4, num_groups=4, rngs=nnx.Rngs(2)))
    for composite in COMPOSITES.values():
        found, logits = relevance_function(of_instances, composite())(pixels / np.float32(255))
        expected, same = relevance_function(of_groups, composite())(pixels / np.float32(255))
        np.testing.assert_allclose(logits, same, rtol=1e-4, atol=1e-5)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * scale)


class Between(Network):
    """``Network`` with a layer of its own between its own."""

    def __init__(self, layer, channels=4):
        super().__init__(layer, channels)


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (nnx.PReLU(negative_slope_init=0.2), lambda x: nnx.leaky_relu(x, 0.2)),
        (nnx.gelu, None),
        (lambda x: nnx.gelu(x, approximate=False), None),
        (jax.jit(nnx.gelu), None),
    ],
)
def test_activations_pass_relevance(layer, function, pixels):
    """As the layer ``Activation`` does, whose rule hands relevance on unchanged."""
    from jaxpoison.models.layers import Activation

    model = Between(layer)
    expected = explain(Between(Activation(function or layer)), pixels, CLASSES)
    found = explain(model, pixels, CLASSES)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
    scale = np.abs(expected.relevance).max()
    np.testing.assert_allclose(found.relevance, expected.relevance, rtol=1e-4, atol=1e-5 * scale)


def test_parts_of_an_activation_used_elsewhere_are_no_activation(pixels):
    def half(x):
        cube = x**3
        return 0.5 * x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * cube))) + cube

    with pytest.raises(ValueError, match="integer_pow"):
        explain(Network(half), pixels)


@pytest.mark.parametrize("name", COMPOSITES)
def test_transposed_convolution_at_stride_one_is_a_convolution(name, pixels):
    transposed = nnx.ConvTranspose(4, 4, (3, 3), rngs=nnx.Rngs(5))
    plain = nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(6))
    plain.kernel[...], plain.bias[...] = transposed.kernel[...], transposed.bias[...]
    images = jnp.asarray(pixels / np.float32(255))
    results = [
        relevance_function(Network(nnx.Sequential(nnx.relu, layer, nnx.relu)), COMPOSITES[name]())(
            images, jnp.asarray(CLASSES)
        )
        for layer in (transposed, plain)
    ]
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)
    scale = np.abs(results[1][0]).max()
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4, atol=1e-5 * scale)


def test_upsampling_by_transposed_convolution_loses_nothing(pixels):
    layer = nnx.ConvTranspose(4, 1, (2, 2), strides=2, use_bias=False, rngs=nnx.Rngs(5))
    model = Network(nnx.Sequential(nnx.relu, layer, nnx.relu))
    explained = explain(model, pixels, CLASSES)
    np.testing.assert_allclose(explained.absorbed / explained.start, 0, atol=1e-3)


@pytest.mark.parametrize("method", ["bilinear", "nearest", "cubic"])
def test_resizing_shares_like_an_average(method, pixels):
    """By the matrix of the resizing, under the rule of sums."""

    def resized(x):
        return jax.image.resize(nnx.relu(x), (len(x), 12, 12, 4), method)

    model = Network(resized)
    model.dense = nnx.Linear(12 * 12 * 4, 4, rngs=nnx.Rngs(1))
    images = jnp.asarray(pixels / np.float32(255))
    composite = paper().with_rules((nnx.Linear, Epsilon()), (nnx.Conv, Epsilon()))
    found, logits = relevance_function(model, composite)(images, jnp.asarray(CLASSES))
    eye = jnp.eye(8)
    matrix = jax.image.resize(eye[None, :, :, None], (1, 12, 8, 1), method)[0, :, :, 0]
    features = nnx.relu(model.conv(images))
    big = jnp.einsum("ai,bj,nijc->nabc", matrix, matrix, features)
    start = jnp.abs(logits[jnp.arange(4), CLASSES])
    sign = jnp.sign(logits[jnp.arange(4), CLASSES])

    def shared(operation, x, outgoing):
        z, vjp = jax.vjp(operation, x)
        return x * vjp(outgoing / (z + jnp.where(z >= 0, 1e-6, -1e-6)))[0]

    outgoing = jnp.zeros_like(logits).at[jnp.arange(4), CLASSES].set(sign * start)
    outgoing = outgoing * jnp.sign(logits)
    flat = shared(model.dense, big.reshape(4, -1), outgoing)
    at_features = shared(
        lambda x: jnp.einsum("ai,bj,nijc->nabc", matrix, matrix, x),
        features,
        flat.reshape(big.shape),
    )
    expected = shared(model.conv, images, at_features)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * scale)


class Excited(Network):
    """A gate for every channel, from its mean (Hu et al. 2018)."""

    def __init__(self, gate=nnx.sigmoid, constant=None):
        super().__init__()
        self.squeeze = nnx.Linear(4, 4, rngs=nnx.Rngs(4))
        self.gate, self.constant = gate, constant

    def features(self, x):
        y = nnx.relu(self.conv(x))
        gates = self.gate(self.squeeze(y.mean((1, 2))))[:, None, None]
        if self.constant is not None:
            gates = self.constant
        return (y * gates).reshape(len(y), -1)


@pytest.mark.parametrize("gate", [nnx.sigmoid, nnx.hard_sigmoid, lambda x: 2 * nnx.sigmoid(x)])
@pytest.mark.parametrize("composite", [paper, epsilon_plus])
def test_the_signal_takes_all_relevance_of_a_gated_one(gate, composite, pixels):
    """As if the gates were constants of this very image."""
    images = jnp.asarray(pixels[:1] / np.float32(255))
    model = Excited(gate)
    gates = gate(model.squeeze(nnx.relu(model.conv(images)).mean((1, 2))))[:, None, None]
    found, logits = relevance_function(model, composite())(images)
    expected, same = relevance_function(Excited(gate, gates), composite())(images)
    np.testing.assert_allclose(logits, same, rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


MASKS = np.ones((4, 8, 8), bool) & (np.arange(8) < 3)
PLACES = np.zeros((4, 2), int)


def hosts_of(pixels):
    return hosts_for(0, pixels, CLASSES, np.eye(4, dtype=np.float32))


IMAGES_GIVEN_TO = {
    **WAYS,
    "perturbed": lambda model, pixels: perturbed(*pure(model), pixels, CLASSES),
    "hosts": lambda _, pixels: hosts_of(pixels),
    "judge": lambda model, pixels: judge_class(
        model, pixels, MASKS[..., 0, None] + np.eye(8, dtype=np.float32), hosts_of(HOSTS), 0
    ),
    "transplants": lambda model, pixels: transplant_margins(
        model, pixels, MASKS, hosts_of(HOSTS), 0
    ),
    "filled": lambda _, pixels: filled(pixels, MASKS),
    "trigger": lambda _, pixels: recovered_trigger(pixels, PLACES, size=3),
    "search": lambda _, pixels: trigger_distances(recovered_trigger(HOSTS, PLACES, size=3), pixels),
}
HOSTS = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("way", IMAGES_GIVEN_TO)
def test_floats_are_not_divided_again(way, pixels):
    for wrong in (pixels / np.float32(255), pixels.astype(np.int64)):
        with pytest.raises(TypeError, match=r"images must be uint8 .*\(255 \* images\)\.round"):
            IMAGES_GIVEN_TO[way](Network(), wrong)
    with pytest.raises(ValueError, match=r"shape \[n, height, width, channels\], found \(8, 8, 3"):
        IMAGES_GIVEN_TO[way](Network(), pixels[0])


def test_integers_are_no_images_of_a_relevance_function(pixels):
    for wrong in (pixels, pixels.astype(np.int32)):
        with pytest.raises(TypeError, match="floats in .*, found u?int.*divide pixels .* by 255"):
            relevance_function(Network())(wrong)


ASKED_ABOUT = {
    "judge": lambda model, pixels, label: judge_class(
        model, pixels, MASKS[..., 0, None] + np.eye(8, dtype=np.float32), hosts_of(pixels), label
    ),
    "transplants": lambda model, pixels, label: transplant_margins(
        model, pixels, MASKS, hosts_of(pixels), label
    ),
    "occlusion": lambda model, pixels, label: occlusion(model, pixels, MASKS, label),
    "residuals": lambda model, pixels, label: residual_flips(
        model, pixels.astype(np.float32), hosts_of(pixels), label
    ),
    "features": lambda model, pixels, label: feature_flips(
        model, "conv", np.zeros((1, 256), np.float32), hosts_of(pixels), label
    ),
    "hosts": lambda _, pixels, label: hosts_for(label, pixels, CLASSES, np.eye(4)),
    "LRP": lambda model, pixels, label: explain(model, pixels, np.full(4, label)),
    "conservation": lambda model, pixels, label: conservation(model, pixels, np.full(4, label)),
    "perturbed": lambda model, pixels, label: perturbed(*pure(model), pixels, np.full(4, label)),
}


@pytest.mark.parametrize("way", ASKED_ABOUT)
def test_classes_that_are_none_are_refused(way, pixels):
    for label in (-1, 4):
        with pytest.raises(ValueError, match=r"0 to 3|at least 0"):
            ASKED_ABOUT[way](Network(), pixels, label)
