"""Each oracle fails where the bug it is for is planted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import (
    annealing,
    averaging,
    estimators,
    likelihoods,
    probability_flow,
    samplers,
    schedules,
    verify,
)
from jaxgen.bijectors import linear, splines
from jaxgen.losses import diffusion, flow, gan, masked, meanflow, penalties, vae
from jaxgen.samplers import masked as masked_samplers
from jaxgen.samplers import steps
from jaxgen.verify import cases, records, solvers
from jaxgen.verify.flow import check
from jaxgen.verify.gan import OPTIMA

ORACLES = {f"{f}-{o.__name__}": o for f, os in verify.ORACLES.items() for o in os}


# Planted bugs: where, what is put there (made of what was), the oracle, its record


def of_results(change):
    """Puts `change` on what a function returns."""
    return lambda was: lambda *args, **knobs: change(was(*args, **knobs))


def of_arguments(change):
    """Puts `change` on the positional arguments of a function."""
    return lambda was: lambda *args, **knobs: was(*change(*args), **knobs)


def instead(function):
    return lambda was: function


def one(name):
    return lambda: check(cases.CASES[name])


def order_of(name):
    return lambda: verify.sampler(
        samplers.SAMPLERS[name], order=solvers.ORDERS.get(name)
    )


def schedule_of(name):
    return lambda: verify.schedule(schedules.SCHEDULES[name](), preserves_variance=True)


def game_of(name):
    """As far as what is known of it goes."""
    return lambda: verify.gan_loss(
        lambda real, fake: gan.GAMES[name](real, fake),
        optimum=OPTIMA.get(name),
    )


def weighted_sum(w):
    return jnp.sum(jax.nn.softmax(w, 0) * w, 0)


def by_probability(x, logits):
    return jnp.log(jnp.abs(1 - x - jax.nn.sigmoid(logits))).sum(1)


def unclipped_mean(mixture):
    return jnp.sum(jax.nn.softmax(mixture.logit_weights) * mixture.means, -1)


def by_sigmoid(real, fake):
    return gan.Payoff(-jnp.log(jax.nn.sigmoid(real) * jax.nn.sigmoid(-fake)), fake)


# fmt: off
PLANTED = [
    (vae, "iwae", instead(lambda w: jax.nn.logsumexp(w, 0)), "vae-exact_posterior", "IWAE-5 "),
    (vae, "normal_log_prob", of_results(lambda p: -p), "vae-exact_posterior", "IWAE-1 "),
    (vae, "dreg_iwae", instead(lambda f, z: f(z).sum(0)), "vae-exact_posterior", "DReG's bound"),
    (vae, "iwae", instead(weighted_sum), "vae-other_posterior", "IWAE-50 is below"),
    (vae, "negative_elbo", instead(lambda p, kl: kl * 0 - p), "vae-other_posterior", "ELBO is log"),
    (vae, "kl_standard_normal", of_results(lambda k: k / 3),
     "vae-divergences", "KL to N(0, I), nats"),
    (vae, "kl_standard_normal_per_dim", of_arguments(lambda mu, log_var: (mu, log_var / 2)),
     "vae-divergences", "KL to N(0, I), per coordinate"),
    (vae, "kl_normal", of_arguments(lambda a, b, c, d: (c, d, a, b)),
     "vae-divergences", "KL of two"),
    (vae, "reparameterised", of_arguments(lambda mu, log_var, eps: (mu, 2 * log_var, eps)),
     "vae-divergences", "variance of a"),
    (likelihoods, "bernoulli_log_prob", instead(by_probability),
     "vae-probabilities", "Bernoulli: log probability"),
    (likelihoods, "logistic_mixture_log_prob",
     of_arguments(lambda x, m: (np.clip(x, 1 / 255, 1), m)),
     "vae-probabilities", "logistic mixture: sum"),
    (likelihoods, "logistic_mixture_mean", instead(unclipped_mean),
     "vae-probabilities", "logistic mixture: mean"),
    (likelihoods, "gaussian_log_prob", of_results(lambda p: p + 0.9),
     "vae-probabilities", "normal dens"),
    (likelihoods, "optimal_log_sigma", of_results(lambda s: 2 * s),
     "vae-scales", "slope of the like"),
    (estimators, "bits_per_dim", of_results(lambda b: b * np.log(2)),
     "vae-scales", "bits/dim of uniform l"),
    (estimators, "add", of_arguments(lambda s, w: (s, w[:1])),
     "vae-importance", "importance sampling"),
    (estimators, "finish", of_results(lambda e: e._replace(standard_error=e.standard_error / 2)),
     "vae-importance", "standard error"),
    (annealing, "annealed_importance",
     of_results(lambda e: e._replace(log_likelihood=e.log_likelihood + 0.3)),
     "vae-annealed", "AIS is below"),
    (gan.GAMES, "minimax", of_arguments(lambda r, f: (f, r)), game_of("minimax"), "the best disc"),
    (gan.GAMES, "hinge", of_arguments(lambda r, f: (r - 1, f)), game_of("hinge"), "the best disc"),
    (gan.GAMES, "least_squares", of_arguments(lambda r, f: (jax.nn.sigmoid(r), jax.nn.sigmoid(f))),
     game_of("least_squares"), "slope at the best"),
    (gan.GAMES, "non_saturating", instead(by_sigmoid),
     game_of("non_saturating"), "values and gradients at logits of 1e4"),
    (gan.GAMES, "relativistic", of_arguments(lambda r, f: (r - r.mean(), f)),
     game_of("relativistic"), "examples are judged"),
    (gan.GAMES, "hinge", of_arguments(lambda r, f: (r + 3 * jax.lax.stop_gradient(f), f)),
     game_of("hinge"), "gradients are finite differences"),
    (gan, "wasserstein", of_arguments(lambda r, f: (f, r)), "gan-distances", "wasserstein"),
    (gan, "relativistic", of_results(lambda p: p._replace(generator=p[0])),
     "gan-distances", "relativistic: pl"),
    (gan, "relativistic", of_arguments(lambda r, f: (r, f / 2)),
     "gan-distances", "relativistic: bl"),
    (penalties, "logits_and_slopes", of_results(lambda both: (both[0], both[1] ** 2)),
     "gan-slopes", "R1 of a quadratic"),
    (penalties, "estimated_squared_slope", of_results(jnp.sqrt), "gan-slopes", "R1 by one step"),
    (penalties, "slope_deviation", of_results(lambda s: s ** 2), "gan-slopes", "gradient penalty"),
    (penalties, "spectral_norm", instead(lambda k, u, num_steps: (jnp.linalg.norm(k), u)),
     "gan-slopes", "spectral norm"),
    (penalties, "logits_and_slopes", of_results(lambda both: (both[0], 2 * both[1])),
     "gan-dirac", "Dirac-GAN's eigenvalues with R1 of 0.6, real"),
    (linear, "_log_det", of_results(lambda d: -d), one("actnorm"), "log-det to the latent"),
    (linear, "_log_det", of_results(lambda d: 0 * d), one("invertible_linear"), "log-det to data"),
    (splines, "invert", of_results(lambda p: (p[0], -p[1])),
     one("elementwise_rqs"), "log-det to data"),
    (splines, "invert", of_results(lambda p: (p[0] + 0.001, p[1])),
     one("elementwise_rqs"), "data come back"),
    (splines, "evaluate", of_results(lambda p: (p[0], p[1] / 2)),
     one("one_dimension"), "the density"),
    (flow, "standard_normal_nll", of_results(lambda nll: nll + 0.9),
     "flow-densities", "coupling of splines in the plane"),
    (flow, "reverse_kl", of_results(lambda k: k + 1), "flow-densities", "reverse KL"),
    (splines, "evaluate", of_results(lambda p: (p[0] + 0.01, p[1])),
     "flow-splines", "spline of zeros"),
    (flow, "dequantised", of_results(lambda x: x + 0.5 / 256),
     "flow-dequantisation", "dequantised val"),
    (flow, "dequantisation_bound", of_results(lambda b: b / 2), "flow-dequantisation", "bits/dim"),
    (schedules.Cosine, "log_snr", of_results(lambda l: -l), schedule_of("cosine"), "log_snr falls"),
    (schedules.Cosine, "alpha", of_results(jnp.square), schedule_of("cosine"), "alpha^2 + sigma^2"),
    (schedules.EDM, "inverse", of_results(lambda t: t + 1e-06), schedule_of("edm"), "inverse"),
    (schedules, "drift_and_diffusion", of_results(lambda p: (p[0], -p[1])),
     schedule_of("ve"), "squared"),
    (diffusion, "to_x0", of_results(lambda x: -x), "diffusion-targets", "target eps leads back"),
    (diffusion, "denoising_loss", of_results(lambda l: l / 2),
     "diffusion-targets", "simple loss of v "),
    (diffusion, "score_to_x0", of_results(lambda x: 2 * x), "diffusion-targets", "Tweedie"),
    (steps, "heun", instead(steps.euler), order_of("heun"), "observed order"),
    (steps, "multistep", instead(steps.euler), order_of("dpmpp_2m"), "observed order"),
    (steps, "noise", of_results(lambda n: 1.2 * n), order_of("ddpm"), "covariance"),
    (probability_flow, "_standard_normal", of_results(lambda p: p + 1),
     "diffusion-likelihoods", "ODE log-likelihood, nats, by the exact flow"),
    (diffusion, "variational_bound", of_results(lambda b: b._replace(diffusion=2 * b.diffusion)),
     "diffusion-bounds", "bound of Gaussian data"),
    (meanflow, "total_derivative", of_results(lambda p: (p[0], -p[1])),
     "diffusion-mean_flows", "MeanFlow's identity"),
    (masked, "bound_by_number", of_results(lambda b: b / 2),
     "masked-bounds", "by number, over all masks"),
    (masked, "bound_by_share", of_arguments(lambda nll, hidden, t: (nll, hidden, t**2)),
     "masked-bounds", "by share, over all masks"),
    (masked, "number_at", of_results(lambda n: 0 * n + 1), "masked-bounds", "its samples have"),
    (masked_samplers, "_drawn", of_arguments(lambda noise, logits, t: (noise, 2 * logits, t)),
     "masked-samples", "samples one by one"),
    (averaging, "width_to_gamma", of_results(lambda g: g + 1), "diffusion-averages", "exponents"),
]
# fmt: on
# Programs that take a while to compile.
SLOW = {"vae-annealed", "flow-densities", "diffusion-bounds", "diffusion-likelihoods"}
SLOW |= {"observed order", "covariance"}


@pytest.mark.parametrize(
    ("where", "name", "change", "oracle", "begins"),
    [
        pytest.param(
            *case,
            id=f"{case[1]}-{case[4]}",
            marks=[pytest.mark.slow] * bool(SLOW & set(case[3:])),
        )
        for case in PLANTED
    ],
)
def test_a_planted_bug_fails_its_oracle(
    where, name, change, oracle, begins, monkeypatch, plain_errors
):
    if isinstance(where, dict):
        monkeypatch.setitem(where, name, change(where[name]))
    else:
        monkeypatch.setattr(where, name, change(getattr(where, name)))
    jax.clear_caches()  # of programs with another bug, or none
    with records.exactly():
        found = ORACLES.get(oracle, oracle)()
    (record,) = (r for r in found if r.name.startswith(begins))
    assert not record.passed, verify.table(found)
