"""The judgement of a run: its likelihood told, evaluation.json and report written."""

import dataclasses
import json
import time
from typing import Any

from jaxgen import data
from jaxgen.evaluate import annealed, calibration, formats, likelihood, report
from jaxgen.train import medium, rundir, session
from jaxgen.train.console import say

QUICK_SAMPLES = 16  # effort of the likelihood that ends a training run
QUICK_IMAGES = 2000  # of the test split at most, then


def judge(
    loaded: session.Loaded,
    dataset: data.Dataset,
    num_samples: int = QUICK_SAMPLES,
    **options: Any,
) -> dict[str, Any]:
    """Evaluates on the test split and tells the result in a line."""
    best = {} if loaded.best_step is None else {"best_step": loaded.best_step}
    if loaded.model.log_likelihood is None:
        return {"step": loaded.step, **best}
    options |= {"num_samples": num_samples, "progress": progress()}
    result = likelihood.evaluate_likelihood(loaded, dataset.test, **options) | best
    if (sampling := getattr(loaded.config.model, "sampling", None)) is not None:
        result["sampling"] = dataclasses.asdict(sampling)
    if dataset.columns is not None:
        seed = options.get("seed", 0)
        result |= calibration.evaluate_calibration(loaded, dataset.test, seed=seed)
    say(_told(loaded, result))
    return result


def anneal(
    loaded: session.Loaded,
    dataset: data.Dataset,
    effort: tuple[int, int, int],
    num_samples: int,
    seed: int,
) -> dict[str, Any]:
    """Annealed importance sampling of so much effort, told in a line."""
    result = annealed.evaluate_annealed(
        loaded,
        dataset,
        annealed.Annealing(*effort),
        num_samples=num_samples,
        seed=seed,
        progress=progress(),
    )
    nll, gap = (
        formats.with_error(result, f"ais_{n}") for n in ("nll_nats", "gap_nats")
    )
    words = f"annealed: {nll or result['ais_nll_nats']} nats ({result['ais_nll_nats_kind']}, "
    words += f"{effort[2]:,} test images); between its bounds on simulated images: "
    say(f"{words}{gap or result['ais_gap_nats']} nats".replace("±", "+-"))
    return result


def _told(loaded: session.Loaded, result: dict[str, Any]) -> str:
    error = result["nll_nats_se"]
    words = f"test: {result['nll_nats']:.3f}"
    words += " nats" if error is None else f" +- {error:.3f} nats"
    if "bits_per_dim" in result:
        words += f", {result['bits_per_dim']:.3f} bits/dim"
    words += f" ({result['nll_nats_kind']}, {result['num_examples']:,} "
    words += medium.of(loaded.config.model).unit
    if result["nll_nats_kind"] != "exact":
        words += f", {result['num_samples']} samples"
    words += ")"
    if "bayes_accuracy" in result:
        words += (
            f", {100 * result['bayes_accuracy']:.1f} % of the classes by Bayes' rule"
        )
    if "coverage_80" in result:
        words += f"; its 80 % regions hold {100 * result['coverage_80']:.1f} % of them"
    return words


def write(
    loaded: session.Loaded, dataset: data.Dataset, result: dict[str, Any]
) -> None:
    """Writes evaluation.json and, last, the report."""
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    rundir.write_text(loaded.run.evaluation, text)
    report.write_report(loaded, dataset)


def is_judged(run: rundir.RunFolder, step: int) -> bool:
    """Whether evaluation and report are there and of this step."""
    try:
        judged = json.loads(run.evaluation.read_text())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return judged == step and run.report.is_file()


def progress() -> Any:
    """A callback for long evaluations: a line every ten seconds at most."""
    last = began = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 10.0:
            last = now
            say(
                f"evaluated {done:,}/{total:,}, {(now - began) / done * (total - done):.0f} s left"
            )

    return tell
