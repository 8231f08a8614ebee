"""The four problems of a VAE, from what it makes of test examples.

Each is judged by figures whose limits are the constants here, with their reasons. All
figures are of held-out data.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxgen._checks import RunError
from jaxgen.evaluate import distances, features, two_sample
from jaxgen.evaluate.diagnosis import posteriors, variance
from jaxgen.evaluate.diagnosis.records import Finding, Subject, mean_and_error
from jaxgen.models import vae
from jaxgen.train.console import say

# Of the effective beta, either way. A sigma that is wrong by a factor of two costs 0.3 to
# 0.8 nats for each number of an example; the error on held-out data is never quite sigma.
IMBALANCE = 4.0
USED = 0.5  # the least share of latent variables that are; fewer are called a collapse
# Accuracy by which Q(z) and P(z) are told apart: at 3/4 half of the draws of one are of
# kinds that the other has not (a total variation of 2 x 3/4 - 1); and by chance.
TOLD_APART, BY_CHANCE = 0.75, 0.01
KEPT = 0.8  # the least share of the data's variance that reconstructions keep
OF_UNITS = (
    "active_units",
    "units",
    "kl_by_unit",
    "variance_law",
    "mean_sigma_squared",
    "mutual_information_nats",
    "mutual_information_ceiling_nats",
    "marginal_kl_nats",
)
NO_Q = "a plain autoencoder has no Q(z given x)"
NOT_NORMAL = "P(z) is learned, not N(0, I)"
NOT_GAUSSIAN = "its likelihood has no sigma"


class Seen(NamedTuple):
    """Of each of N test examples, examples and samples as they are stored.

    Attributes:
        mu: Mean of Q(z given x), `[N, L]`.
        log_var: Its log variance.
        z: A draw of it.
        distortion: -log p(x given z) of that draw, `[N]` nats.
        rate: KL(Q(z given x) || P(z)), `[N]` nats; of a learned prior one draw of it.
        kl: Against N(0, I), variable by variable, `[N, L]` nats.
        squared_error: Of the mean of p(x given z), a number of the data inside, `[N]`.
        rebuilt: That mean, `[N, ...]`.
        of_data: What is generated of z.
        prior: Draws of P(z), `[N, L]`, of no example.
        of_prior: What is generated of them.
    """

    mu: np.ndarray
    log_var: np.ndarray
    z: np.ndarray
    distortion: np.ndarray
    rate: np.ndarray
    kl: np.ndarray
    squared_error: np.ndarray
    rebuilt: np.ndarray
    of_data: np.ndarray
    prior: np.ndarray
    of_prior: np.ndarray


class Sigma(NamedTuple):
    """Of a Gaussian decoder; None where there is none."""

    used: float | None
    calibrated: float | None  # the root of the mean squared error
    effective_beta: float  # of the calibrated decoder that has the same trade-off


def weighing(subject: Subject, seen: Seen) -> Sigma:
    """An error weighed by 1 / 2 s^2 against beta KL has the beta (s / sigma)^2 beta.

    GECO weighs it by its multiplier.
    """
    config = subject.loaded.config.model
    if config.likelihood != "gaussian":
        return Sigma(None, None, config.beta)
    used = float(np.exp(subject.loaded.params["vae"]["log_sigma"]))
    calibrated = math.sqrt(float(seen.squared_error.mean()))
    trained, beta = used, config.beta
    if config.geco is not None:
        records = subject.loaded.run.read_metrics()
        told = [r["multiplier"] for r in records if r.get("multiplier")]
        trained = math.sqrt(0.5 / told[-1]) if told else config.geco
    return Sigma(used, calibrated, beta * (trained / calibrated) ** 2)


def balance(subject: Subject, seen: Seen, sigma: Sigma) -> Finding:
    """Is the likelihood weighed against the KL as the error asks?"""
    config = subject.loaded.config.model
    figures: dict[str, Any] = {
        **mean_and_error("rate_nats", seen.rate),
        **mean_and_error("distortion_nats", seen.distortion),
        **mean_and_error("elbo_nats", -seen.rate - seen.distortion),
        "beta": config.beta,
        "effective_beta": sigma.effective_beta,
        "sigma": sigma.used,
        "calibrated_sigma": sigma.calibrated,
        "calibration_gain_nats": None,
    }
    missing: dict[str, str] = {}
    gaussian = ("sigma", "calibrated_sigma", "calibration_gain_nats")
    if sigma.used is None or sigma.calibrated is None:
        missing |= dict.fromkeys(gaussian, NOT_GAUSSIAN)
    else:
        r = sigma.calibrated / sigma.used
        gain = 0.5 * (r**2 - 1) - math.log(r)
        figures["calibration_gain_nats"] = math.prod(config.shape) * gain
    verdict = {"title": "balance of likelihood and KL", "missing": missing}
    if config.autoencoder:
        for name in ("rate_nats", "elbo_nats", "beta", "effective_beta"):
            figures |= {n: None for n in (name, f"{name}_se") if n in figures}
            missing[name] = NO_Q
        told = "a plain autoencoder pays no KL: there is nothing to balance"
        return Finding(figures=figures, verdict=told, is_clean=None, **verdict)
    beta = sigma.effective_beta
    if 1 / IMBALANCE <= beta <= IMBALANCE:
        told = f"clean: the KL counts {beta:.2g} times as much as the error asks"
        return Finding(figures=figures, verdict=told, is_clean=True, **verdict)
    told = f"the KL counts {beta:.2g} times as much as the error asks"
    if 0 < beta < 1:
        told = f"the likelihood counts {1 / beta:.2g} times as much as the error asks"
    if sigma.used is not None:
        told += f": sigma is {sigma.used:.3g}, the error {sigma.calibrated:.3g}"
    if config.beta != 1:
        told += f", beta {config.beta:g}"
    return Finding(
        figures=figures,
        verdict=told,
        is_clean=False,
        mend=_balancing(config, sigma),
        **verdict,
    )


def _balancing(config: vae.VAEConfig, sigma: Sigma) -> str:
    """The flag that brings the effective beta nearer to 1."""
    by_sigma = sigma.effective_beta / config.beta if config.beta else 1.0
    if config.geco is not None:
        return "another --geco, or --sigma computed without it"
    if not 1 / IMBALANCE <= by_sigma <= IMBALANCE:
        if config.sigma == "fixed":
            return "--sigma computed, optimal or learned"
        return (
            "--patience 5: the error on training data, which sigma follows, is another"
        )
    return "--beta 1"


def collapse(subject: Subject, seen: Seen, sigma: Sigma) -> Finding:
    """How many latent variables tell the decoder anything?"""
    config, title = subject.loaded.config.model, "collapse of latent variables"
    figures: dict[str, Any] = dict.fromkeys(OF_UNITS)
    if config.autoencoder:
        missing: dict[str, str] = dict.fromkeys(OF_UNITS, NO_Q)
        told = "cannot be told: a plain autoencoder's variables have no scale"
        return Finding(
            title=title, figures=figures, verdict=told, is_clean=None, missing=missing
        )
    missing, units = {}, config.latent_dim
    num_active = int(posteriors.active(seen.mu).sum())
    told = posteriors.mutual_information(seen.z, seen.mu, seen.log_var)
    figures |= {"active_units": num_active, "units": units}
    figures["mean_sigma_squared"] = np.exp(seen.log_var).mean(axis=0)
    figures["mutual_information_nats"] = told.nats
    figures["mutual_information_ceiling_nats"] = told.ceiling
    if told.nats < told.ceiling - 1:
        figures["marginal_kl_nats"] = float(seen.rate.mean()) - told.nats
    else:
        missing["marginal_kl_nats"] = (
            f"the information is at its ceiling, log {subject.num}: more examples"
        )
    if config.prior == "normal":
        figures["kl_by_unit"] = seen.kl.mean(axis=0)
        figures["variance_law"] = posteriors.variance_law(seen.mu, seen.log_var)
    else:
        missing |= dict.fromkeys(("kl_by_unit", "variance_law"), NOT_NORMAL)
    found = {"title": title, "figures": figures, "missing": missing}
    if num_active >= USED * units:
        verdict = f"clean: {num_active} of {units} latent variables are used"
        return Finding(verdict=verdict, is_clean=True, **found)
    verdict = f"{units - num_active} of {units} latent variables are unused"
    if num_active == 0:
        verdict = f"all {units} latent variables have collapsed: z tells nothing of x"
    mend = "--free-bits 0.1, or a smaller --latent-dim, which loses nothing here"
    if sigma.effective_beta > IMBALANCE:
        mend = _balancing(config, sigma)
    return Finding(verdict=verdict, is_clean=False, mend=mend, **found)


def prior_mismatch(subject: Subject, seen: Seen) -> Finding:
    """Can draws of Q(z), the encodings of test data, be told from those of P(z)?

    In z, where a classifier sees little of many variables, and in what is generated of
    both, where it sees what matters.
    """
    z, prior, seed = seen.z, seen.prior, subject.seed
    real, of_data, of_prior = (
        _features(subject, x) for x in (subject.test["x"], seen.of_data, seen.of_prior)
    )
    tests = {
        "c2st": two_sample.c2st(z, prior, seed=seed),
        "c2st_logistic": two_sample.c2st(z, prior, seed=seed, method="logistic"),
        "decoded_c2st": two_sample.c2st(of_data, of_prior, seed=seed),
    }
    if len(real) <= real.shape[1]:
        say(f"{subject.features.id}: {distances.few_samples(*real.shape)}")
    mmd = distances.rbf_mmd(z, prior)
    figures: dict[str, Any] = {
        "mean_by_unit": z.mean(axis=0),
        "variance_by_unit": z.var(axis=0),
        "squared_norm": float(np.mean(np.sum(z**2, axis=1))),
        "squared_norm_of_prior": float(np.mean(np.sum(prior**2, axis=1))),
        "mmd": mmd.value,
        "mmd_se": mmd.standard_error,
        "total_correlation_nats": None,
        "total_correlation_of_prior_nats": None,
    }
    for name, told in tests.items():
        figures |= {f"{name}_accuracy": told.accuracy, f"{name}_p_value": told.p_value}
    for name, x in {"of_data": of_data, "of_prior": of_prior}.items():
        kernel = distances.kernel_distance(real, x)
        figures[f"frechet_{name}"] = distances.frechet(real, x)
        figures[f"kernel_{name}"] = kernel.value
        figures[f"kernel_{name}_se"] = kernel.standard_error
    for name in ("frechet", "kernel"):
        gap = figures[f"{name}_of_prior"] - figures[f"{name}_of_data"]
        figures[f"{name}_gap"] = gap
    missing = {}
    for name, draws in {"": z, "of_prior_": prior}.items():
        if len(draws) > draws.shape[1]:
            told = posteriors.total_correlation(draws)
            figures[f"total_correlation_{name}nats"] = told
        else:
            why = f"it needs more examples than latent variables, {z.shape[1]}"
            missing[f"total_correlation_{name}nats"] = why
    found = {
        "title": "mismatch of Q(z) and P(z)",
        "figures": figures,
        "missing": missing,
    }
    return _told_apart(subject.loaded.config.model, tests, found)


def _told_apart(
    config: vae.VAEConfig, tests: dict[str, two_sample.Told], found: Any
) -> Finding:
    """The verdict on the best of the classifiers."""
    best = max(tests.values(), key=lambda told: told.accuracy)
    told = f"{100 * best.accuracy:.0f} % of Q(z) and P(z) are told apart"
    if best is tests["decoded_c2st"]:
        told = (
            f"{100 * best.accuracy:.0f} % of what Q(z) and P(z) decode to is told apart"
        )
    if best.accuracy <= TOLD_APART or best.p_value > BY_CHANCE:
        verdict = f"clean: no more than {told}, of which 50 % is chance"
        return Finding(verdict=verdict, is_clean=True, **found)
    mend = "--ex-post gmm or --prior-run when sampling; --prior vamp when training"
    if config.sampling.ex_post != "none" or config.sampling.prior_run is not None:
        mend = "more --components, or a flow of --data latents:RUN by --prior-run"
    return Finding(verdict=told, is_clean=False, mend=mend, **found)


def variance_loss(subject: Subject, seen: Seen) -> Finding:
    """Do reconstructions and samples vary as data do, and at every frequency?"""
    values = features.pixels(subject.dataset.columns).apply
    x, rebuilt, made = (
        values(a) for a in (subject.test["x"], seen.rebuilt, seen.of_prior)
    )
    told = variance.variance_loss(x, rebuilt)
    by_number = told.by_number[np.isfinite(told.by_number)]
    figures: dict[str, Any] = {
        "ratio": told.ratio,
        "expected_ratio": told.expected,
        "ratio_of_samples": variance.ratio(x, made),
        "ratio_by_number_quartiles": np.quantile(by_number, (0.25, 0.5, 0.75)),
        "fine_ratio": None,
        "fine_ratio_of_samples": None,
        "spectrum": None,
    }
    missing = {}
    if subject.dataset.columns is None:
        shape = (-1, *subject.dataset.shape)
        names = ("data", "reconstructions", "samples")
        spectra = [variance.spectrum(a.reshape(shape)) for a in (x, rebuilt, made)]
        figures["fine_ratio"] = variance.fine_ratio(*spectra[:2])
        figures["fine_ratio_of_samples"] = variance.fine_ratio(*spectra[::2])
        figures["spectrum"] = {"frequency": spectra[0].frequency}
        figures["spectrum"] |= {n: s.power for n, s in zip(names, spectra, strict=True)}
        fine = ("fine_ratio", "fine_ratio_of_samples")
        missing = {
            n: "data have no power at fine frequencies"
            for n in fine
            if figures[n] is None
        }
    else:
        names = ("fine_ratio", "fine_ratio_of_samples", "spectrum")
        missing = dict.fromkeys(names, "rows of a table have no frequencies")
    found = {"title": "loss of variance", "figures": figures, "missing": missing}
    verdict = f"reconstructions keep {100 * told.ratio:.0f} % of the variance of data"
    if told.ratio >= KEPT:
        return Finding(verdict=f"clean: {verdict}", is_clean=True, **found)
    return Finding(
        verdict=f"{verdict}: they are blurred",
        is_clean=False,
        mend=_sharpening(subject.loaded.config.model),
        **found,
    )


def _sharpening(config: vae.VAEConfig) -> str:
    """What makes reconstructions of a decoder vary more."""
    more = "a larger --latent-dim or network, more --steps"
    if config.likelihood == "gaussian" and config.sigma == "fixed":
        return f"--sigma computed; {more}"
    return more if config.beta <= 1 else f"--beta 1; {more}"


def _features(subject: Subject, x: np.ndarray) -> np.ndarray:
    made = subject.features.apply(x)
    if not np.all(np.isfinite(made)):
        raise RunError(f"diagnose: features by {subject.features.id} are not finite")
    return made
