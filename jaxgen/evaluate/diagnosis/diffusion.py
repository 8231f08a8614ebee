"""The problems of a diffusion model: levels of noise not learned, and memorisation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data
from jaxgen._checks import RunError
from jaxgen.evaluate import quality
from jaxgen.evaluate.diagnosis import samples
from jaxgen.evaluate.diagnosis.records import Finding, Subject, Told

NUM = 256  # examples of each split, by which levels are judged
# Of the error of the best linear denoiser, which knows the data's variance alone.
UNLEARNED = 1.05
# Error on test over that on training examples. They differ by chance in per cents; a
# network that has learned the examples themselves is off by far more on others.
OVERFITTED = 1.25


def diagnose(subject: Subject) -> Told:
    """Looks at the error by level of noise, samples beside data, and copies.

    Raises:
        RunError: if an error is not finite.
    """
    found = {"levels": judge_levels(*_errors(subject))}
    found |= samples.judge(
        subject,
        unlike="more --steps, or a larger --num-steps of the sampler",
        uncovered="more --steps, or a smaller --guidance",
        copied="fewer --steps or --patience 5, more data",
    )
    return Told(findings=found, made={"samples": subject.samples(subject.num)})


def judge_levels(
    sigma: np.ndarray, linear: np.ndarray, test: np.ndarray, train: np.ndarray
) -> Finding:
    """Errors of the estimate of x_0 at levels of noise sigma, `[P]` each.

    Args:
        sigma: sigma / alpha.
        linear: Of the best linear denoiser, RMS over the data's deviation.
        test: The network's, on test examples.
        train: On training examples.
    """
    excess, gap = test / linear, test / train
    figures: dict[str, Any] = {
        "sigma": sigma,
        "error": test,
        "error_on_training_data": train,
        "error_of_best_linear": linear,
        "largest_excess": float(excess.max()),
        "largest_gap": float(gap.max()),
    }
    found = {"title": "error by level of noise", "figures": figures}
    bad = sigma[excess > UNLEARNED]
    if len(bad):
        return Finding(
            verdict=f"worse than a linear denoiser from sigma {bad.min():.3g} to "
            f"{bad.max():.3g}: these levels are not learned",
            is_clean=False,
            mend="--noise-levels log_uniform, more --steps",
            **found,
        )
    if gap.max() > OVERFITTED:
        return Finding(
            verdict=f"the error on test data is {gap.max():.2g} times that on training "
            f"data, at sigma {sigma[gap.argmax()]:.3g}: examples are learned by heart",
            is_clean=False,
            mend="--patience 5, fewer --steps, more data",
            **found,
        )
    told = (
        f"clean: at every level below a linear denoiser, and within {gap.max():.2f} of "
    )
    told += "the error on training data"
    return Finding(verdict=told, is_clean=True, **found)


def _errors(subject: Subject) -> tuple[np.ndarray, ...]:
    """By the figure that the model has for its report, on both splits."""
    loaded, (curve, *_) = subject.loaded, subject.loaded.model.curves
    transform: Any = loaded.config.data.transform

    @jax.jit
    def lines(params: Any, raw: Any) -> Any:
        x = data.prepare(raw, jax.random.key(subject.seed), transform=transform)["x"]
        return curve.lines(params, x)

    num = min(NUM, subject.num)
    told = []
    for source in (subject.dataset.test, subject.dataset.train):
        x = jnp.asarray(quality.taken(source, num, subject.seed)["x"])
        sigma, values = lines(loaded.params, {"x": x})
        shown = (sigma, values["best linear"], values["network"])
        told.append([np.asarray(a, np.float64) for a in shown])
    (sigma, linear, test), (_, _, train) = told
    if not np.all(np.isfinite([test, train])):
        raise RunError(
            "diagnose: the error of the denoiser is not finite at some level"
        )
    return sigma, linear, test, train
