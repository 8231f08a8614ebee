"""Generative adversarial networks: a generator that learns to be taken for data.

Two players, alternately, each with the other frozen: a discriminator tells data from
samples, a generator makes samples that it does not tell. Inside, images are in [-1, 1]
and rows are standardised. The discriminator sees both changed by the same augmentation,
and pays for its slope at both.

References:
    Goodfellow et al. 2014, arXiv:1406.2661. Mescheder et al. 2018 (R1, R2),
    arXiv:1801.04406. Huang et al. 2025 (R3GAN), arXiv:2501.05441. Karras et al. 2020
    (augmentation), arXiv:2006.06676.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import augmentation, columns, likelihoods
from jaxgen.losses import gan as games
from jaxgen.losses import penalties
from jaxgen.models import given
from jaxgen.models.base import (
    Aux,
    Batch,
    Model,
    Observation,
    Player,
    example_keys,
    normal_prior,
)
from jaxgen.models.gan_config import GANConfig, Sampling, resolve
from jaxgen.nets import coders
from jaxgen.nets import gan as nets

__all__ = ["GANConfig", "Sampling", "discriminate", "make_gan", "resolve"]

MEMORY = 0.99  # a step, of the sign that --adaptive follows
OF_LOG_ODDS = ("relativistic", "non_saturating", "minimax")  # games that cost nats
# What a generator pays whose samples have the odds exp(-10) of being data.
CERTAIN = MappingProxyType(
    {"relativistic": 10.0, "non_saturating": 10.0, "minimax": -math.exp(-10.0)}
)
# Logits above it call an example data; where differences alone count there is none.
BOUNDARIES = MappingProxyType(
    {"minimax": 0.0, "non_saturating": 0.0, "hinge": 0.0, "least_squares": 0.5}
)
UNITS = MappingProxyType(
    {"right": "share", "slope": "logits per unit of x", "augment": "probability"}
)


def make_gan(config: GANConfig) -> Model:
    """Binds a resolved config to the contract of `jaxgen.models.base.Model`."""
    if config.shape is None:
        raise ValueError("gan: config.shape is None: call resolve(config, ...)")
    of_images = config.columns is None

    def generate(params: Any, z: Array, keys: Array, condition: Any = None) -> Array:
        told = given.chosen(config, condition, keys)
        return _to_data(config, _generated(config, params["generator"], z, told))

    is_alone = of_images and not config.num_planes
    views = [("between latents, along an arc", _between(config))] if is_alone else []
    if config.num_classes:
        views.append(("a class a row, a latent a column", _by_class(config)))
    unit = "nats" if config.game in OF_LOG_ODDS else "units of the game"
    return Model(
        init=lambda key, batch: _init(config, key, batch),
        players=(
            Player(
                "discriminator",
                _discriminator_objective(config),
                config.critic_steps,
                least_examples=2,  # of one the player would only follow that one
                unit=unit,
                units=UNITS,
            ),
            Player("generator", _generator_objective(config), unit=unit),
        ),
        prior=normal_prior((_latent_dim(config),)),
        generate=generate,
        density="discrete" if of_images else "other",
        observation=_observation(config) if is_alone else None,
        views=tuple(views),
        collapse=functools.partial(collapse, certain=CERTAIN.get(config.game)),
    )


def _observation(config: GANConfig) -> Observation:
    """Dequantised images around the generator's: N(x; G(z), sigma^2).

    With classes it is their even mixture, z being that of any; a chosen class is alone.
    """
    classes = np.arange(config.num_classes or 1)
    if config.sampling.label is not None:
        classes = classes[config.sampling.label :][:1]

    def mean(params: Any, z: Array, label: Array) -> Array:
        told = label if config.num_classes else None
        return _to_data(config, _generated(config, params["generator"], z, told))

    def log_prob(params: Any, x: Array, z: Array, log_sigma: Array) -> Array:
        def of_class(label: Array) -> Array:
            mu = mean(params, z, jnp.full(len(z), label))
            return likelihoods.gaussian_log_prob(x, mu, log_sigma)

        return jax.nn.logsumexp(
            jax.vmap(of_class)(jnp.asarray(classes)), axis=0
        ) - math.log(len(classes))

    def sample(params: Any, z: Array, keys: Array, log_sigma: Array) -> Array:
        choice, noise = _keys(2, keys)
        chosen = jax.vmap(lambda key: jax.random.choice(key, classes))(choice)
        draw = jax.vmap(likelihoods.gaussian_sample, (0, 0, None))
        return draw(noise, mean(params, z, chosen), log_sigma)

    return Observation(log_prob, sample, "continuous", is_fitted=True)


def discriminate(
    config: GANConfig, params: Any, x: Array, condition: Array | None = None
) -> Array:
    """The discriminator's logits `[B]` of data as a batch has them, `[B, *shape]`."""
    keys = jax.vmap(jax.random.key)(jnp.zeros(len(x), jnp.uint32))
    inside = _from_data(config, x, keys)
    told = given.told(config, condition)
    return _judged(config, params["discriminator"], inside, told)


