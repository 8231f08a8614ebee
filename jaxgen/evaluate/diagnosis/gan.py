"""The problems of a GAN: a training that has collapsed, and what samples tell of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxgen.evaluate.diagnosis import samples
from jaxgen.evaluate.diagnosis.records import Finding, Subject, Told
from jaxgen.models.base import NUM_LINES
from jaxgen.train import health

FIGURES = {
    "diversity": "samples/diversity",
    "classes": "samples/classes",
    "right_of_pairs": "right/pair",
    "right_of_real": "right/real",
    "right_of_fake": "right/fake",
    "slope_at_real": "slope/real",
    "slope_at_fake": "slope/fake",
    "generator_loss": "loss/generator",
    "discriminator_loss": "loss/discriminator",
}


def diagnose(subject: Subject) -> Told:
    """Looks for a collapse in metrics.jsonl, and at samples beside data."""
    run = subject.loaded.run
    found = {
        "health": judge_health(
            subject.loaded.model.collapse,
            run.read_metrics(),
            len(health.rollbacks(run.path)),
        )
    }
    found |= samples.judge(
        subject,
        unlike="more --steps, or a larger --width",
        uncovered="a larger --gamma, --augment 0.3, or --on-collapse rollback",
        copied="--augment 0.3, more data, or a smaller --width",
    )
    return Told(findings=found, made={"samples": subject.samples(subject.num)})


def judge_health(
    collapse: Any, records: Sequence[Mapping[str, Any]], num_rollbacks: int
) -> Finding:
    """Whether the last lines of metrics.jsonl tell of a collapse.

    Args:
        collapse: `Model.collapse`.
        records: Lines of metrics.jsonl.
        num_rollbacks: How often the run went back.
    """
    last = records[-NUM_LINES:]
    now = last[-1] if last else {}
    figures: dict[str, Any] = {name: now.get(key) for name, key in FIGURES.items()}
    missing = {
        n: "not in metrics.jsonl of this run" for n, v in figures.items() if v is None
    }
    figures["collapsed_lines"] = sum(health.NAME in record for record in records)
    figures["rollbacks"] = num_rollbacks
    found = {
        "title": "health of the training",
        "figures": figures,
        "missing": missing,
    }
    if len(last) < NUM_LINES:
        told = (
            f"cannot be told: metrics.jsonl has {len(last)} lines, it takes {NUM_LINES}"
        )
        return Finding(verdict=told, is_clean=None, **found)
    if (evidence := collapse(last)) is not None:
        mend = "--on-collapse rollback, a larger --gamma, a lower --learning-rate"
        return Finding(verdict=evidence, is_clean=False, mend=mend, **found)
    told = "clean: neither samples nor players tell of a collapse at the end"
    if figures["collapsed_lines"]:
        told += f", though {figures['collapsed_lines']} earlier lines do"
    return Finding(verdict=told, is_clean=True, **found)
