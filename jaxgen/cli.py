"""The doors: `jaxgen train | sample | evaluate | bench | plan | verify | list`."""

import contextlib
import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxgen import _options, _signals
from jaxgen._checks import RunError, UserError, unknown

USAGE = """usage: jaxgen COMMAND ...

  jaxgen train MODEL [options]   train, or continue, a run        (jaxgen train vae --help)
  jaxgen sample RUN [options]    draw images from a run           (jaxgen sample --help)
  jaxgen evaluate RUN [options]  judge it on the whole test split (jaxgen evaluate --help)
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
    """F.png, one grid, or F.npz, `images` uint8 [N, H, W, C]; by default RUN/sample.png."""


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
    judge: int = 0
    """Samples to judge by a classifier that is trained on the data's labels once."""
    seed: int = 0
    """Fixes the noise of the estimate, and the samples that are judged."""
    data_dir: str | None = None
    """Where the data lie now, if not where they lay in training."""
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
    """vae, gan, flow, diffusion: by default all of them."""
    json: bool = False
    """Print one JSON object to standard output, all else to standard error."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; exits with 2 for a user's mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "train": _train,
        "sample": _sample,
        "evaluate": _evaluate,
        "bench": _bench,
        "plan": _plan,
        "verify": _verify,
        "list": _list,
    }
    _guarded(lambda: _dispatch(commands, argv))


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
    _guarded(lambda: command([family, *argv], prog=prog, **defaults))


def _dispatch(commands: dict[str, Any], argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if argv else 2
    if argv[0] not in commands:
        raise UserError(unknown("command", argv[0], commands))
    return commands[argv[0]](argv[1:])


def _guarded(command: Any) -> None:
    """Runs a command; every expected failure becomes one line and a status."""
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
            raise UserError(unknown("experiment", argv[0], _experiments()))
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
    parsed = _parse_parts(parts, argv, prog, models.FAMILIES[family].summary)
    values = {name: getattr(parsed, name) for name in ("data", "train", "model")}
    config = configs.RunConfig(family=family, **values)
    return config, parsed.run, getattr(parsed, "launch", None)


def _parse_parts(parts: dict[str, Any], argv: list[str], prog: str, doc: str) -> Any:
    """Several dataclasses of options as one; `parts` are their defaults."""
    fields: list[Any] = [(name, type(part)) for name, part in parts.items()]
    cls = dataclasses.make_dataclass("arguments", fields, frozen=True, kw_only=True)
    cls.__doc__ = doc
    return _options.parse(cls, argv, prog, default=cls(**parts))


def _parse_use(options: Any, argv: list[str], prog: str) -> tuple[Any, Any]:
    """The options of a command on a run, and what its model lets one choose anew."""
    first = [arg for arg in argv[:1] if not arg.startswith("-")]
    folders = (arg for arg in argv if (Path(arg) / "config.json").is_file())
    if (folder := next(folders, *first) if first else next(folders, None)) is None:
        return _options.parse(
            options, argv, prog
        ), None  # a mistake, told by the command
    from jaxgen.train.rundir import RunFolder

    sampling = getattr(RunFolder(Path(folder)).read_config().model, "sampling", None)
    if sampling is None:
        return _options.parse(options, argv, prog), None
    parts = {"run": options(run=Path(folder)), "sampling": sampling}
    argv = [arg for arg in argv if arg != folder]
    parsed = _parse_parts(parts, argv, f"{prog} RUN", options.__doc__)
    return parsed.run, parsed.sampling


def _sample(argv: list[str]) -> int:
    parsed = _parse_use(SampleOptions, argv, "jaxgen sample")
    from jaxgen import commands

    return commands.sample(*parsed)


def _evaluate(argv: list[str]) -> int:
    parsed = _parse_use(EvaluateOptions, argv, "jaxgen evaluate")
    from jaxgen import commands

    return commands.evaluate(*parsed)


def _verify(argv: list[str]) -> int:
    options = _options.parse(VerifyOptions, argv, "jaxgen verify")
    from jaxgen.verify import command

    return command.verify(options.families, as_json=options.json)


def _list(argv: list[str]) -> int:
    if argv:
        raise UserError(f"jaxgen list takes no arguments, got {' '.join(argv)}")
    from jaxgen import data, models

    rows = [("models", {name: f.summary for name, f in models.FAMILIES.items()})]
    rows.append(("data sets (--data)", data.described()))
    rows.append(("experiments", _experiments()))
    for title, entries in rows:
        sys.stdout.write(f"{title}\n")
        width = max((len(name) for name in entries), default=0)
        for name, summary in entries.items():
            sys.stdout.write(f"  {name:<{width}}  {summary}\n")
    return 0


def _experiments() -> dict[str, str]:
    """Scripts of the clone this package is installed from, with their first lines."""
    import ast

    folder = Path(__file__).parent.parent / "experiments"
    found = {}
    for path in sorted(folder.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        found[f"experiments/{path.name}"] = docstring.split("\n")[0]
    return found or {"(none)": "they lie in a clone of the repository"}
