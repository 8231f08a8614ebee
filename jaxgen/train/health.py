"""Whether a training has collapsed: what samples look like while it goes on.

For models that say what a collapse is (`Model.collapse`). At every log interval the fixed
latents' samples are drawn from the parameters of the moment, and compared with data:

samples/diversity  variance of the samples, summed over an example's numbers, as a share
                   of that of the data
samples/classes    where there are labels, distinct classes of the samples' nearest
                   training examples, over those of as many test examples
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen import data
from jaxgen._checks import RunError, UserError
from jaxgen.models.base import NUM_LINES
from jaxgen.train import processes, rundir
from jaxgen.train.console import say
from jaxgen.train.session import bind

GROUP = "samples"  # what the figures of samples begin with
NAME = "collapse"  # in metrics.jsonl, where a training has collapsed: the evidence
NUM_REFERENCES = 5000  # training examples, at most
NUM_TEST = 1000
NUMBERS = 2**27  # in memory, of all training examples that are looked at
FROM = 0.1  # of the run: before it nothing is called a collapse
MOST_ROLLBACKS = 3


class CollapseError(RunError):
    """A training that has collapsed, and is not to go on."""


class Collapse(NamedTuple):
    """What was seen of one: the step, the last one before it, and what tells of it."""

    step: int
    healthy: int
    evidence: str


class Watch:
    """Looks after the runs that one program trains.

    Args:
        runs: As `jaxgen.train.keeping.Run`.
        dataset: Whose training and test examples samples are compared with.
    """

    def __init__(self, runs: Sequence[Any], dataset: data.Dataset):
        self._session, self._train = runs[0].session, runs[0].session.config.train
        self._judge: Any = self._session.model.collapse
        self._records = [run.folder.read_metrics()[-NUM_LINES - 1 :] for run in runs]
        chosen = _references(dataset)
        self._references = _flat(chosen["x"])
        self._variance = _variance(self._references)
        self._labels = chosen.get("label")
        if self._labels is not None:
            num = min(NUM_TEST, dataset.test.num_examples)
            test = dataset.test.take(data.spread(dataset.test.num_examples, num))
            self._shown = self._nearest(_flat(test["x"]))

    def look(self, samples: np.ndarray) -> dict[str, float]:
        """The figures of some samples, as they are stored."""
        samples = _flat(samples)
        told = {f"{GROUP}/diversity": float(_variance(samples) / self._variance)}
        if self._labels is not None:
            seen = len(np.unique(self._nearest(samples)))
            # Of as many real examples, the mean over parts of the test split.
            num = min(len(samples), len(self._shown))
            parts = np.array_split(self._shown, max(1, len(self._shown) // num))
            expected = np.mean([len(np.unique(part[:num])) for part in parts])
            told[f"{GROUP}/classes"] = float(min(1.0, seen / expected))
        return told

    def collapse(self, run: int, record: Mapping[str, Any]) -> Collapse | None:
        """Whether there is one after this line of metrics.jsonl; all processes agree."""
        known = [*self._records[run], dict(record)][-NUM_LINES - 1 :]
        self._records[run], last = known, known[-NUM_LINES:]

        def judged() -> str:
            early = len(last) < NUM_LINES or last[0]["step"] <= FROM * self._train.steps
            return "" if early else self._judge(last) or ""

        if not (told := processes.from_first(judged)):
            return None
        healthy = known[0]["step"] if len(known) > NUM_LINES else 0
        return Collapse(record["step"], healthy, told)

    def _nearest(self, x: np.ndarray) -> np.ndarray:
        """The labels of the nearest training examples."""
        references = self._references
        squares = np.sum(references**2, axis=1)[None] - 2 * x @ references.T
        labels: Any = self._labels
        return labels[np.argmin(squares, axis=1)]


def check(session: Any, num_runs: int, dataset: data.Dataset) -> None:
    """Raises UserError where a collapse is to be seen to that cannot be.

    Of a model that is not watched; of several runs, which can only go back one by one; of
    data that are all alike.
    """
    asked = session.config.train.on_collapse
    if session.model.collapse is None:
        if asked != "tell":
            raise UserError(
                f"--on-collapse {asked}: {session.config.family} is not watched for "
                "collapses; leave it out"
            )
        return
    if asked != "tell" and num_runs > 1:
        raise UserError(
            "--on-collapse stop and rollback are for one run at a time, not --num-seeds"
        )
    references = _references(dataset)["x"]
    if not _variance(_flat(references)) > 0:
        raise UserError(
            f"{dataset.name}: all {len(references):,} training examples that were looked "
            "at are alike: there is nothing to learn to make"
        )


def watch(runs: Sequence[Any], dataset: data.Dataset) -> Watch | None:
    """A `Watch` where the model says what a collapse is."""
    return None if runs[0].session.model.collapse is None else Watch(runs, dataset)


def num_checkpoints(session: Any) -> int:
    """How many to keep, so that one of them is from before a collapse is seen."""
    if session.model.collapse is None:
        return 2
    every = session.config.train.every
    return 2 + -(-NUM_LINES * every("log") // every("checkpoint"))


def cooled(runs: Sequence[Any]) -> list[Any]:
    """The runs with the learning rate that they have after going back so often."""
    done = []
    for run in runs:
        config, times = run.session.config, len(rollbacks(run.folder.path))
        if times:
            rate = config.train.learning_rate * 0.5**times
            train = dataclasses.replace(config.train, learning_rate=rate)
            config = dataclasses.replace(config, train=train)
            run = run._replace(session=bind(config))
        done.append(run)
    return done


def rollbacks(path: Any) -> list[dict[str, Any]]:
    """What a run's folder tells of the times it went back.

    Raises:
        RunError: if that cannot be read: the learning rate depends on it.
    """
    file = path / "rollbacks.json"
    try:
        found = json.loads(file.read_text()) if file.is_file() else []
        return [{key: r[key] for key in ("from", "to", "evidence")} for r in found]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{file} cannot be read ({error}); it tells how often the learning rate was "
            "halved: mend it, or remove it to go on with the full rate"
        ) from error


def notes(folder: Any) -> list[str]:
    """What a report should say of a run's health."""
    told = [
        f"went back from step {r['from']:,} to {r['to']:,}, to half the learning rate: "
        f"{r['evidence']}"
        for r in rollbacks(folder.path)
    ]
    records = [r for r in folder.read_metrics() if NAME in r]
    if records:
        first, last = records[0], records[-1]
        told.append(
            f"collapse, at {len(records)} log intervals from step {first['step']:,} to "
            f"{last['step']:,}: {last[NAME]}"
        )
    return told


