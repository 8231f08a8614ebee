"""Several models on one task, and the deterministic network beside them.

Each is trained and judged by commands in processes of their own, `jaxgen train` and `jaxgen
evaluate`; what has been done is not done again.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxgen import data
from jaxgen._checks import UserError, unknown
from jaxgen.bench import pinned
from jaxgen.bench.families import jaxgen_command, read_json
from jaxgen.data import clips
from jaxgen.evaluate import asked
from jaxgen.train import answering, pictures, rundir, session
from jaxgen.train.console import say

HEADINGS = (
    "model",
    "parameters",
    "best",
    "mean",
    "diversity",
    "off",
    "none",
    "modes",
    "recognised",
)


NUM_LIKELIHOOD = 100  # test examples: it is not in the table
STEPS, EVERY = 50, 5  # of a roll-out, and of it those that are shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked of whom, and for how long each is trained."""

    data: str = tyro.MISSING
    """Name of the set."""
    data_dir: str | None = None
    """Where TFDS sets lie."""
    names: tuple[str, ...] = ()
    """Who takes part; by default all."""
    num_answers: int = 10
    """To each of 100 questions."""
    steps: int | None = None
    """Updates of each, in place of its own number."""
    jobs: int | None = None
    """Runs at once; by default one a core."""
    out: Path | None = None
    """Where runs, table and figure lie; by default runs/TASK-DATA."""


class Entrant(NamedTuple):
    """A model as it takes part: its name, its family, and flags of `jaxgen train`."""

    name: str
    family: str
    train: Sequence[str]


def main(
    told: str | None, options: Options, task: Sequence[str], flags: Mapping[str, str]
) -> None:
    """An experiment: `experiment`, with the options of its command line.

    Args:
        told: Its docstring.
        options: By default.
        task: As of `experiment`, and so are `flags`.
        flags: Of all who may take part.
    """
    description = (told or "").split("\n")[0]
    options = tyro.cli(Options, default=options, description=description)
    experiment(options, task, flags)


def experiment(options: Options, task: Sequence[str], flags: Mapping[str, str]) -> None:
    """Trains and judges what is missing, prints the table, draws the figure.

    Args:
        options: Of the command.
        task: Flags that say what is asked, `["--task", "inpaint", ...]`.
        flags: {name: "FAMILY --flag ..."} of all who may take part.
    """
    names = options.names or tuple(flags)
    shared = ["--data", options.data, *task]
    if options.data_dir is not None:
        shared += ["--data-dir", str(Path(options.data_dir).absolute())]
    entrants = []
    for name in names:
        if name not in flags:
            raise UserError(unknown("name", name, flags))
        family, *own = flags[name].split()
        entrants.append(Entrant(name, family, [*shared, *own]))
    out = options.out
    if out is None:
        out = Path("runs") / f"{task[1]}-{options.data.replace(':', '-')}"
    found = compete(
        entrants,
        out,
        num_answers=options.num_answers,
        steps=options.steps,
        jobs=options.jobs,
    )
    text, path = write(found, out, data=options.data, task=list(task))
    sys.stdout.write(f"{text}{path}\n")


