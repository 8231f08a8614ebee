"""Samples beside data, and copies among them: for families that are judged by both."""

from typing import Any

from jaxgen.evaluate import quality
from jaxgen.evaluate.diagnosis.records import Finding, Subject

# The least share of what real data get. Less than half of it is no matter of chance, nor
# of the features.
LEAST_SHARE = 0.5
FIGURES = ("precision", "recall", "density", "coverage")
MANIFOLDS = {
    "precision": "samples look like data",
    "coverage": "test examples have a sample near",
}


def judge(
    subject: Subject, *, unlike: str, uncovered: str, copied: str
) -> dict[str, Finding]:
    """Findings "samples" and "copies".

    Args:
        subject: The run.
        unlike: Flags where too few samples look like data.
        uncovered: Where too few test examples have a sample near.
        copied: Where samples repeat training examples.
    """
    told = quality.evaluate(
        subject.features,
        subject.dataset,
        subject.draw,
        subject.num,
        seed=subject.seed,
        progress=subject.progress,
    )
    figures: dict[str, Any] = {}
    for name in FIGURES:
        entry = told["quality"][name]
        figures |= {name: entry["value"], f"{name}_of_real_data": entry["floor"]}
    mends = {"precision": unlike, "coverage": uncovered}
    shown = _few(figures)
    wrong = [name for name in MANIFOLDS if name in shown]
    verdict = "; ".join(shown[name] for name in wrong)
    if not wrong:
        verdict = f"clean: precision {figures['precision']:.2f}, coverage "
        verdict += f"{figures['coverage']:.2f}"
    return {
        "samples": Finding(
            title="samples beside data",
            figures=figures,
            verdict=verdict,
            is_clean=not wrong,
            mend="; ".join(mends[name] for name in wrong) or None,
        ),
        "copies": _copies(told["memorisation"], copied),
    }


def _few(figures: dict[str, Any]) -> dict[str, str]:
    """What is less than half of that of real data, in words."""
    found = {}
    for name, words in MANIFOLDS.items():
        value, real = figures[name], figures[f"{name}_of_real_data"]
        if value < LEAST_SHARE * real:
            few = f"{100 * value:.0f} % of the {words}, of real data {100 * real:.0f} %"
            found[name] = few
    return found


def _copies(told: dict[str, Any], mend: str) -> Finding:
    names = ("copying_z", "authentic_share", "near_share")
    figures = {}
    for name in names:
        figures[name] = told[name]["value"]
        for control in ("held_out", "copy_cat"):
            figures[f"{name}_of_{control}"] = told[name][control]
    is_clean = told["verdict"].startswith("no copying")
    return Finding(
        title="copies of training examples",
        figures=figures,
        verdict=f"clean: {told['verdict']}" if is_clean else told["verdict"],
        is_clean=is_clean,
        mend=None if is_clean else mend,
    )