def tell(collapsed: Collapse, where: str = "") -> None:
    """Says what was seen, and what could be done; `where`, of several runs, in which."""
    say(
        f"{where}step {collapsed.step:,}: collapse: {collapsed.evidence}; healthy until step "
        f"{collapsed.healthy:,}. --on-collapse rollback goes back and on; a larger "
        "--gamma, a lower --learning-rate or --augment make it less likely"
    )


def go_back(run: Any, checkpoints: Any, collapsed: Collapse) -> int:
    """Leaves a run where it was healthy, to go on with half the learning rate.

    All processes call it alike; the first one writes before any of them goes on.

    Args:
        run: The run.
        checkpoints: Its `Checkpoints`; those of the collapse are removed.
        collapsed: What was seen.

    Returns:
        The step from which it goes on.

    Raises:
        CollapseError: if it is to stop, or has gone back too often.
    """
    if run.session.config.train.on_collapse == "stop":
        raise CollapseError(
            f"step {collapsed.step:,}: collapse: {collapsed.evidence}; healthy until step "
            f"{collapsed.healthy:,}: the same command with --on-collapse rollback goes on"
        )
    done = rollbacks(run.folder.path)
    if len(done) >= MOST_ROLLBACKS:
        raise CollapseError(
            f"step {collapsed.step:,}: collapse, again after {len(done)} times that it "
            f"went back: {collapsed.evidence}"
        )
    checkpoints.wait()

    def act() -> str:
        to = checkpoints.drop_after(collapsed.healthy)
        record = {"from": collapsed.step, "to": to, "evidence": collapsed.evidence}
        text = json.dumps([*done, record], indent=1) + "\n"
        rundir.write_text(run.folder.path / "rollbacks.json", text)
        return str(to)

    to = int(processes.from_first(act))
    say(
        f"step {collapsed.step:,}: collapse: {collapsed.evidence}; back to step {to:,}, "
        "with half the learning rate"
    )
    return to


def _references(dataset: data.Dataset) -> dict[str, Any]:
    """Some training examples."""
    num = min(NUM_REFERENCES, NUMBERS // math.prod(dataset.shape))
    num = min(max(1, num), dataset.train.num_examples)
    return dataset.train.take(data.spread(dataset.train.num_examples, num))


def _flat(x: Any) -> np.ndarray:
    x = np.asarray(x)
    scale = 255 if x.dtype == np.uint8 else 1
    return x.reshape(len(x), -1).astype(np.float32) / scale


def _variance(x: np.ndarray) -> float:
    return float(np.sum(np.var(x.astype(np.float64), axis=0)))
