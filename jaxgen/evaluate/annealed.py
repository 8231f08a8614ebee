"""Likelihood beyond the bound: annealed importance sampling of a run, and its gap.

Forward chains have log p(x) of test images from below. From above it is known only for
images that the model itself has made, whose z is known: there both are told, and their
gap says how far the estimate on test images may be from the truth.

References:
    Wu et al. 2017, arXiv:1611.04273. Grosse et al. 2015 (bidirectional Monte Carlo),
    arXiv:1511.02543.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import annealing, data, estimators
from jaxgen._checks import RunError, UserError
from jaxgen.evaluate import likelihood
from jaxgen.models.base import Observation, indexed_keys
from jaxgen.train.console import say
from jaxgen.train.session import Loaded

NUMBERS = 2**16  # of data that all chains decode at once
SIGMAS = 0.02 * 2.0 ** np.arange(7)  # among which a fitted one is sought
FIT = (4, 16)  # chains and images then, of a tenth of the temperatures
# What noise is for; 1 is that of a likelihood.
PREPARED, CHAINS, SIMULATED, LATENTS = 0, 2, 3, 4


class Annealing(NamedTuple):
    """The effort of annealed importance sampling.

    Attributes:
        num_temperatures: Steps of each chain, of 10 leapfrog steps.
        num_chains: Chains an image, one weight each.
        num_images: Test images, spread over the split, and as many simulated ones.
    """

    num_temperatures: int
    num_chains: int = 16
    num_images: int = 100


def evaluate_annealed(
    loaded: Loaded,
    dataset: data.Dataset,
    effort: Annealing,
    *,
    num_samples: int = 100,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Log p(x) by annealed importance sampling, in nats, and the gap of its bounds.

    A run takes 3 * 20 * temperatures * chains gradients of the decoder an image.

    Args:
        loaded: The run.
        dataset: Its data.
        effort: How long and how many the chains are.
        num_samples: K of the bound by importance sampling that is told beside.
        seed: Fixes all noise; that of example i depends on (seed, i) alone.
        batch_size: Images at once, by default a number that depends on the chains alone:
            how a batch is rounded, long chains may amplify.
        progress: Called with (images done, images in all), test and simulated ones.

    Returns:
        `ais_nll_nats` and `ais_bits_per_dim` of the test images, each with `_se` (standard
        error over the images) and `_kind`: "bound", or "estimate" of a model that has no
        p(x given z), whose images are then taken for the means of Gaussians of
        `ais_sigma`. `ais_iwae_nll_nats`: the bound on the same images, where there is
        one. Of simulated images `ais_simulated_log_p_lower`, `_upper` and `ais_gap_nats`,
        their difference, with `_se`. `ais_ess_mean` of the chains' weights and
        `ais_monte_carlo_se` (nats, of the mean) are those of the test images.

    Raises:
        UserError: if the model has no p(x given z), or there are not so many images.
        RunError: if any value is not finite; none is left out.
    """
    observation = _checked(loaded, dataset, effort)
    chains = _make_chains(loaded, observation, effort, seed, batch_size)
    num, done, log_sigma = effort.num_images, 0, 0.0
    if observation.is_fitted:
        log_sigma = _fitted(loaded, observation, dataset.train, effort, seed)

    def joined(parts: Iterator[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
        """Columns of all images, while progress is told."""
        nonlocal done
        rows = []
        for part in parts:
            rows.append(part)
            done += len(part[0])
            progress(done, 3 * num)
        return [np.concatenate(column) for column in zip(*rows, strict=True)]

    nats, errors, ess = joined(chains.of(dataset.test, num, log_sigma))
    lower = joined(chains.simulated(num, log_sigma, reverse=False))[0]
    upper = joined(chains.simulated(num, log_sigma, reverse=True))[0]
    _check_finite(nats, lower, upper)
    result = _told(loaded, observation, -nats)
    if loaded.model.log_likelihood is not None:
        same: dict[str, Any] = {"num_images": num, "seed": seed}
        beside = likelihood.evaluate_likelihood(
            loaded, dataset.test, num_samples=num_samples, **same
        )
        result |= {f"ais_iwae_nll_nats{s}": beside[f"nll_nats{s}"] for s in ("", "_se")}
    spread = math.sqrt(np.sum(np.square(errors))) / num
    return {
        **result,
        **_with_error("ais_gap_nats", upper - lower),
        "ais_simulated_log_p_lower": float(lower.mean()),
        "ais_simulated_log_p_upper": float(upper.mean()),
        **({"ais_sigma": math.exp(log_sigma)} if observation.is_fitted else {}),
        "ais_ess_mean": float(ess.mean()),
        "ais_monte_carlo_se": spread if math.isfinite(spread) else None,
        "ais_temperatures": effort.num_temperatures,
        "ais_chains": effort.num_chains,
        "ais_images": num,
    }


def _told(loaded: Loaded, observation: Observation, nll: np.ndarray) -> dict[str, Any]:
    """Of the test images, in nats and, where there are any, bits/dim."""
    kind = "estimate" if observation.is_fitted else "bound"
    result = _with_error("ais_nll_nats", nll) | {"ais_nll_nats_kind": kind}
    if observation.density == "other":
        return result
    dims = math.prod(loaded.config.model.shape)
    bits = estimators.bits_per_dim(nll, dims, kind=observation.density)
    result |= _with_error("ais_bits_per_dim", np.asarray(bits, np.float64))
    return result | {"ais_bits_per_dim_kind": kind}


def _checked(loaded: Loaded, dataset: data.Dataset, effort: Annealing) -> Observation:
    """What the chains need of the model, where all that is asked can be done."""
    if loaded.model.observation is None:
        raise UserError(
            f"--ais: {loaded.config.family} of {loaded.config.data.name} has no decoder "
            "p(x given z) whose latents chains could sample; leave it out"
        )
    for flag, value in (("ais", effort[0]), ("ais-chains", effort[1])):
        if value < 1:
            raise UserError(f"--{flag} must be at least 1, got {value}")
    total = dataset.test.num_examples
    if not 1 <= effort.num_images <= total:
        raise UserError(
            f"--ais-images must be in 1 .. {total}, the test split, got "
            f"{effort.num_images}"
        )
    return loaded.model.observation


class _Chains(NamedTuple):
    """Compiled chains of a run, as functions to an iterator over chunks of images.

    Attributes:
        of: `(source, num, log_sigma)`: log p(x) `[B]` of so many images of a
            source, its Monte Carlo error and its effective sample size.
        simulated: `(num, log_sigma, reverse=)`: those of images that the model makes.
    """

    of: Callable[..., Iterator[tuple[np.ndarray, ...]]]
    simulated: Callable[..., Iterator[tuple[np.ndarray, ...]]]


def _bounds(
    observation: Observation, latent: tuple[int, ...], effort: Annealing
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Log p(x) from below, and from above by an exact z of each x; compiled."""

    @jax.jit
    def forward(params: Any, x: Array, keys: Array, log_sigma: Array) -> Any:
        return annealing.annealed_importance(
            lambda z: observation.log_prob(params, x, z, log_sigma),
            keys,
            latent_shape=latent,
            num_chains=effort.num_chains,
            num_temperatures=effort.num_temperatures,
        )

    @jax.jit
    def backward(params: Any, x: Array, z: Array, keys: Array, log_sigma: Array) -> Any:
        return annealing.reverse_annealed_importance(
            lambda z: observation.log_prob(params, x, z, log_sigma),
            keys,
            jnp.broadcast_to(z, (effort.num_chains, *z.shape)),
            num_temperatures=effort.num_temperatures,
        )

    return forward, backward


def _make_chains(
    loaded: Loaded,
    observation: Observation,
    effort: Annealing,
    seed: int,
    batch_size: int | None,
) -> _Chains:
    model, seeded = loaded.model, jax.random.key(seed)
    numbers = effort.num_chains * math.prod(loaded.config.model.shape)
    # Whatever number of images is wanted: then image i has the same figure in all.
    size = max(1, NUMBERS // numbers) if batch_size is None else batch_size
    latent = jax.eval_shape(
        model.prior, jax.random.split(seeded, 1), loaded.params
    ).shape[1:]
    forward, backward = _bounds(observation, latent, effort)
    transform: Any = loaded.config.data.transform
    if observation.density == "continuous":
        transform = "dequantise"

    def keys_of(purpose: int, index: Array) -> Array:
        return indexed_keys(jax.random.fold_in(seeded, purpose), index)

    @jax.jit
    def simulate(params: Any, index: Array, log_sigma: Array) -> tuple[Array, Array]:
        z = model.prior(keys_of(LATENTS, index), params)
        x = observation.sample(params, z, keys_of(SIMULATED, index), log_sigma)
        return x, z

    def told(estimate: estimators.ImportanceEstimate, num: int) -> Any:
        return tuple(np.asarray(column, np.float64)[:num] for column in estimate[:3])

    def of(source: data.Source, num: int, log_sigma: float) -> Iterator[Any]:
        chosen = data.spread(source.num_examples, num)
        key = jax.random.fold_in(seeded, PREPARED)
        for raw in data.eval_batches(source, size, chosen=chosen):
            batch = {name: jnp.asarray(raw[name]) for name in ("x", "index")}
            x = data.prepare(batch, key, transform=transform)["x"]
            keys = keys_of(CHAINS, batch["index"])
            estimate = forward(loaded.params, x, keys, jnp.float32(log_sigma))
            yield told(estimate, int(raw["mask"].sum()))

    def simulated(num: int, log_sigma: float, *, reverse: bool) -> Iterator[Any]:
        for start in range(0, num, size):
            index = jnp.arange(start, start + size)
            x, z = simulate(loaded.params, index, jnp.float32(log_sigma))
            keys = keys_of(CHAINS, index)
            if reverse:
                estimate = backward(loaded.params, x, z, keys, jnp.float32(log_sigma))
            else:
                estimate = forward(loaded.params, x, keys, jnp.float32(log_sigma))
            yield told(estimate, min(size, num - start))

    return _Chains(of, simulated)


def _fitted(
    loaded: Loaded,
    observation: Observation,
    source: data.Source,
    effort: Annealing,
    seed: int,
) -> float:
    """The log sigma at which training images are likeliest, by shorter chains.

    Tried are SIGMAS, then three around the best, each time with a parabola between.
    """
    short = Annealing(max(1, effort.num_temperatures // 10), *FIT)
    short = short._replace(num_images=min(short.num_images, source.num_examples))
    chains = _make_chains(loaded, observation, short, seed, None)

    def mean(log_sigma: float) -> float:
        parts = chains.of(source, short.num_images, log_sigma)
        return float(np.mean(np.concatenate([part[0] for part in parts])))

    tried = np.log(SIGMAS)
    best = _vertex(tried, [mean(log_sigma) for log_sigma in tried])
    near = best + 0.25 * (tried[1] - tried[0]) * np.arange(-1, 2)
    log_sigma = _vertex(near, [mean(log_sigma) for log_sigma in near])
    say(
        f"sigma {math.exp(log_sigma):.4f} of a Gaussian around samples, fitted to "
        f"{short.num_images} training images"
    )
    return log_sigma


def _vertex(positions: np.ndarray, values: Sequence[float]) -> float:
    """Where a parabola through the highest of evenly spaced values has its top."""
    _check_finite(np.asarray(values))
    best = int(np.argmax(values))
    if not 0 < best < len(values) - 1:
        return float(positions[best])
    below, top, above = values[best - 1 : best + 2]
    bend = 2 * top - below - above
    step = positions[1] - positions[0]
    return float(positions[best] + (0.5 * step * (above - below) / bend if bend else 0))


def _check_finite(*columns: np.ndarray) -> None:
    values = np.concatenate(columns)
    if not np.all(np.isfinite(values)):
        count = int(np.sum(~np.isfinite(values)))
        raise RunError(
            f"--ais: {count} of {len(values)} likelihoods are not finite: more --ais or "
            "--ais-chains?"
        )


def _with_error(name: str, values: np.ndarray) -> dict[str, float | None]:
    """The mean and, of two values or more, its standard error."""
    num = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(num) if num > 1 else None
    return {name: float(values.mean()), f"{name}_se": error}
