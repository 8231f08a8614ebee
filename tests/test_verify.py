"""Every oracle passes here; what is the user's own; the command."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doors import call

from jaxgen import (
    bijectors,
    samplers,
    schedules,
    verify,
)
from jaxgen.losses import gan
from jaxgen.verify import gan as gan_oracles
from jaxgen.verify import linear_gaussian, records
from jaxgen.verify import vae as vae_oracles

ORACLES = {f"{f}-{o.__name__}": o for f, os in verify.ORACLES.items() for o in os}
del ORACLES["flow-every_bijector"]  # tests/test_bijectors.py asks it of each by itself
# Many programs, which take a while to compile.
LONG = {"diffusion-all_samplers", "diffusion-all_schedules", "diffusion-bounds"}
LONG |= {"flow-densities", "gan-games"}


def run(oracle):
    jax.clear_caches()  # of single precision: JAX keeps arrays of NumPy as it saw them
    with records.exactly():
        return oracle()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in ORACLES],
)
def test_every_oracle_passes_here(name):
    found = run(ORACLES[name])
    verify.require(found)
    assert len({record.name for record in found}) == len(found) > 1


def test_single_precision_before_leaves_no_trace():
    jax.jit(linear_gaussian.log_likelihood)(jnp.ones((5, 2)), jnp.ones((5, 4)))
    with records.exactly():
        verify.require(vae_oracles.exact_posterior())


# ---- what is the user's own


def scaled(sign):
    """z = x exp(a), with the sign of its log-determinant."""

    def way(up):
        def mapped(params, x, condition=None):
            log_det = up * sign * params * x[0].size
            return x * jnp.exp(up * params), jnp.broadcast_to(log_det, x.shape[:1])

        return mapped

    return bijectors.Bijector(
        lambda key, x, condition=None: jnp.zeros(()), way(1), way(-1)
    )


@pytest.mark.parametrize("shape", [(1,), (2, 3)])
def test_a_sign_error_in_a_users_bijector_fails(shape):
    verify.require(verify.bijector(scaled(1), shape))
    found = verify.bijector(scaled(-1), shape, params=jnp.asarray(0.7))
    failed = [r.name for r in found if not r.passed]
    wanted = ["log-det to the latent is autodiff's", "log-det to data is autodiff's"]
    assert failed == wanted + ["the density integrates to 1"] * (shape == (1,))
    assert found[0].observed == pytest.approx(-0.7 * np.prod(shape))
    assert found[0].expected == pytest.approx(0.7 * np.prod(shape))
    with pytest.raises(ValueError, match=r"did not pass\n.*observed(.|\n)*autodiff"):
        verify.require(found)


def test_a_bijector_that_looks_at_the_batch_fails():
    centred = bijectors.without_params(
        lambda x: (x - 0.1 * x.mean(0)[None], bijectors.no_change(x)),
        lambda z: (z, bijectors.no_change(z)),
    )
    found = {r.name: r for r in verify.bijector(centred, (3,))}
    assert not found["examples do not mix"].passed


class Wrong(schedules.RectifiedFlow):
    """A straight path, whose log_snr is that of alpha / sigma."""

    def log_snr(self, t):
        return 0.5 * super().log_snr(t)


def test_a_users_schedule_and_sampler_are_checked():
    verify.require(verify.schedule(schedules.RectifiedFlow()))
    failed = {r.name for r in verify.schedule(Wrong()) if not r.passed}
    assert "log_snr is log(alpha^2 / sigma^2)" in failed
    assert "inverse gives the time back" in failed
    found = {r.name: r for r in verify.sampler(samplers.euler, order=2)}
    record = found["observed order, from 128 to 256 steps"]
    assert record.observed == pytest.approx(1, abs=0.1)
    assert (record.relation, record.expected, record.passed) == (">=", 2, False)


# ---- records and the command


def test_records_compare_as_they_say():
    same = records.equal("a", [1.0, np.inf, 5.0], [1.0, np.inf, 5.3], [1.0, 1.0, 0.5])
    assert same == ("a", 5.0, 5.3, 0.5, "=")
    assert same.passed
    assert same.error == pytest.approx(0.3)
    assert not records.equal("a", np.nan, 1, 1).passed
    assert not records.equal("a", [1.0, np.nan, 9.0], 1, 1).error >= 0
    assert not records.equal("a", 1 + 1e-12, 1, 0).passed
    assert records.at_most("a", [1.0, -9.0], 1).passed
    assert records.at_most("a", 1.2, 1).error == pytest.approx(0.2)
    assert records.at_most("a", 0.2, 1).error == 0
    assert not records.at_most("a", np.nan, 1).passed
    assert records.at_least("a", [3.0, 0.9], 1, 0.2).passed
    assert not records.at_least("a", -np.inf, 1, 0.2).passed
    told = records.equal("a", np.inf, 1.0, 1.0).to_dict()
    assert (told["observed"], told["error"], told["passed"]) == ("inf", "inf", False)


def test_verify_prints_a_table_or_json_and_exits_by_what_it_found(capsys, monkeypatch):
    oracles = {"gan": (gan_oracles.distances,), "vae": (vae_oracles.scales,)}
    monkeypatch.setattr(verify, "ORACLES", oracles)
    status, out, err = call(capsys, "verify")
    assert (status, err) == (0, "")
    assert "6 of 6 passed" in out
    assert out.count("pass\n") == 6
    status, out, err = call(capsys, "verify", "gan", "--json")
    told = json.loads(out)
    assert (status, told["passed"], list(told["families"])) == (0, True, ["gan"])
    assert {"observed", "expected", "tolerance", "error", "passed"} <= told["families"][
        "gan"
    ][0].keys()
    monkeypatch.setattr(gan, "wasserstein", lambda r, f: gan.Payoff(r - f, -f))
    status, out, err = call(capsys, "verify", "gan")
    assert status == 1
    assert "2 of 3 passed" in out
    assert "FAIL" in out
    status, _, err = call(capsys, "verify", "gam")
    assert status == 2
    assert "unknown family 'gam'; did you mean 'gan'?" in err
    with pytest.raises(ValueError, match="unknown family 'gam'"):
        verify.run("gam")
