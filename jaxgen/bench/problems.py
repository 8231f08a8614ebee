"""A problem of a VAE before and after its mends: the diagnosis of each case, side by side."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data
from jaxgen.data import latents
from jaxgen.evaluate import diagnosis
from jaxgen.models import vae
from jaxgen.train import assembly, expost, pictures

SHOWN = 16  # images of a case
# Of a problem: its figures in the table, by their names in diagnosis.json.
FIGURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "balance": ("effective_beta", "rate_nats", "distortion_nats", "elbo_nats"),
        "collapse": ("active_units", "units", "mutual_information_nats"),
        "prior": ("frechet_of_data", "frechet_of_prior", "decoded_c2st_accuracy"),
        "variance": ("ratio", "expected_ratio", "ratio_of_samples", "fine_ratio"),
    }
)
# And what is drawn: a bar for each case, or a line of this list.
BARS = {"balance": "effective_beta", "prior": "frechet_of_prior"}
LINES = {"collapse": "kl_by_unit"}


class Case(NamedTuple):
    """A way to train a VAE and to draw its z.

    Attributes:
        label: For the reader.
        model: Options of the VAE.
        sampling: How z is drawn.
        second: Family and options of a run that draws z, or None.
    """

    label: str
    model: Mapping[str, Any]
    sampling: Mapping[str, Any] = MappingProxyType({})
    second: tuple[str, Mapping[str, Any]] | None = None


class Seen(NamedTuple):
    """A case as it was diagnosed.

    Attributes:
        label: Of the case.
        problems: Of diagnosis.json.
        images: Data, their reconstructions, and samples, `[3, N, H, W, C]` uint8.
    """

    label: str
    problems: dict[str, Any]
    images: np.ndarray


def fit(
    case: Case,
    config: data.DataConfig,
    out: Path,
    train: Callable[[str, Mapping[str, Any], data.DataConfig, Path], None],
) -> tuple[Path, dict[str, Any]]:
    """The run of a case, trained unless it is there, and how z is drawn of it.

    Args:
        case: What is trained.
        config: The data.
        out: Where the runs lie.
        train: Trains `(family, options, data, folder)`, as a command does.
    """
    words = [f"{name}-{value}" for name, value in case.model.items()]
    folder = out / "-".join(words)
    if not (folder / "evaluation.json").is_file():
        train("vae", case.model, config, folder)
    if case.second is None:
        return folder, dict(case.sampling)
    family, options = case.second
    other = folder.with_name(f"{folder.name}-then-{family}")
    rows = data.DataConfig(name=f"{latents.PREFIX}{folder}")
    if not (other / "evaluation.json").is_file():
        train(family, options, rows, other)
    return folder, {"prior_run": str(other)}


def look(label: str, run: Path, sampling: Mapping[str, Any], num: int) -> Seen:
    """Diagnoses a run whose z is drawn so, by `num` test images."""
    loaded = expost.load(run, vae.Sampling(**sampling))
    dataset = data.open_dataset(loaded.config.data)
    found = diagnosis.diagnose(loaded, dataset, num=num).result["problems"]
    chosen = data.spread(dataset.test.num_examples, SHOWN)
    raw = {"x": jnp.asarray(dataset.test.take(chosen)["x"])}
    x = data.prepare(raw, jax.random.key(0), transform=loaded.config.data.transform)
    _, rebuilt = loaded.model.views[0]
    pairs = np.asarray(jax.jit(rebuilt)(loaded.params, x["x"]))
    samples = assembly.Sampler(loaded)(loaded.params, 1)[:SHOWN]
    images = np.stack([*pictures.to_uint8(pairs), samples])
    return Seen(label, found, images)


def table(problem: str, seen: Sequence[Seen]) -> str:
    """The cases of a problem as a table of Markdown."""
    names = FIGURES[problem]
    lines = ["| " + " | ".join([problem, *names, "verdict"]) + " |"]
    lines.append("|" + "---|" * (len(names) + 2))
    for case in seen:
        found = case.problems[problem]
        values = [found["figures"][name] for name in names]
        cells = ["none" if value is None else f"{value:.3g}" for value in values]
        lines.append("| " + " | ".join([case.label, *cells, found["verdict"]]) + " |")
    return "\n".join(lines) + "\n"


def draw(problem: str, seen: Sequence[Seen], path: Path) -> None:
    """Figures on the left; on the right data, and of each case what the problem is seen in.

    That is reconstructions, or of the prior's problem samples.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9}):
        height = 0.75 * (len(seen) + 1)
        figure = Figure((13, max(3.2, height)), dpi=100, layout="constrained")
        panels: Any = figure.subfigures(1, 2, width_ratios=(4, 9))
        left, right = panels
        _figures(left.subplots(), problem, seen)
        part = 2 if problem == "prior" else 1
        rows = [("data", seen[0].images[0])]
        rows += [(case.label, case.images[part]) for case in seen]
        axes = right.subplots(len(rows), 1)
        for axis, (label, images) in zip(axes, rows, strict=True):
            axis.imshow(_strip(images), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            axis.set_ylabel(label, rotation=0, ha="right", va="center")
        figure.savefig(path, metadata={"Software": None})


def _figures(axis: Any, problem: str, seen: Sequence[Seen]) -> None:
    told = [case.problems[problem]["figures"] for case in seen]
    labels = [case.label for case in seen]
    if problem in BARS:
        values = [f[BARS[problem]] or np.nan for f in told]
        axis.barh(labels, values, color="#1d5fb4", height=0.6)
        axis.invert_yaxis()
        axis.set_xlabel(BARS[problem].replace("_", " "))
        if problem == "balance":
            axis.axvline(1.0, color="#4a4e54", ls=":")
            axis.set_xscale("log")
        else:
            axis.axvline(told[0]["frechet_of_data"], color="#4a4e54", ls=":")
        return
    for label, figures in zip(labels, told, strict=True):
        if problem in LINES:
            values = np.sort(figures[LINES[problem]])[::-1]
            axis.plot(np.arange(1, len(values) + 1), values, ".-", label=label)
            axis.set(xlabel="latent variable, by use", ylabel="KL, nats")
        else:
            told_of = figures["spectrum"]
            ratio = np.divide(told_of["reconstructions"], told_of["data"])
            axis.plot(told_of["frequency"][1:], ratio[1:], ".-", label=label)
            axis.set(xlabel="cycles a pixel", ylabel="power of reconstructions / data")
    axis.legend(frameon=False)


def _strip(images: np.ndarray) -> np.ndarray:
    """Images beside each other, one white pixel between."""
    padded = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
    row = np.concatenate(list(padded), axis=1)
    return row if row.shape[-1] == 3 else row[..., 0]
