"""The judgement of a run: its likelihood told, evaluation.json and report written."""

import dataclasses
import functools
import json
import time
from typing import Any

import numpy as np

from jaxgen import data
from jaxgen._checks import UserError, check_seed
from jaxgen.evaluate import (
    annealed,
    asked,
    baselines,
    calibration,
    classifier,
    features,
    formats,
    likelihood,
    quality,
    report,
    tables,
)
from jaxgen.train import (
    assembly,
    cascade,
    expost,
    latents,
    medium,
    pictures,
    rundir,
    session,
)
from jaxgen.train.console import say

QUICK_SAMPLES = 16  # effort of the likelihood that ends a training run
QUICK_IMAGES = 2000  # of the test split at most, then


def opened(options: Any, sampling: Any) -> tuple[session.Loaded, data.Dataset]:
    """The run that a command is to judge, and its data; notes on both are told.

    Args:
        options: Of the command: `run`, `seed`, `data_dir`, `ema_width`.
        sampling: The model's options under this name, chosen anew.

    Raises:
        UserError: if one of them fits nothing, or the data are of another shape.
    """
    check_seed(options.seed)
    loaded = expost.load(options.run, sampling, ema_width=options.ema_width)
    config = loaded.config.data
    if options.data_dir is not None:
        config = dataclasses.replace(config, data_dir=options.data_dir)
    latents.ensure(config)
    dataset = data.open_dataset(config)
    if tuple(dataset.shape) != tuple(loaded.config.model.shape):
        raise UserError(
            f"the run was trained on examples {loaded.config.model.shape}, these are "
            f"{dataset.shape}"
        )
    other = loaded.run.check_data(session.data_identity(dataset))
    for note in (*loaded.notes, *dataset.notes, *([other] if other else [])):
        say(note)
    return loaded, dataset


def judge(
    loaded: session.Loaded,
    dataset: data.Dataset,
    num_samples: int = QUICK_SAMPLES,
    **options: Any,
) -> dict[str, Any]:
    """Evaluates the likelihood on the test split and tells the result in a line.

    Where the family has none it is None. The quality of samples is not in it, since a
    training run ends with this, and drawing some thousand samples may take minutes.
    """
    known: dict[str, Any] = {}
    if loaded.best_step is not None:
        known["best_step"] = loaded.best_step
    if (sampling := getattr(loaded.config.model, "sampling", None)) is not None:
        known["sampling"] = dataclasses.asdict(sampling)
    if loaded.model.log_likelihood is None:
        return {"nll_nats": None, "bits_per_dim": None, "step": loaded.step, **known}
    options |= {"num_samples": num_samples, "progress": progress()}
    result = likelihood.evaluate_likelihood(loaded, dataset.test, **options) | known
    if dataset.columns is not None:
        seed = options.get("seed", 0)
        result |= calibration.evaluate_calibration(loaded, dataset.test, seed=seed)
    say(_told(loaded, result))
    return result


def judge_wholly(
    loaded: session.Loaded, dataset: data.Dataset, options: Any
) -> dict[str, Any]:
    """Likelihood and quality of samples; with `--judge` also what a classifier sees.

    Args:
        loaded: The run.
        dataset: Its data.
        options: Of `jaxgen evaluate`.
    """
    # First, since they may refuse the data, or a base.
    judged = dataset.parts or dataset
    trained = classifier.make_classifier(judged) if options.judge else None
    by = features.choose(options.features, dataset) if options.num else None
    sampler = _sampler(loaded, dataset, options)
    seed, num_images = options.seed, options.num_images
    result = judge(
        loaded, dataset, options.num_samples, num_images=num_images, seed=seed
    )
    if options.ais:
        effort = options.ais, options.ais_chains, options.ais_images
        result |= anneal(loaded, dataset, effort, options.num_samples, seed)
    if options.answers and loaded.config.data.task is not None:
        told = progress()
        result |= asked.evaluate(
            loaded, dataset, options.answers, seed=seed, progress=told
        )
    if dataset.kind == "texts":
        result |= baselines.of_text(dataset.name, dataset.shape[0])
    if options.ema_width is not None:
        result["ema_width"] = options.ema_width
    if options.base is not None:
        result["base"] = str(options.base)
    # Kept: what is judged is among the samples whose quality is measured.
    draw = functools.cache(lambda start: sampler(loaded.params, seed, start))
    if by is not None:
        told = progress()
        result |= quality.evaluate(
            by, dataset, draw, options.num, seed=seed, progress=told
        )
        if dataset.kind == "images" and "memorisation" in result:
            pairs = result["memorisation"]["nearest_pairs"]
            _write_pairs(loaded, dataset.train, draw, sampler.num, pairs)
    if trained is not None:
        num, told = options.judge, progress()
        if dataset.parts is None:
            seen = classifier.judge(trained, draw, dataset.test, num, progress=told)
        else:
            seen = classifier.judge_stacked(trained, draw, judged, num, progress=told)
        result |= seen
    return result


def _sampler(
    loaded: session.Loaded, dataset: data.Dataset, options: Any
) -> assembly.Sampler | cascade.Cascade:
    if options.base is None:
        return assembly.Sampler(loaded, dataset.test)
    return cascade.Cascade(expost.load(options.base), loaded, level=options.noise)


def _write_pairs(
    loaded: session.Loaded, train: data.Source, draw: Any, num_at_once: int, pairs: Any
) -> None:
    """A picture of samples, each above the training image that is nearest to it."""
    held = train.take(np.array([pair["train"] for pair in pairs]))["x"]
    shown = []
    for pair, image in zip(pairs, held, strict=True):
        start, place = divmod(pair["sample"], num_at_once)
        shown.append(np.concatenate([draw(start * num_at_once)[place], image]))
    picture = pictures.png(pictures.grid(np.stack(shown)), min_side=256)
    rundir.write_bytes(loaded.run.path / tables.PAIRS, picture)


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
        unit = medium.of(loaded.config.model).bits
        words += f", {result['bits_per_dim']:.3f} {unit}"
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
