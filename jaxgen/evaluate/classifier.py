"""Samples as a classifier of the data's own labels sees them.

The classifier is trained on the training split, once: it is kept in the cache. Whether
it is sure of a sample tells of its quality, how often it sees each class of coverage;
the same figures of real test images are the ceiling.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen import data
from jaxgen._checks import UserError
from jaxgen.data import cache
from jaxgen.evaluate import modes, tensors
from jaxgen.nets.classifier import LeNet
from jaxgen.train.console import say

CONFIDENT = 0.9  # a probability above it
CHUNK = 100  # steps in one program
MAX_BYTES = 2**28  # of training images, which lie on the device whole
BATCH = 250  # test images at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the classifier is trained: Adam, its rate warmed up and annealed.

    Attributes:
        num_steps: Batches.
        batch_size: Images in one.
        learning_rate: The highest.
        shift: Each batch is moved by up to so many 28ths of its size in both directions.
        channels: Of each convolution.
        hidden: Width of the dense layer.
        seed: Fixes parameters, order and shifts.
        version: Raised whenever the same recipe gives another classifier.
    """

    num_steps: int = 2500
    batch_size: int = 64
    learning_rate: float = 3e-3
    shift: int = 1
    channels: tuple[int, ...] = (16, 32, 64)
    hidden: int = 128
    seed: int = 0
    version: int = 1


class Classifier(NamedTuple):
    """A trained network.

    Attributes:
        probabilities: Of the classes, `uint8 [B, H, W, C] -> float32 [B, K]`.
        params: Its parameters.
        features: What they are made of, `uint8 [B, H, W, C] -> float32 [B, D]`.
    """

    probabilities: Callable[[Any], np.ndarray]
    params: Any
    features: Callable[[Any], np.ndarray] | None = None


class Shipped(NamedTuple):
    """Weights that come with the package.

    Attributes:
        sha256: Of the file, `weights/NAME.safetensors`.
        shape: Of an image.
        num_classes: Of its labels.
        recipe: By which `experiments/recipes/features.py` trains it.
    """

    sha256: str
    shape: tuple[int, ...]
    num_classes: int
    recipe: Recipe


# Photographs have no labels: told apart are the two photographs, each in four rotations.
SHIPPED = {
    "digits": Shipped(
        "0944490047b6ab9d5fd9bc4aa091519c5a24b2c40c81cee5e96029ac4fb02831",
        (8, 8, 1),
        10,
        Recipe(),
    ),
    "mnist": Shipped(
        "004b39524a1336f1a1d5f1e1c207b9bd42ea990f41e93fb3fc249f275d47428d",
        (28, 28, 1),
        10,
        Recipe(),
    ),
    "photos": Shipped(
        "1e4002304945d2dd6b74e85a676874465c9e6895d30c4f7c81a46acd61d7c8be",
        (32, 32, 3),
        8,
        Recipe(channels=(16, 32, 32), hidden=64),
    ),
}
WEIGHTS = Path(__file__).with_name("weights")


def _num_classes(dataset: data.Dataset) -> int:
    count = dataset.num_classes
    if count is None or count < 2:
        what = "no labels" if count is None else "labels of one class only"
        raise UserError(
            f"--judge needs data with labels of at least two classes; {dataset.name} has "
            f"{what}"
        )
    return count