def compete(
    entrants: Sequence[Entrant],
    out: Path,
    *,
    num_answers: int,
    steps: int | None = None,
    jobs: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Trains and judges all, or goes on with it.

    Args:
        entrants: Of names that differ.
        out: Where runs and logs lie.
        num_answers: To each question.
        steps: Updates of each, in place of what its flags say.
        jobs: Runs at once; None for as many as there are cores.

    Returns:
        {name: what evaluation.json has, and `num_parameters`}.

    Raises:
        UserError: if a run of the folder was trained otherwise.
        RunError: if one fails; the same call goes on.
    """
    if len({each.name for each in entrants}) < len(entrants):
        raise UserError("names of entrants must differ")
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    with pinned.Cores(jobs) as cores:
        tasks = {
            cores.submit(_run, cores, each, out, num_answers, steps): each
            for each in entrants
        }
        for task in futures.as_completed(tasks):
            task.result()
    for each in entrants:
        run = out / each.name
        bound = session.bind(rundir.RunFolder(run).read_config())
        params = session.abstract_state(bound).params
        found[each.name] = read_json(run / "evaluation.json") | {
            "num_parameters": session.num_parameters(params)
        }
    return found


def _run(
    cores: pinned.Cores,
    entrant: Entrant,
    out: Path,
    num_answers: int,
    steps: int | None,
) -> None:
    run, log = out / entrant.name, out / f"{entrant.name}.log"
    length = [] if steps is None else ["--steps", str(steps)]
    say(f"{entrant.name}: {log}")
    train = [entrant.family, *entrant.train, *length, "--devices", "1"]
    jaxgen_command(cores, log, "train", *train, "--out", str(run))
    config = rundir.RunFolder(run).read_config()
    judged = read_json(run / "evaluation.json")
    sampling = json.loads(json.dumps(dataclasses.asdict(config.model).get("sampling")))
    known = judged.get("answers", {}).get("num_answers"), judged.get("sampling")
    if known == (num_answers, sampling):
        return
    dataset = data.open_dataset(config.data)
    effort = ["--num", "0", "--num-samples", "8", "--num-images"]
    effort += [str(min(NUM_LIKELIHOOD, dataset.test.num_examples))]
    asked_for = ["--answers", str(num_answers)]
    jaxgen_command(cores, log, "evaluate", str(run), *effort, *asked_for)


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of Markdown: errors are root mean squares of images in [0, 1]."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for name, judged in found.items():
        told = judged["answers"]
        modes = told.get("modes") or {}
        shares = modes.get("shares")
        cells = [
            name,
            f"{judged['num_parameters']:,}",
            *(_cell(told, key) for key in ("best", "of_mean", "diversity")),
            _cell(told, "disagreement"),
            _cell(modes, "none_share"),
            " ".join(f"{100 * share:.1f}" for share in shares) if shares else "",
            _cell(told, "recognised"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(told: Mapping[str, Any], name: str) -> str:
    entry = told.get(name)
    if not entry:
        return ""
    return f"{entry['value']:.4f} ({entry['low']:.4f} to {entry['high']:.4f})"


def figure(runs: Mapping[str, Path], path: Path) -> None:
    """What each run is asked and answers, one above the other; of clips also roll-outs."""
    from matplotlib.figure import Figure

    strips = []
    for name, run in runs.items():
        loaded = session.load(run)
        test = data.open_dataset(loaded.config.data).test
        shown = pictures.to_uint8(asked.picture(loaded, test))
        strips.append((f"{name}: {asked.CAPTION}", shown))
        if loaded.config.data.task == "next-frame":
            caption = (
                f"{name}: every {EVERY}th of {STEPS} frames, each given those before"
            )
            strips.append((caption, rolled(loaded, test)))
    heights = [images.shape[0] / images.shape[1] for _, images in strips]
    drawn = Figure((6.5, 6 * sum(heights) + 0.3 * len(strips)), dpi=100)
    grid = drawn.add_gridspec(len(strips), 1, height_ratios=heights)
    for row, (caption, images) in enumerate(strips):
        axis = drawn.add_subplot(grid[row])
        axis.imshow(pictures.grid(images), cmap="gray", vmin=0, vmax=255)
        axis.set_title(caption, fontsize=8)
        axis.axis("off")
    drawn.savefig(path, metadata={"Software": None}, bbox_inches="tight")


def rolled(loaded: session.Loaded, source: data.Source) -> np.ndarray:
    """Frames of four clips that a run on --task next-frame goes on with by itself.

    Returns:
        `[4, 1 + STEPS // EVERY, H, W, C]` uint8: the last frame that is given, and every
        fifth of the fifty that follow; actions are random ones.
    """
    answer = answering.to_condition(loaded.model)
    channels = loaded.config.model.shape[-1]
    chosen = data.spread(source.num_examples, 4)
    given = clips.initial(source, chosen)
    count = given.shape[-1] - clips.PAST * channels
    actions = clips.random_actions(0, 4, STEPS, count) if count else None
    keys = jax.random.split(jax.random.key(0), (STEPS, 4))

    @jax.jit
    def some(params: Any, given: jax.Array, actions: Any) -> jax.Array:
        one = functools.partial(answer, params)
        frames, _ = clips.roll(lambda c, k: one(k, c), given, keys, actions)
        last = given[..., (clips.PAST - 1) * channels : clips.PAST * channels]
        return jnp.concatenate([last[None], frames[EVERY - 1 :: EVERY]])

    return pictures.to_uint8(np.asarray(some(loaded.params, given, actions))).swapaxes(
        0, 1
    )


def write(
    found: Mapping[str, Mapping[str, Any]], out: Path, **settings: Any
) -> tuple[str, Path]:
    """The table, figures.json and figure.png of a folder of runs; told and their place."""
    kept = {**settings, "versions": rundir.environment()["versions"], "runs": found}
    rundir.write_text(out / "figures.json", json.dumps(kept, indent=1) + "\n")
    text = table(found)
    rundir.write_text(out / "table.md", text)
    figure({name: out / name for name in found}, out / "figure.png")
    return text, out / "figure.png"
