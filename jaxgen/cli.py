"""The doors: `jaxgen COMMAND ...`, a command each for what one does with runs."""

import contextlib
import dataclasses
import functools
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxgen import _signals, parsing
from jaxgen._checks import RunError, UserError, unknown

USAGE = """usage: jaxgen COMMAND ...

  jaxgen train MODEL [options]   train, or continue, a run        (jaxgen train vae --help)
  jaxgen sample RUN [options]    draw images from a run           (jaxgen sample --help)
  jaxgen edit RUN --task TASK    colour, fill in or enlarge photos (jaxgen edit --help)
  jaxgen infill RUN --text "a __" fill in what is blank in a text (jaxgen infill --help)
  jaxgen evaluate RUN [options]  judge it on the whole test split (jaxgen evaluate --help)
  jaxgen diagnose RUN [options]  what is wrong with it, and what mends it (jaxgen diagnose --help)
  jaxgen compare RUN RUN ...     whether they differ, and by how much (jaxgen compare --help)
  jaxgen bench [MODEL ...]       measure training speed here      (jaxgen bench --help)
  jaxgen plan MODEL|EXPERIMENT   what it needs on a TPU or GPU    (jaxgen plan vae --help)
  jaxgen verify [FAMILY ...]     compare the mathematics with closed forms, here
  jaxgen list                    models, data sets, experiments
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What is not part of the run's config."""

    out: Path | None = None
    """The run folder; by default the next free runs/NNNNN-MODEL-DATA."""
    num_seeds: int = 1
    """Train so many runs as one program, from --seed upwards, each in its own folder."""
    dry_run: bool = False
    """Print the resolved config, parameter count and step shapes, and stop."""
    tensorboard: bool = False
    """Mirror scalars and sample grids to RUN/tensorboard (extra "tensorboard")."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is not part of the config that is measured."""

    repeats: int = 10
    """Timings of which the median and the 10th and 90th percentile are told."""
    json: bool = False
    """Print one JSON object a model to standard output, all else to standard error."""
    profile: Path | None = None
    """Write an xprof trace of one repeat under this folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What is not part of the config that is planned."""

    target: str = tyro.MISSING
    """Accelerators to compile for: v5e:2x4, v6e:2x2, v5p:2x2x1, h100:8, ..."""
    search: bool = True
    """Look for the largest batch that fits too: a compilation for each that is tried,
    minutes each of a large model."""
    json: bool = False
    """Print one JSON object to standard output, all else to standard error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Draws images from a run; image i depends on (seed, i) only.

    `jaxgen sample RUN --help` also shows what this run's model lets one choose anew.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    num: int = 64
    """How many images."""
    seed: int = 0
    """Which images."""
    ema_width: float | None = None
    """Use the average of this width, rebuilt from what --ema-widths has stored."""
    out: Path | None = None
    """F.png, one grid, or F.npz, `images` uint8 [N, H, W, C]; of rows F.csv, F.npz or F.png, of
    texts F.txt, F.npz or F.png; by default RUN/sample.png, .csv or .txt."""
    log_prob: bool = False
    """Beside each row of a table log p(row | its context) in nats, in F.csv or F.npz."""
    then: Path | None = None
    """A run on --task enlarge, of any family, that enlarges what this one draws."""
    noise: float = 0.0
    """Of --then: deviation of the noise under which it sees the small images, 0 to 0.2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Judges a run on the test split; writes RUN/evaluation.json and the report.

    `jaxgen evaluate RUN --help` also shows what this run's model lets one choose anew.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    num_samples: int = 100
    """Effort of a likelihood estimate: K of importance sampling."""
    num_images: int | None = None
    """Likelihood of so many test images, spread over the split; by default of all."""
    num: int = 2000
    """Samples whose quality is measured, against as many test examples; 0: none."""
    features: str = "auto"
    """By what: auto, classifier, random, pixels, pca, ngrams (of texts); or mnist, digits,
    photos, shipped."""
    ais: int = 0
    """Temperatures of annealed importance sampling, 1000 say: a likelihood beyond the
    bound, with the gap between its own bounds. For decoders of latents; slow."""
    ais_chains: int = 16
    """Chains an image, then."""
    ais_images: int = 100
    """Test images, then, and as many that the model makes, for the gap."""
    judge: int = 0
    """Samples to judge by a classifier of the data's own labels."""
    seed: int = 0
    """Fixes the noise of the estimate, and the samples that are judged."""
    data_dir: str | None = None
    """Where the data lie now, if not where they lay in training."""
    answers: int = 10
    """Of a run on a --task: answers to each of 100 test examples to be judged; 0: none."""
    base: Path | None = None
    """Of a run on --task enlarge: a run that draws what it enlarges, not the test split."""
    noise: float = 0.0
    """Of --base, as in jaxgen sample."""
    ema_width: float | None = None
    """Judge the average of this width, rebuilt from what --ema-widths has stored."""
    json: bool = False
    """Print one JSON object to standard output, all else to standard error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Compares the mathematics of each family with closed forms, on this machine.

    Exit status 1 if a figure is further off than its tolerance.
    """

    families: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """vae, gan, flow, diffusion, masked: by default all of them."""
    json: bool = False
    """Print one JSON object to standard output, all else to standard error."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; exits with 2 for a user's mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "train": _train,
        "sample": functools.partial(_use, "sample", SampleOptions),
        "edit": _edit,
        "infill": _infill,
        "evaluate": functools.partial(_use, "evaluate", EvaluateOptions),
        "diagnose": _diagnose,
        "compare": _compare,
        "bench": _bench,
        "plan": _plan,
        "verify": _verify,
        "list": _list,
    }
    guarded(lambda: _dispatch(commands, argv))


def experiment(family: str, **defaults: Any) -> None:
    """The main of an experiment: `jaxgen train FAMILY` with other defaults.

    Where the first argument is `plan`, it is `jaxgen plan FAMILY` with them.

    Args:
        family: Name of the model.
        **defaults: `model`, `data`, `train`: the family's, data's and training's config.
    """
    _signals.end_quietly()
    prog, *argv = sys.argv
    command, argv = (_plan, argv[1:]) if argv[:1] == ["plan"] else (_train, argv)
    run = functools.partial(command, [family, *argv], prog=prog, **defaults)
    _signals.fail_at_once(lambda: guarded(run))


def _dispatch(commands: dict[str, Any], argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if argv else 2
    if argv[0] not in commands:
        raise UserError(unknown("command", argv[0], commands))
    return commands[argv[0]](argv[1:])


def guarded(command: Any) -> None:
    """Runs a command and exits; every expected failure becomes one line and a status.

    Args:
        command: Returns the status, or None for 0.
    """
    _silence_libraries()
    try:
        status = command()
        if _is_one_of_several():
            _meet_at_the_end()
    except UserError as error:
        status = _fail(error, 2)
    except KeyboardInterrupt:
        status = _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except RunError as error:
        status = _fail(error, 1)
    except OSError as error:
        told = error.filename and f"{error.filename}: {error.strerror}"
        status = _fail(told or error, 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            status = _fail(f"out of memory: a smaller --batch-size? ({error})", 1)
        elif _is_one_of_several():
            status = _fail(f"was another process lost? {str(error).splitlines()[0]}", 1)
        else:
            raise
    if _is_one_of_several():  # an error: the others would wait at an orderly exit
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _is_one_of_several() -> bool:
    processes = sys.modules.get("jaxgen.train.processes")
    return processes is not None and processes.count() > 1


def _meet_at_the_end() -> None:
    """Waits for the other processes: where the first one goes, JAX aborts the rest."""
    import jax

    jax.distributed.shutdown()


def _silence_libraries() -> None:
    """Orbax and TFDS show whole tracebacks of what is then raised and told in one line.

    When one file of a checkpoint cannot be written, Orbax closes the event loop that the
    other files are still being written on: each of them then complains of that, or of
    its own error that nobody asks for any more.
    """
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    threading.excepthook = lambda args: None
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_others


def _fail(error: Any, status: int) -> int:
    message = " ".join(str(error).split())
    sys.stderr.write(f"jaxgen: {message}\n")
    return status


def _train(argv: list[str], *, prog: str = "jaxgen train", **defaults: Any) -> int:
    from jaxgen import models

    if not argv or argv[0] in ("-h", "--help"):
        names = "|".join(sorted(models.FAMILIES))
        sys.stdout.write(f"usage: jaxgen train {{{names}}} [options]\n")
        return 0 if argv else 2
    parsed = _parse_config(argv[0], argv[1:], prog, TrainOptions, defaults)

    from jaxgen import commands

    return commands.train(*parsed)


def _bench(argv: list[str]) -> int:
    from jaxgen import models

    num = next((i for i, a in enumerate(argv) if a.startswith("-")), len(argv))
    parsed = [
        _parse_config(family, argv[num:], "jaxgen bench", BenchOptions, {})
        for family in argv[:num] or sorted(models.FAMILIES)
    ]
    from jaxgen import commands
    from jaxgen.train import processes

    processes.start(parsed[0][2])
    for config, options, _ in parsed:
        commands.bench(config, options)
    return 0


def _plan(argv: list[str], *, prog: str = "jaxgen plan", **defaults: Any) -> int:
    from jaxgen import models

    if not argv or argv[0] in ("-h", "--help"):
        names = "|".join(sorted(models.FAMILIES))
        sys.stdout.write(
            f"usage: jaxgen plan {{{names}|EXPERIMENT.py}} --target T [options]\n"
        )
        return 0 if argv else 2
    if argv[0].endswith(".py"):  # its main knows its defaults
        if not Path(argv[0]).is_file():
            from jaxgen import listing

            raise UserError(unknown("experiment", argv[0], listing.experiments()))
        os.execv(sys.executable, [sys.executable, argv[0], "plan", *argv[1:]])
    config, options, _ = _parse_config(argv[0], argv[1:], prog, PlanOptions, defaults)

    from jaxgen import commands

    return commands.plan(config, options)


def _parse_config(
    family: str, argv: list[str], prog: str, options: Any, defaults: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """The config of a run of this family, the command's own options, and the launch."""
    from jaxgen import models
    from jaxgen.train import config as configs
    from jaxgen.train import processes

    if family not in models.FAMILIES:
        raise UserError(unknown("model", family, models.FAMILIES))
    config = dataclasses.replace(configs.default(family), **defaults)
    parts = {"run": options()}
    parts |= {name: getattr(config, name) for name in ("data", "train", "model")}
    if options in (TrainOptions, BenchOptions):
        parts["launch"] = processes.Launch()
    prog = prog if prog.endswith(".py") else f"{prog} {family}"
    parsed = parsing.parse_parts(parts, argv, prog, models.FAMILIES[family].summary)
    values = {name: getattr(parsed, name) for name in ("data", "train", "model")}
    config = configs.RunConfig(family=family, **values)
    return config, parsed.run, getattr(parsed, "launch", None)