def collapse(
    records: Sequence[Mapping[str, Any]], *, certain: float | None = 10.0
) -> str | None:
    """What the last lines of metrics.jsonl all say for a collapse, or None.

    Samples that hardly differ; that show less than half of the classes that data show; or
    a discriminator that is certain: it tells 99.9 % of the pairs apart, and the generator
    pays more than `certain`. Without that number, in games whose logits are no log odds,
    it is not looked for.
    """

    def all_have(name: str, is_bad: Any) -> bool:
        values = [record.get(name) for record in records]
        return all(value is not None and is_bad(value) for value in values)

    now = records[-1]
    if all_have("samples/diversity", lambda v: v < 0.1):
        share = 100 * now["samples/diversity"]
        return (
            f"the samples are nearly alike: {share:.1f} % of the variance of the data"
        )
    if all_have("samples/classes", lambda v: v < 0.5):
        share = 100 * now["samples/classes"]
        return f"the samples show {share:.0f} % of the classes that as many images show"
    if certain is None or not all_have("right/pair", lambda v: v > 0.999):
        return None
    if all_have("loss/generator", lambda v: v > certain):
        return (
            f"the discriminator is certain ({100 * now['right/pair']:.1f} % of the pairs "
            f"told apart, the generator pays {now['loss/generator']:.3g})"
        )
    return None


def _discriminator_objective(config: GANConfig) -> Any:
    def objective(
        params: Any, extra: Any, batch: Batch, key: Array, progress: Array
    ) -> tuple[Array, Aux]:
        z_keys, keys, penalty_keys = _keys(3, example_keys(key, batch))
        real, told, fake = _both(config, params, batch, z_keys)
        fake = jax.lax.stop_gradient(fake)
        probability = _probability(config, extra, progress)

        def critic(x: Array) -> Array:
            times = len(x) // len(real)
            own = None if told is None else jnp.repeat(told, times, axis=0)
            x = _augmented(config, x, jnp.repeat(keys, times), probability)
            return _judged(config, params["discriminator"], x, own)

        # Each sample beside its example: batches that are split over devices stay so.
        pairs = jnp.stack([real, fake], axis=1).reshape(-1, *real.shape[1:])
        logits, slopes = _logits_and_slopes(config, critic, pairs, penalty_keys)
        logits, slopes = logits.reshape(-1, 2), slopes.reshape(-1, 2)
        price = 0.5 * jnp.sum(slopes, axis=1)
        if config.penalty in ("r1", "r2"):
            price = 0.5 * slopes[:, 0 if config.penalty == "r1" else 1]
        elif config.penalty == "gradient":
            price = penalties.slope_deviation(
                critic, real, fake, penalty_keys, checked=False
            )
        loss = games.GAMES[str(config.game)](*logits.T).discriminator
        right = {"right/pair": logits[:, 0] > logits[:, 1]}
        if (boundary := BOUNDARIES.get(config.game)) is not None:
            right["right/real"] = logits[:, 0] > boundary
            right["right/fake"] = logits[:, 1] < boundary
        terms = {name: value.astype(jnp.float32) for name, value in right.items()}
        root = jnp.sqrt(slopes)
        terms |= {"slope/real": root[:, 0], "slope/fake": root[:, 1]}
        if config.penalty != "none":
            terms["penalty"] = _gamma(config, progress) * price
            loss += terms["penalty"]
        if config.augment:
            terms["augment"] = probability
        extra = _remembered(config, extra, logits)
        return loss * batch.get("weight", 1.0), Aux(terms, extra)

    return objective


