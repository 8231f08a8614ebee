"""`jaxgen bench`: one schema, and figures that can be checked."""

import json
import math
import os

import pytest
from doors import TINY, call

KEYS = (
    "examples_per_s",
    "ms_per_step",
    "cpu_ms_per_step",
    "compile_s",
    "host_us_per_step",
    "flops_per_example",
    "peak_fraction",
    "bytes_accessed",
    "peak_memory_bytes",
    "data_wait_share",
    "steps_per_dispatch",
)


def bench(capsys, *options):
    status, out, _ = call(
        capsys, "bench", "vae", *TINY, "--repeats", "2", "--json", *options
    )
    assert status == 0
    return json.loads(out)


def test_bench_has_one_schema_and_consistent_figures(capsys, tmp_path):
    result = bench(capsys, "--profile", tmp_path / "trace")
    for key in KEYS:
        assert math.isfinite(result[key]), key
        assert result[key] >= 0, key
    rate = 1e3 * result["batch_size"] / result["ms_per_step"]
    assert result["examples_per_s"] == pytest.approx(rate)
    assert result["ms_per_step_p10"] <= result["ms_per_step"]
    assert result["ms_per_step"] <= result["ms_per_step_p90"]
    # The processor was busy with it, on as many cores as there are at most.
    assert (
        0 < result["cpu_ms_per_step"] < 2 * os.cpu_count() * result["ms_per_step_p90"]
    )
    assert result["data_wait_share"] < 1
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_bench_counts_the_flops_of_one_update_whatever_a_dispatch_does(capsys):
    one, many = (
        bench(capsys, "--net", "mlp", "--steps-per-dispatch", k) for k in ("1", "4")
    )
    assert many["steps_per_dispatch"] == 4
    assert one["flops_per_example"] == many["flops_per_example"]
    # At least two FLOPs a weight and example forwards, and twice that backwards.
    assert one["flops_per_example"] > 4 * one["num_parameters"]


def test_bench_refuses_an_unknown_model_and_option(capsys):
    assert call(capsys, "bench", "vea")[::2] == (
        2,
        "jaxgen: unknown model 'vea'; did you mean 'vae'? (choose from diffusion, flow, "
        "gan, masked, vae)\n",
    )
    status, _, err = call(capsys, "bench", "vae", "--repeat", "3")
    assert status == 2
    assert "--repeats" in err
