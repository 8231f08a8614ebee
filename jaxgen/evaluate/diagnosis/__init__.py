"""What is wrong with a trained run, and which flag mends it.

Each family has problems of its own: they are looked for by its own function, under its
name in `DIAGNOSES`. All that is common, the data, the samples, the verdict, the file, is
here and in `command`, and knows no family.

```
vae         balance of likelihood and KL, collapse, mismatch of Q(z) and P(z), variance
gan         health of the training, samples beside data, copies
flow        the way there and back, the log-determinant, the latents of test data
diffusion   error by level of noise, samples beside data, copies
masked      bits a byte of test and training texts, samples beside data, copies
```
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxgen import data
from jaxgen._checks import UserError
from jaxgen.evaluate import features, quality
from jaxgen.evaluate.diagnosis import diffusion, flow, gan, masked, picture, vae
from jaxgen.evaluate.diagnosis.records import Subject, Told
from jaxgen.train import assembly, medium, session
from jaxgen.train.session import Loaded

DIAGNOSES: Mapping[str, Callable[[Subject], Told]] = MappingProxyType(
    {
        "diffusion": diffusion.diagnose,
        "flow": flow.diagnose,
        "gan": gan.diagnose,
        "masked": masked.diagnose,
        "vae": vae.diagnose,
    }
)


class Diagnosis(NamedTuple):
    """What diagnosis.json has, and the picture beside it, if there is one."""

    result: dict[str, Any]
    picture: bytes | None


def diagnose(
    loaded: Loaded,
    dataset: data.Dataset,
    *,
    num: int = 2000,
    by: str = "auto",
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Diagnosis:
    """Looks for every problem of the run's family on test examples.

    Args:
        loaded: The run.
        dataset: Its data.
        num: Test examples and samples, or as many as there are test examples.
        by: The features that samples are compared by, as `jaxgen evaluate` has them.
        seed: Of all that is drawn.
        progress: Called with (samples drawn, samples in all).

    Raises:
        UserError: if there are fewer than 20 test or training examples, or all are alike.
        RunError: if the model gives what is not finite.
    """
    num = min(num, dataset.test.num_examples, dataset.train.num_examples)
    if num < quality.LEAST:
        raise UserError(
            f"diagnose needs at least {quality.LEAST} test and training examples, there "
            f"are {num}"
        )
    test = quality.taken(dataset.test, num, seed)
    if np.all(test["x"] == test["x"][:1]):
        raise UserError(f"{dataset.name}: all {num} test examples are alike")
    session.refuse_task(loaded.config, "jaxgen diagnose")
    chosen = features.choose(by, dataset)
    sampler = assembly.Sampler(loaded)
    subject = Subject(
        loaded=loaded,
        dataset=dataset,
        test=test,
        features=chosen,
        draw=functools.cache(lambda start: sampler(loaded.params, seed, start)),
        seed=seed,
        progress=progress,
    )
    told = DIAGNOSES[loaded.config.family](subject)
    result: dict[str, Any] = {
        "family": loaded.config.family,
        "step": loaded.step,
        "verdict": verdict(told),
        "num_examples": num,
        "examples": medium.of(loaded.config.model).unit,
        "seed": seed,
        "features": chosen.id,
        "features_sha256": chosen.sha256,
        "preprocessing": chosen.preprocessing,
    }
    if (sampling := getattr(loaded.config.model, "sampling", None)) is not None:
        result["sampling"] = dataclasses.asdict(sampling)
    result["problems"] = {n: found.to_dict() for n, found in told.findings.items()}
    return Diagnosis(result, picture.draw(subject, told.made))


def verdict(told: Told) -> str:
    """One line: which problems there are, and which could not be looked for."""
    names = {True: [], False: [], None: []}
    for name, found in told.findings.items():
        names[found.is_clean].append(name)
    parts = [f"problems: {', '.join(names[False])}"] if names[False] else ["clean"]
    if names[None]:
        parts.append(f"not told: {', '.join(names[None])}")
    return "; ".join(parts)