def _generator_objective(config: GANConfig) -> Any:
    def objective(
        params: Any, extra: Any, batch: Batch, key: Array, progress: Array
    ) -> tuple[Array, Aux]:
        z_keys, keys = _keys(2, example_keys(key, batch))
        real, told, fake = _both(config, params, batch, z_keys)
        probability = _probability(config, extra, progress)

        def judged(x: Array) -> Array:
            x = _augmented(config, x, keys, probability)
            return _judged(config, params["discriminator"], x, told)

        fake = judged(fake)
        # Only the pairs look at data: the others' players pay alike whatever they say.
        real = judged(real) if config.game == "relativistic" else jnp.zeros_like(fake)
        loss = games.GAMES[str(config.game)](real, fake).generator
        return loss * batch.get("weight", 1.0), Aux({})

    return objective


def _logits_and_slopes(
    config: GANConfig, critic: Any, x: Array, keys: Array
) -> tuple[Array, Array]:
    """Of examples and samples; networks of ours judge each of them by itself."""
    if config.penalty == "estimated":
        keys = jax.vmap(jax.random.split)(keys).reshape(-1)
        slopes = penalties.estimated_squared_slope(critic, x, keys, checked=False)
        return critic(x), slopes
    return penalties.logits_and_slopes(critic, x, checked=False)


def _gamma(config: GANConfig, progress: Array) -> Array:
    """Weight of the penalty of a whole example, that falls along a cosine."""
    first = float(config.gamma or 0.0)
    if config.penalty != "gradient":
        first *= math.prod(config.shape or ())
    last = first * float(config.gamma_decay or 0.0)
    return last + (first - last) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def _both(
    config: GANConfig, params: Any, batch: Batch, keys: Array
) -> tuple[Array, Array | None, Array]:
    """Data of a batch, what is told of them, and as many samples that are told the same."""
    data_keys, z_keys = _keys(2, keys)
    label = given.of_batch(config, batch)
    z = normal_prior((_latent_dim(config),))(z_keys)
    fake = _generated(config, params["generator"], z, label)
    return _from_data(config, batch["x"], data_keys), label, fake


def _probability(config: GANConfig, extra: Any, progress: Array) -> Array:
    """Of each change to what the discriminator sees."""
    if not config.augment:
        return jnp.zeros(())
    if config.adaptive:
        return extra["augment"]
    return config.augment * 0.5 * (1 - jnp.cos(jnp.pi * jnp.minimum(2 * progress, 1)))


def _remembered(config: GANConfig, extra: Any, logits: Array) -> Any:
    """The state of an adaptive augmentation after the discriminator has judged.

    It is moved by the mean sign of the steps before: then it is the same on every device,
    and what differs between parts of a batch, the new mean, is averaged over them.
    """
    if not config.adaptive:
        return None
    sign = jnp.mean(jnp.sign(logits[:, 0] - logits[:, 1]))
    moved = augmentation.adapted_probability(
        extra["augment"], extra["sign"], 1 - MEMORY, largest=config.augment
    )
    return {
        "augment": moved,
        "sign": MEMORY * extra["sign"] + (1 - MEMORY) * jax.lax.stop_gradient(sign),
    }


def _augmented(config: GANConfig, x: Array, keys: Array, probability: Array) -> Array:
    if not config.augment:
        return x
    return augmentation.augmented(x, keys, probability)