def judge_stacked(
    classifier: Classifier,
    draw: Callable[[int], np.ndarray],
    parts: data.Dataset,
    num_samples: int,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Modes of samples whose channels are images of one set.

    Args:
        classifier: Of that set.
        draw: As in `judge`; of `C` channels.
        parts: The set.
        num_samples: How many samples are judged.
        progress: As in `judge`.

    Returns:
        What `jaxgen.evaluate.modes.of_labels` tells of the classes of the channels;
        `num_modes`, `num_judged`, and `classifier_accuracy` on the set's test split.
    """
    accuracy, real = _on_test(classifier, parts.test)
    say(f"classifier: {100 * accuracy:.2f} % of {len(real):,} test images right")
    num_classes, found = _num_classes(parts), []
    while len(found) < num_samples:
        x = draw(len(found))
        label = np.zeros(len(x), np.int64)
        for channel in range(x.shape[-1]):
            seen = classifier.probabilities(x[..., channel : channel + 1])
            label = label * num_classes + seen.argmax(axis=1)
        found.extend(label)
        progress(min(len(found), num_samples), num_samples)
    num_modes = num_classes ** x.shape[-1]
    told = modes.of_labels(np.array(found[:num_samples]), num_modes)
    told |= {"num_modes": num_modes, "num_judged": num_samples}
    return told | {"classifier_accuracy": accuracy}


def judge(
    classifier: Classifier,
    draw: Callable[[int], np.ndarray],
    test: data.Source,
    num_samples: int,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Confidence and class shares of samples, beside those of real test images.

    Args:
        classifier: Of the labels.
        draw: `start -> uint8 [N, H, W, C]`, the samples from number `start` onwards.
        test: The test split.
        num_samples: How many samples are judged.
        progress: Called with (samples judged, samples in all).

    Returns:
        What `summarise` tells of the samples; `real_confident_share` with `_se`, of
        `num_real` test images spread over the split, as many as samples where there are
        enough; `classifier_accuracy` on the whole test split.
    """
    accuracy, real = _on_test(classifier, test)
    say(f"classifier: {100 * accuracy:.2f} % of {len(real):,} test images right")
    parts, done = [], 0
    while done < num_samples:
        parts.append(classifier.probabilities(draw(done)))
        done += len(parts[-1])
        progress(min(done, num_samples), num_samples)
    result = summarise(np.concatenate(parts)[:num_samples])
    num_real = min(num_samples, len(real))
    ceiling = summarise(real[data.spread(len(real), num_real)])
    return {
        **result,
        "real_confident_share": ceiling["confident_share"],
        "real_confident_share_se": ceiling["confident_share_se"],
        "num_real": num_real,
        "classifier_accuracy": accuracy,
    }


def summarise(probabilities: np.ndarray) -> dict[str, Any]:
    """The figures of some images from their class probabilities.

    Args:
        probabilities: `[N, K]`.

    Returns:
        `num_judged`, N; `confident_share`, of images whose likeliest class has a
        probability above 0.9, with `_se`, its binomial standard error; `class_shares`,
        how often each class is the likeliest, `smallest_class_share` and
        `largest_class_share`.
    """
    num, num_classes = probabilities.shape
    share = float(np.mean(probabilities.max(axis=1) > CONFIDENT))
    counts = np.bincount(probabilities.argmax(axis=1), minlength=num_classes)
    shares = (counts / num).tolist()
    return {
        "num_judged": num,
        "confident_share": share,
        "confident_share_se": float(np.sqrt(share * (1 - share) / num)),
        "class_shares": shares,
        "smallest_class_share": min(shares),
        "largest_class_share": max(shares),
    }


def make_classifier(
    dataset: data.Dataset, *, recipe: Recipe | None = None
) -> Classifier:
    """The classifier of a labelled set: from the cache, else trained and put there.

    A set of more than 256 MiB is represented by images spread over its training split.

    Args:
        dataset: The set.
        recipe: By default that of the weights that are shipped for the set, if any, which
            then are taken.

    Raises:
        UserError: if the data have no labels or one class, or shipped weights were edited.
    """
    num_classes = _num_classes(dataset)
    if recipe is None:
        if is_shipped(dataset):
            return shipped(dataset.name)
        recipe = Recipe()
    net = network(num_classes, recipe)
    source = dataset.train
    num = min(source.num_examples, max(1, MAX_BYTES // int(np.prod(source.shape))))
    examples = source.take(data.spread(source.num_examples, num))
    digest = hashlib.sha256(str(examples["x"].shape).encode())
    for name in ("x", "label"):
        digest.update(np.ascontiguousarray(examples[name]).data)
    key = cache.make_key(
        kind="classifier",
        recipe=dataclasses.asdict(recipe),
        num_classes=num_classes,
        digest=digest.hexdigest(),
    )
    shape = jax.ShapeDtypeStruct((1, *source.shape), jnp.float32)
    form = jax.tree.structure(jax.eval_shape(net.init, jax.random.key(0), shape))
    hit = cache.load(key)
    if hit is None:
        say(
            f"training a classifier of {dataset.name}: {recipe.num_steps:,} steps, once"
        )
        params = train(net, examples, recipe)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        arrays = {str(i): leaf for i, leaf in enumerate(leaves)}
        note = cache.store(key, arrays, {}, what="classifier")
        if note is not None:
            say(note)
    else:
        arrays = hit[0]
    params = jax.tree.unflatten(form, [arrays[str(i)] for i in range(len(arrays))])
    return bind(net, params)


def is_shipped(dataset: data.Dataset) -> bool:
    """Whether weights come with the package for a set of this name and shape."""
    held = SHIPPED.get(dataset.name)
    return held is not None and tuple(dataset.shape) == held.shape


def shipped(name: str) -> Classifier:
    """A classifier whose weights come with the package.

    Raises:
        UserError: if the file is not the one that was shipped.
    """
    held = SHIPPED[name]
    arrays = tensors.read_shipped(WEIGHTS / f"{name}.safetensors", held.sha256)
    net = network(held.num_classes, held.recipe)
    image = jax.ShapeDtypeStruct((1, *held.shape), jnp.float32)
    form = jax.eval_shape(net.init, jax.random.key(0), image)
    params = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(arrays[_name(path)], jnp.float32), form
    )
    return bind(net, params)


def named(params: Any, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Parameters under names such as `params.Conv_0.kernel`."""
    leaves = jax.tree.leaves_with_path(params)
    return {_name(path): np.asarray(leaf, dtype) for path, leaf in leaves}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def network(num_classes: int, recipe: Recipe) -> LeNet:
    """The network of a recipe."""
    return LeNet(num_classes, recipe.channels, recipe.hidden)


def bind(net: LeNet, params: Any) -> Classifier:
    """A network with its parameters."""

    @jax.jit
    def probabilities(params: Any, x: jax.Array) -> jax.Array:
        return jax.nn.softmax(_logits(net, params, x))

    @jax.jit
    def features(params: Any, x: jax.Array) -> Any:
        x = x.astype(jnp.float32) / 255
        return net.apply(params, x, method=LeNet.features_and_logits)[0]

    def applied(function: Any) -> Any:
        return lambda x: np.asarray(function(params, jnp.asarray(x)))

    return Classifier(applied(probabilities), params, applied(features))


def train(net: LeNet, examples: dict[str, np.ndarray], recipe: Recipe) -> Any:
    """Parameters from `x` uint8 `[N, H, W, C]` and `label` `[N]`."""
    rate = optax.cosine_onecycle_schedule(recipe.num_steps, recipe.learning_rate)
    optimizer = optax.adam(rate)
    x, label = (jnp.asarray(examples[name]) for name in ("x", "label"))
    key = jax.random.key(recipe.seed)
    shift = round(recipe.shift * min(x.shape[1:3]) / 28)

    def loss(params: Any, x: jax.Array, label: jax.Array) -> jax.Array:
        logits = _logits(net, params, x)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)
        return losses.mean()

    def step(x: jax.Array, label: jax.Array, state: Any, item: Any) -> Any:
        params, opt_state = state
        number, indices = item
        moved = _shifted(x[indices], jax.random.fold_in(key, number), shift)
        gradient = jax.grad(loss)(params, moved, label[indices])
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state: Any, x: jax.Array, label: jax.Array, items: Any) -> Any:
        return jax.lax.scan(functools.partial(step, x, label), state, items)[0]

    params = jax.jit(net.init)(jax.random.fold_in(key, 2**31 - 1), x[:1] / 255)
    state = params, optimizer.init(params)
    for start in range(0, recipe.num_steps, CHUNK):
        numbers = range(start, min(start + CHUNK, recipe.num_steps))
        indices = [
            data.batch_indices(
                recipe.seed, i, num_examples=len(x), batch_size=recipe.batch_size
            )
            for i in numbers
        ]
        items = jnp.asarray(numbers), jnp.asarray(np.stack(indices))
        state = jax.block_until_ready(advance(state, x, label, items))
    return state[0]


def _on_test(classifier: Classifier, source: data.Source) -> tuple[float, np.ndarray]:
    """Accuracy on a split, and the class probabilities of its images."""
    parts, right = [], 0
    for raw in data.eval_batches(source, min(BATCH, source.num_examples)):
        real = raw["mask"].astype(bool)
        parts.append(classifier.probabilities(raw["x"])[real])
        right += int(np.sum(parts[-1].argmax(axis=1) == raw["label"][real]))
    return right / source.num_examples, np.concatenate(parts)


def _logits(net: LeNet, params: Any, x: jax.Array) -> Any:
    return net.apply(params, x.astype(jnp.float32) / 255)


def _shifted(x: jax.Array, key: jax.Array, most: int) -> jax.Array:
    """A batch moved by up to `most` pixels in both directions, edges repeated."""
    if most == 0:
        return x
    padded = jnp.pad(x, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    down, right = jax.random.randint(key, (2,), 0, 2 * most + 1)
    return jax.lax.dynamic_slice(padded, (0, down, right, 0), x.shape)