def _use(name: str, options: Any, argv: list[str]) -> int:
    """A command on a run: its own options, and what the run's model lets one choose."""
    parsed = parsing.parse_use(options, argv, f"jaxgen {name}")
    from jaxgen import commands

    return getattr(commands, name)(*parsed)


def _edit(argv: list[str]) -> int:
    from jaxgen import editing

    return editing.edit(*parsing.parse_use(editing.EditOptions, argv, "jaxgen edit"))


def _infill(argv: list[str]) -> int:
    from jaxgen import infilling

    return infilling.infill(
        *parsing.parse_use(infilling.InfillOptions, argv, "jaxgen infill")
    )


def _diagnose(argv: list[str]) -> int:
    from jaxgen.evaluate.diagnosis import command

    return command.diagnose(
        *parsing.parse_use(command.DiagnoseOptions, argv, "jaxgen diagnose")
    )


def _compare(argv: list[str]) -> int:
    from jaxgen.evaluate import comparison_command as command

    return command.compare(
        parsing.parse(command.CompareOptions, argv, "jaxgen compare")
    )


def _verify(argv: list[str]) -> int:
    options = parsing.parse(VerifyOptions, argv, "jaxgen verify")
    from jaxgen.verify import command

    return command.verify(options.families, as_json=options.json)


def _list(argv: list[str]) -> int:
    if argv:
        raise UserError(f"jaxgen list takes no arguments, got {' '.join(argv)}")
    from jaxgen import listing

    sys.stdout.write(listing.text())
    return 0
