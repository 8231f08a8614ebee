"""Schedules and time grids: identities, golden numbers, derivatives, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import schedules, verify

CASES = {name: make() for name, make in schedules.SCHEDULES.items()}
CASES["learned"] = schedules.LearnedGamma.init(jax.random.key(1))
INSIDE = np.linspace(0.001, 0.999, 999)


@pytest.fixture(params=sorted(CASES))
def schedule(request):
    return CASES[request.param]


# ---- every schedule


def test_schedules_are_read_only_and_keep_to_the_protocol(schedule):
    assert isinstance(schedule, schedules.Schedule)
    with pytest.raises(TypeError, match="does not support item assignment"):
        schedules.SCHEDULES["new"] = schedules.EDM


@pytest.mark.parametrize("name", sorted(CASES))
def test_schedules_pass_their_oracle(name):
    preserves = name in ("ddpm", "cosine", "learned")
    verify.require(verify.schedule(CASES[name], preserves_variance=preserves))


def test_inverse_gives_the_time_back_in_float32(schedule):
    single = INSIDE.astype(np.float32)
    got = schedule.inverse(schedule.log_snr(single))
    np.testing.assert_allclose(got, single, atol=1e-5)


def test_inverse_has_the_derivative_of_the_inverse_function(schedule):
    with jax.enable_x64(True):
        t = np.linspace(0.05, 0.95, 7)
        down = jax.vmap(jax.grad(schedule.log_snr))(t)
        back = jax.vmap(jax.grad(schedule.inverse))(schedule.log_snr(t))
        np.testing.assert_allclose(back, 1 / down, rtol=1e-7)


def test_alpha_and_sigma_are_finite_at_the_ends_and_of_one_shape(schedule):
    for t in (np.zeros((2, 3), np.float32), jnp.ones(()), 1, np.float16([0, 1])):
        for value in (schedule.alpha(t), schedule.sigma(t)):
            assert value.shape == np.shape(t)
            assert value.dtype == jnp.float32
            assert np.all(np.isfinite(value))
        assert not np.any(np.isnan(schedule.log_snr(t)))


def test_schedule_in_float32_is_near_float64(schedule):
    t = np.linspace(0, 1, 1001).astype(np.float32)
    single = schedule.alpha(t), schedule.sigma(t)
    with jax.enable_x64(True):
        double = schedule.alpha(t.astype(float)), schedule.sigma(t.astype(float))
    np.testing.assert_allclose(single[0], double[0], rtol=2e-5, atol=1e-30)
    np.testing.assert_allclose(single[1], double[1], rtol=2e-5, atol=1e-30)


def test_drift_and_diffusion_of_a_rectified_flow_in_closed_form():
    f, g_squared = schedules.drift_and_diffusion(CASES["rectified_flow"], 0.0)
    np.testing.assert_allclose((f, g_squared), (-1, 0))
    f, g_squared = schedules.drift_and_diffusion(CASES["rectified_flow"], 0.75)
    np.testing.assert_allclose((f, g_squared), (-4, 6), rtol=1e-6)


# ---- golden numbers


@pytest.mark.parametrize(("num_steps", "beta_max"), [(1000, 0.02), (200, 0.03)])
def test_ddpm_at_its_steps_is_the_product_of_the_betas(num_steps, beta_max):
    with jax.enable_x64(True):
        schedule = schedules.DDPM(beta_max=beta_max, num_steps=num_steps)
        kept = np.cumprod(1 - np.linspace(1e-4, beta_max, num_steps))
        t = np.arange(1, num_steps + 1) / num_steps
        np.testing.assert_allclose(schedule.alpha(t) ** 2, kept, rtol=1e-12)
        ratio = np.asarray(schedule.sigma(t) / schedule.alpha(t))
    if num_steps == 1000:
        np.testing.assert_allclose(kept[-1], 4.0358e-5, rtol=1e-5)
        np.testing.assert_allclose(ratio[[0, -1]], (0.0100, 157.41), rtol=1e-4)


def test_cosine_betas_clip_one_and_multiply_to_the_schedule():
    betas = schedules.cosine_betas(1000)
    assert betas.dtype == np.float64
    assert np.sum(betas == 0.999) == 1
    np.testing.assert_allclose(np.prod(1 - betas), 2.43e-9, rtol=2e-3)
    with jax.enable_x64(True):
        alpha = CASES["cosine"].alpha(np.arange(1, 1000) / 1000)
    np.testing.assert_allclose(np.cumprod(1 - betas)[:-1], alpha**2, rtol=1e-9)


def test_posterior_of_ddpm_keeps_the_marginals():
    with jax.enable_x64(True):
        kept = np.asarray(CASES["ddpm"].alpha(np.arange(1001) / 1000)) ** 2
    before, kept = kept[:-1], kept[1:]
    beta = 1 - kept / before
    from_x0 = beta * np.sqrt(before) / (1 - kept)
    from_x_t = (1 - before) * np.sqrt(1 - beta) / (1 - kept)
    variance = beta * (1 - before) / (1 - kept)
    np.testing.assert_allclose(
        from_x0 + from_x_t * np.sqrt(kept), np.sqrt(before), rtol=1e-10
    )
    np.testing.assert_allclose(
        from_x_t**2 * (1 - kept) + variance, 1 - before, rtol=1e-10, atol=1e-13
    )


GOLDEN_EDM = (
    "80 57.586 40.786 28.375 19.353 12.910 8.4009 5.3152 3.2568 1.9233 1.0882 .5853 "
    ".2964 .1395 .0599 .0229 .0075 .002"
)


def test_karras_times_are_the_golden_grid_of_edm():
    times = schedules.karras_times(CASES["edm"], 18)
    golden = np.array(GOLDEN_EDM.split(), float)
    np.testing.assert_allclose(CASES["edm"].sigma(times), golden, rtol=1e-4, atol=5e-5)
    # Of EDM itself the grid is uniform in time.
    np.testing.assert_allclose(times, np.linspace(1, 0, 18), atol=1e-5)


@pytest.mark.parametrize("name", sorted(CASES))
def test_karras_times_have_one_noise_on_every_schedule(name):
    schedule, ends = CASES[name], {"sigma_min": 0.02, "sigma_max": 10.0}
    with jax.enable_x64(True):
        times = schedules.karras_times(schedule, 9, **ends)
        sigma = schedule.sigma(times) / schedule.alpha(times)
        roots = np.linspace(10 ** (1 / 7), 0.02 ** (1 / 7), 9)
        np.testing.assert_allclose(sigma, roots**7, rtol=1e-9)
    assert np.all(np.diff(times) < 0)
    (first,) = schedules.karras_times(schedule, 1, **ends)
    np.testing.assert_allclose(first, times[0], rtol=1e-5)
    compiled = jax.jit(lambda s: schedules.karras_times(s, 9, **ends))
    if name == "learned":
        np.testing.assert_allclose(compiled(schedule), times, rtol=1e-5)


def test_uniform_times_include_both_ends():
    np.testing.assert_allclose(
        schedules.uniform_times(4, end=0.1), (1, 0.7, 0.4, 0.1), rtol=1e-6
    )
    assert schedules.uniform_times(1, start=0.9, end=0.1).tolist() == pytest.approx(
        [0.9]
    )


def test_respaced_times_are_steps_of_the_schedule():
    np.testing.assert_array_equal(
        schedules.respaced_times(1000), np.arange(1000, 0, -1, np.float32) / 1000
    )
    for num_times in (1, 2, 10, 63, 999):
        steps = np.asarray(schedules.respaced_times(num_times)) * 1000
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
        assert steps[0] == 1000
        assert num_times == 1 or np.isclose(steps[-1], 1)
        assert np.all(np.diff(np.round(steps)) <= -1)
        assert np.ptp(np.diff(np.round(steps))) <= 1 if num_times > 2 else True


# ---- the learned schedule


@pytest.mark.parametrize("seed", range(3))
def test_learned_gamma_meets_its_ends_whatever_its_parameters(seed):
    # VDM's network takes the ends as arguments and ignores them.
    schedule = schedules.LearnedGamma.init(
        jax.random.key(seed), log_snr_max=11.7, log_snr_min=-4.3
    )
    leaves, tree = jax.tree.flatten(schedule)
    keys = jax.random.split(jax.random.key(seed + 10), len(leaves))
    leaves = [
        leaf + 5 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    changed = jax.tree.unflatten(tree, leaves)
    for learned in (schedule, changed):
        ends = learned.log_snr(np.array([0, 1], np.float32))
        np.testing.assert_array_equal(ends, np.float32([11.7, -4.3]))
        t = np.linspace(0, 1, 1001).astype(np.float32)
        assert np.all(np.diff(learned.log_snr(t)) <= 0)
    inside = np.float32([0.3, 0.6])
    assert np.all(np.abs(changed.log_snr(inside) - schedule.log_snr(inside)) > 0.01)


def test_learned_gamma_gives_gradients_to_all_its_parameters():
    def inside(schedule, t):
        return jnp.sum(schedule.log_snr(t) ** 2) + jnp.sum(schedule.inverse(t))

    grads = jax.grad(inside)(CASES["learned"], np.float32([0.2, 0.7]))
    for leaf in jax.tree.leaves(grads):
        assert np.all(np.isfinite(leaf))
        assert np.all(leaf != 0)
    ends = jax.grad(lambda s: s.log_snr(0.0) + s.log_snr(1.0))(CASES["learned"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(ends))


# ---- messages


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: schedules.EDM(sigma_min=2.0, sigma_max=1.0),
            r"EDM: sigma_min must be below sigma_max, got 2.0 and 1.0",
        ),
        (
            lambda: schedules.GeometricVE(sigma_min=0.0),
            r"GeometricVE: sigma_min must be positive, got 0.0",
        ),
        (lambda: schedules.EDM(rho=0.0), r"EDM: rho must be positive"),
        (
            lambda: schedules.DDPM(num_steps=50),
            r"DDPM: beta_max must .* got 0.02 in 50 steps; take more",
        ),
        (lambda: schedules.DDPM(beta_max=1.0), r"DDPM: beta_max must be below 1"),
        (lambda: schedules.Cosine(offset=0.0), r"Cosine: offset must be positive"),
        (
            lambda: schedules.LearnedGamma.init(jax.random.key(0), log_snr_max=-6.0),
            r"LearnedGamma.init: log_snr_max must be above log_snr_min, got -6.0",
        ),
        (
            lambda: schedules.karras_times(schedules.EDM(sigma_max=50.0), 4),
            r"karras_times: sigma_min 0.002 to sigma_max 80.0 must be within EDM\(",
        ),
        (
            lambda: schedules.karras_times(schedules.EDM(), 0),
            r"karras_times: num_times must be positive, got 0",
        ),
        (
            lambda: schedules.uniform_times(4, start=0.1, end=1.0),
            r"uniform_times: .* got start 0.1 and end 1.0",
        ),
        (
            lambda: schedules.respaced_times(1001),
            r"respaced_times: num_times must be in 1..num_steps = 1000, got 1001",
        ),
        (lambda: schedules.cosine_betas(0), r"cosine_betas: num_steps must be pos"),
    ],
)
def test_schedules_name_wrong_arguments(plain_errors, call, match):
    with pytest.raises(ValueError, match=match):
        call()
