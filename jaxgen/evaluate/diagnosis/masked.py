"""The problems of a model of text: not learned, learned by heart, samples unlike data."""

from typing import Any

import numpy as np

from jaxgen.evaluate import baselines, likelihood
from jaxgen.evaluate.diagnosis import samples
from jaxgen.evaluate.diagnosis.records import Finding, Subject, Told

NUM = 256  # windows of each split
EFFORT = 16  # samples of a bound
# Bits a byte on test over those on training texts.
OVERFITTED = 1.25


def diagnose(subject: Subject) -> Told:
    """Looks at the bits a byte of both splits, samples beside data, and copies."""
    loaded, dataset = subject.loaded, subject.dataset
    told = [
        likelihood.evaluate_likelihood(
            loaded,
            source,
            num_samples=EFFORT,
            num_images=min(NUM, source.num_examples),
            seed=subject.seed,
        )
        for source in (dataset.test, dataset.train)
    ]
    counted = baselines.of_text(dataset.name, dataset.shape[0])
    test, train = (each["bits_per_dim"] for each in told)
    figures = {"kind": told[0]["bits_per_dim_kind"], **counted}
    found = {"fit": judge_fit(test, train, figures)}
    found |= samples.judge(
        subject,
        unlike="more --steps, or a larger --num-steps of the sampler",
        uncovered="more --steps, or --temperature 1",
        copied="fewer --steps or --patience 5, more data",
    )
    return Told(findings=found, made={"samples": subject.samples(subject.num)})


def judge_fit(test: float, train: float, beside: dict[str, Any]) -> Finding:
    """Bits a byte on test and on training texts.

    Args:
        test: On windows of the test split.
        train: On training windows.
        beside: Further figures, among them `five_gram_bits_per_byte`.
    """
    figures = {"test_bits_per_byte": test, "train_bits_per_byte": train, **beside}
    found: dict[str, Any] = {"title": "bits a byte", "figures": figures}
    five_gram = beside["five_gram_bits_per_byte"]
    if not np.isfinite(test) or test > five_gram:
        return Finding(
            verdict=f"{test:.2f} bits a byte, worse than the {five_gram:.2f} of a model that "
            "counts runs of five bytes: not learned yet",
            is_clean=False,
            mend="more --steps, a larger --width or --depth",
            **found,
        )
    if test > OVERFITTED * train:
        return Finding(
            verdict=f"{test:.2f} bits a byte on test texts, {train:.2f} on training texts: "
            "they are learned by heart",
            is_clean=False,
            mend="--patience 5, fewer --steps, a longer text",
            **found,
        )
    return Finding(
        verdict=f"clean: {test:.2f} bits a byte on test texts, {train:.2f} on training "
        f"texts, {five_gram:.2f} by counts",
        is_clean=True,
        **found,
    )