def _init(config: GANConfig, key: Array, batch: Batch) -> Any:
    keys = jax.random.split(key, 2)
    x = jnp.zeros((1, *batch["x"].shape[1:]))
    z = jnp.zeros((1, _latent_dim(config)))
    told = None if config.num_planes else jnp.zeros(1, jnp.int32)
    params = {
        "discriminator": _discriminator(config).init(keys[0], x, told)["params"],
        "generator": _generator(config).init(keys[1], z, told)["params"],
    }
    extra = {"augment": jnp.zeros(()), "sign": jnp.zeros(())}
    return params, extra if config.adaptive else ()


def _generated(config: GANConfig, params: Any, z: Array, label: Any) -> Array:
    return coders.applied(_generator(config), params, z, label, compute=config.compute)


def _judged(config: GANConfig, params: Any, x: Array, label: Any) -> Array:
    net = _discriminator(config)
    return coders.applied(net, params, x, label, compute=config.compute)


def _from_data(config: GANConfig, x: Array, keys: Array) -> Array:
    """From a batch to what the networks see; rounded values of rows are spread."""
    if config.columns is None:
        return 2 * x - 1
    x = columns.spread(config.columns, x, keys)
    return columns.to_line(config.columns).to_latent((), x)[0]


def _to_data(config: GANConfig, x: Array) -> Array:
    """The inverse of `_from_data`; what lies outside the range of a pixel is cut off."""
    if config.columns is None:
        return jnp.clip((x + 1) / 2, 0.0, 1.0)
    x = columns.to_line(config.columns).to_data((), x)[0]
    return columns.rounded(config.columns, x)


def _latent_dim(config: GANConfig) -> int:
    return int(config.latent_dim or 0)


def _keys(num: int, keys: Array) -> Array:
    """`num` keys for each of `keys [B]`, `[num, B]`."""
    return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys)


def _between(config: GANConfig, rows: int = 5, num: int = 12) -> Any:
    def view(params: Any, x: Array) -> Array:
        del x
        ends = jax.random.normal(jax.random.key(0), (2, rows, 1, _latent_dim(config)))
        turn = jnp.linspace(0, jnp.pi / 2, num)[None, :, None]
        z = jnp.cos(turn) * ends[0] + jnp.sin(turn) * ends[1]
        label = jnp.repeat(jnp.arange(rows), num) % (config.num_classes or 1)
        return _shown(config, params, z.reshape(rows * num, -1), label, rows)

    return view


def _by_class(config: GANConfig, most: int = 10, num: int = 12) -> Any:
    def view(params: Any, x: Array) -> Array:
        del x
        rows = min(most, config.num_classes or 1)
        z = jax.random.normal(jax.random.key(1), (num, _latent_dim(config)))
        label = jnp.repeat(jnp.arange(rows), num)
        return _shown(config, params, jnp.tile(z, (rows, 1)), label, rows)

    return view


def _shown(config: GANConfig, params: Any, z: Array, label: Array, rows: int) -> Array:
    told = label if config.num_classes else None
    x = _to_data(config, _generated(config, params["generator"], z, told))
    return x.reshape(rows, -1, *x.shape[1:])


def _generator(config: GANConfig) -> Any:
    width, told = int(config.width or 0), config.num_classes or 0
    if config.columns is not None:
        return nets.RowGenerator(len(config.columns), width, int(config.blocks or 0))
    shape: Any = config.shape
    if config.net == "dcgan":
        return nets.DCGANGenerator(shape, width, told)
    blocks, patch = int(config.blocks or 0), int(config.patch or 0)
    return nets.ResidualGenerator(shape, width, blocks, patch, told, _planes(config))


def _discriminator(config: GANConfig) -> Any:
    width, told = int(config.width or 0), config.num_classes or 0
    if config.columns is not None:
        return nets.RowDiscriminator(width, int(config.blocks or 0))
    if config.net == "dcgan":
        return nets.DCGANDiscriminator(width, told)
    blocks, patch = int(config.blocks or 0), int(config.patch or 0)
    return nets.ResidualDiscriminator(width, blocks, patch, told, _planes(config))


def _planes(config: GANConfig) -> int:
    """That the networks see; one says that they are told."""
    return config.num_planes + 1 if config.num_planes else 0
