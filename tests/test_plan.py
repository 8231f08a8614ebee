"""`jaxgen plan`: its arithmetic everywhere, its compilers where they are installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from doors import TINY, call

from jaxgen import data
from jaxgen.bench import chips, plan
from jaxgen.models.vae import VAEConfig
from jaxgen.train import config as configs
from jaxgen.train import session

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
HLO = """
  %a = f32[8,16]{1,0:T(8,128)} all-reduce(%x), to_apply=%add
  %b = (f32[4]{0}, /*index=1*/bf16[2,3]{1,0}, pred[7]{0}) all-reduce(%x, %y, %z)
  %c = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}
  %d = f32[32]{0} all-gather-done(%c)
  %e = f32[] get-tuple-element(%all-reduce.3), index=0
  ROOT %f = u8[5]{0} collective-permute(%x)
"""


def installed(*modules):
    return any(importlib.util.find_spec(module) for module in modules)


TPU = pytest.mark.skipif(
    not installed("libtpu"),
    reason='needs the TPU compiler, a wheel of 200 MB: pip install -e ".[plan-tpu]"',
)
GPU = pytest.mark.skipif(
    not installed("jax_cuda12_plugin", "jax_cuda13_plugin"),
    reason='needs the GPU compiler, wheels of 180 MB: pip install -e ".[plan-gpu]"',
)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("v7:2x2", "unknown target 'v7:2x2'.*choose from h100:N, .*v5e:AxB, "),
        ("v5:2x4", "did you mean 'v5e:AxB'"),
        ("h200:8", "unknown target"),
        ("v5e", "--target v5e: expected v5e:AxB, such as v5e:2x2"),
        ("v5e:2x4x1", "expected v5e:AxB"),
        ("v5p:2x2", "expected v5p:AxBxC, such as v5p:2x2x1"),
        ("h100:0", "expected h100:N, such as h100:8"),
    ],
)
def test_parse_target_refuses_in_one_line(target, message):
    with pytest.raises(chips.UserError, match=message):
        chips.parse_target(target)


def test_parse_target_reads_each_chip():
    assert chips.parse_target("v5e:2x4") == (chips.CHIPS["v5e"], (2, 4))
    assert chips.parse_target("v5p:2x2x1") == (chips.CHIPS["v5p"], (2, 2, 1))
    assert chips.parse_target("h100:8") == (chips.CHIPS["h100"], (8,))


@pytest.mark.parametrize(
    ("target", "extra"), [("v5e:2x4", "plan-tpu"), ("h100:8", "plan-gpu")]
)
def test_plan_without_its_compiler_says_what_to_install(
    capsys, monkeypatch, target, extra
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, out, err = call(capsys, "plan", "vae", "--target", target)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert f'pip install -e ".[{extra}]"' in err


def test_plan_refuses_what_it_does_not_know(capsys):
    assert call(capsys, "plan", "vae")[0] == 2
    for argv, word in (
        (["vea", "--target", "h100:8"], "did you mean 'vae'?"),
        (["experiments/nope.py", "--target", "h100:8"], "experiments/vae_mnist.py"),
        (["vae", "--target", "h100:8", "--batch-sise", "3"], "--batch-size"),
    ):
        status, _, err = call(capsys, "plan", *argv)
        assert status == 2
        assert word in err
        assert len(err.splitlines()) == 1


def test_plan_of_an_experiment_has_its_defaults_and_options():
    command = ["plan", EXPERIMENTS / "vae_mnist.py", "--help"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxgen", *map(str, command)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "--target" in done.stdout
    assert "(default: 150000)" in done.stdout


def test_collectives_counts_kinds_and_bytes():
    assert plan.collectives(HLO) == {
        "all-reduce": {"count": 2, "bytes": 4 * 8 * 16 + 4 * 4 + 2 * 6 + 7},
        "all-gather": {"count": 1, "bytes": 4 * 32},
        "collective-permute": {"count": 1, "bytes": 5},
    }


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"parallel": "fsdp"}])
def test_only_gradients_are_exchanged_by_a_data_parallel_step(options):
    config = configs.RunConfig(
        family="vae",
        model=VAEConfig(hidden=(16,), latent_dim=2, mixture=1),
        data=data.DataConfig(),
        train=configs.TrainConfig(batch_size=32, **options),
    )
    dataset = data.open_dataset(config.data)
    bound = session.bind(session.resolve(config, dataset))
    compiler = plan.make_compiler(bound, dataset, jax.devices())
    found = plan.collectives(compiler(32, 1).run.as_text())
    num = session.num_parameters(session.abstract_state(bound).params)
    if "parallel" in options:
        assert "all-gather" in found
        return
    assert set(found) == {"all-reduce"}
    # A gradient, a loss and the terms of the loss; accumulation reduces once a part.
    assert found["all-reduce"]["bytes"] == pytest.approx(4 * num, rel=0.1)


@pytest.mark.parametrize("slope", [3.0, 1000.0])
@pytest.mark.parametrize("fixed", [0.0, 1e5, 9.9e5])
def test_largest_size_is_the_largest_that_fits(fixed, slope):
    asked = []

    def need(size):
        asked.append(size)
        return fixed + slope * size

    size = plan.largest_size(need, 1e6, 2**20)
    best = int((1e6 - fixed) / slope)
    assert size <= best < max(size * 9 / 8, 1)
    assert sum(fixed + slope * n <= 1e6 for n in asked) <= 1  # those are slow


def test_largest_size_is_zero_if_nothing_fits_and_the_top_if_all_does():
    assert plan.largest_size(lambda size: 2.0, 1.0, 100) == 0
    assert plan.largest_size(lambda size: 1.0, 1.0, 96) == 96


@pytest.mark.parametrize("search", [True, False])
def test_without_a_search_only_the_batch_that_is_asked_about_is_compiled(
    search, monkeypatch
):
    sizes = []

    def compile_for(compiler, batch_size, num_steps, usable):
        sizes.append(batch_size)
        return plan.Need(batch_size * 2.0**20, None)

    monkeypatch.setattr(plan, "compile_for", compile_for)
    asked = {"num_devices": 2, "accumulate": 1, "batch_per_device": 4, "shape": [8, 8]}
    told, _ = plan._memory(asked, chips.CHIPS["v5e"], None, 1, search=search)
    assert (told["fits"], told["bytes_needed"]) == (True, 8 * 2**20)
    assert (sizes == [8]) == (told["largest_batch_per_device"] is None) == (not search)


def test_out_of_memory_reads_the_compilers_figure():
    def told(text):
        return plan.out_of_memory(RuntimeError(text))

    temporaries = "total memory required for HLO temporaries (18.50G) exceeds (15.75G)"
    assert told(f"RESOURCE_EXHAUSTED: {temporaries}") == 18.5 * 2**30
    assert told("RESOURCE_EXHAUSTED: Used 17.0M of 15.75M hbm") == 17 * 2**20
    assert told("RESOURCE_EXHAUSTED: no more") == 0.0
    assert told("INVALID_ARGUMENT: (18.50G)") is None


def test_compile_for_takes_what_xla_cannot_count_for_what_does_not_fit():
    def overflow(batch_size, num_steps):
        message = "Bad StatusOr access: INVALID_ARGUMENT: Invalid dimension size -5"
        raise RuntimeError(message)

    need = plan.compile_for(overflow, 8, 1, 1e6)
    assert need.bytes > 1e6
    assert need.program is None

    def broken(batch_size, num_steps):
        raise RuntimeError("INTERNAL: something else")

    with pytest.raises(RuntimeError, match="something else"):
        plan.compile_for(broken, 8, 1, 1e6)


def test_roofline_is_the_slower_of_arithmetic_and_memory():
    chip = chips.CHIPS["v5e"]  # 197e12 FLOP/s, 819e9 bytes/s
    assert plan.roofline(chip, 197e12, 819e9 / 2, 10) == (10.0, "compute")
    assert plan.roofline(chip, 197e12, 819e9 * 2, 10) == (5.0, "memory")


def planned(capsys, *options):
    status, out, err = call(capsys, "plan", "vae", *TINY, "--json", *options)
    assert status == 0, err
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", [pytest.param("v5e:2x4", marks=TPU), pytest.param("h100:8", marks=GPU)]
)
def test_plan_compiles_for_what_is_not_here(capsys, target):
    result = planned(capsys, "--target", target)
    assert result["fits"]
    assert result["num_devices"] == 8
    assert result["steps_per_dispatch"] > 1
    assert 0 < result["bytes_needed"] < 2**26 < result["bytes_usable"]
    assert set(result["collectives"]) == {"all-reduce"}
    assert result["flops"] > 4 * result["num_parameters"] * result["batch_per_device"]
    assert result["largest_batch_per_device"] > 2**16


@pytest.mark.slow
@GPU
def test_plan_of_a_batch_that_does_not_divide_is_one_line(capsys):
    status, out, err = call(
        capsys, "plan", "vae", "--target", "h100:8", "--batch-size", "100"
    )
    assert (status, out) == (2, "")
    assert "--batch-size 100 does not divide over 8 devices; 96 or 104 does" in err
