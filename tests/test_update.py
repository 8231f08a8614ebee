"""One update for every family: order, freezing, masks, averages, device layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen import averaging
from jaxgen.models.base import Aux, Model, Player
from jaxgen.train import update

KEY = jax.random.key(0)


def fitted(state):
    return float(state.params["fit"]["mean"])


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0, 3.0])
def test_make_update_alternates_players_on_the_dirac_gan(rate):
    advance, state = toys.start(toys.dirac_gan(), rate)

    def step(values):
        params = {"discriminator": values[0], "generator": values[1]}
        new, _ = advance(state._replace(params=params), toys.pixels(4, 0.0), KEY)
        return jnp.stack([new.params["discriminator"], new.params["generator"]])

    def simultaneous(values):
        slope_d = jax.grad(lambda psi: jax.nn.softplus(psi * values[1]))(values[0])
        slope_g = jax.grad(lambda t: jax.nn.softplus(-values[0] * t))(values[1])
        return values - rate * jnp.stack([slope_d, slope_g])

    def radius(f):
        return max(abs(np.linalg.eigvals(jax.jacobian(f)(jnp.zeros(2)))))

    # Alternating steps neither grow nor shrink (h <= 4); simultaneous ones spiral out.
    np.testing.assert_allclose(radius(step), 1.0, atol=1e-6)
    np.testing.assert_allclose(
        radius(simultaneous), np.sqrt(1 + rate**2 / 4), rtol=1e-6
    )


def test_make_update_lets_the_second_player_see_the_first_ones_result():
    # Linear losses: the steps can be done by hand.
    advance, state = toys.start(toys.dirac_gan(loss=lambda t: t), 0.1)
    new, _ = advance(state, toys.pixels(4, 0.0), KEY)
    psi = 0.3 - 0.1 * 0.7
    np.testing.assert_allclose(new.params["discriminator"], psi, rtol=1e-6)
    np.testing.assert_allclose(new.params["generator"], 0.7 + 0.1 * psi, rtol=1e-6)


def test_make_update_freezes_the_other_player_bitwise():
    model = toys.dirac_gan()
    _, state = toys.start(model)
    optimizers = {"discriminator": optax.sgd(0.1), "generator": optax.set_to_zero()}
    opt_state = {n: optimizers[n].init(state.params[n]) for n in optimizers}
    advance = jax.jit(update.make_update(model, optimizers, num_steps=10))
    new, _ = advance(state._replace(opt_state=opt_state), toys.pixels(4, 0.0), KEY)
    assert float(new.params["generator"]) == float(state.params["generator"])
    assert float(new.params["discriminator"]) != float(state.params["discriminator"])


def test_make_update_repeats_a_player_with_fresh_noise_and_carries_extra():
    thrice, state = toys.start(toys.noisy_mean(updates_per_step=3))
    once, _ = toys.start(toys.noisy_mean())
    new, _ = thrice(state, toys.pixels(4), KEY)
    assert int(new.extra) == 3
    assert int(new.step) == 1
    # Three repeats with the same noise would be gradient descent on one fixed target.
    same_noise = fitted(once(state, toys.pixels(4), KEY)[0]) * (1 + 0.8 + 0.8**2)
    assert abs(fitted(new) - same_noise) > 1e-3


def test_make_update_leaves_extra_alone_where_a_player_says_nothing():
    def player(name, extra_of):
        def objective(params, extra, batch, key, progress):
            loss = jnp.square(params[name] - batch["x"].reshape(-1))
            return loss, Aux({}, extra_of(extra))

        return Player(name, objective)

    model = Model(
        init=lambda key, batch: (
            {"a": jnp.zeros(()), "b": jnp.zeros(())},
            jnp.zeros(()),
        ),
        players=(player("a", lambda extra: extra + 1), player("b", lambda extra: None)),
        prior=lambda keys: keys,
        generate=lambda params, z, keys, condition=None: z,
    )
    advance, state = toys.start(model)
    for count in (1, 2):
        state, _ = advance(state, toys.pixels(4), KEY)
        assert float(state.extra) == count


def test_make_update_refuses_two_players_with_one_term():
    def objective(params, extra, batch, key, progress):
        loss = batch["x"].reshape(-1) * (params["a"] + params["b"])
        return loss, Aux({"term": loss})

    model = Model(
        init=lambda key, batch: ({"a": jnp.zeros(()), "b": jnp.zeros(())}, ()),
        players=(Player("a", objective), Player("b", objective)),
        prior=lambda keys: keys,
        generate=lambda params, z, keys, condition=None: z,
    )
    advance, state = toys.start(model)
    with pytest.raises(ValueError, match="two players have the metric .'term'."):
        advance(state, toys.pixels(4), KEY)


def test_make_update_draws_fresh_noise_each_step_and_for_each_example():
    advance, state = toys.start(toys.noisy_mean(), 0.0)
    batch = {"x": jnp.zeros((64, 1, 1, 1))}
    first, metrics = advance(state, batch, KEY)
    _, later = advance(first, batch, KEY)
    assert float(metrics["loss/fit"]) != float(later["loss/fit"])
    # The mean of 64 squared normals is 1 +- 0.18; of one of them, it is that one.
    assert abs(float(metrics["loss/fit"]) - 1.0) < 0.6
    shared = {**batch, "index": jnp.zeros(64, jnp.int32)}
    assert float(advance(state, shared, KEY)[1]["loss/fit"]) != float(
        metrics["loss/fit"]
    )


@pytest.mark.parametrize("padding", [1e6, np.nan])
def test_make_update_ignores_padding_whatever_it_holds(padding):
    advance, state = toys.start(toys.noisy_mean())
    x = jnp.arange(4.0).reshape(4, 1, 1, 1)
    whole, whole_metrics = advance(state, {"x": x}, KEY)
    padded = {
        "x": jnp.concatenate([x, jnp.full((3, 1, 1, 1), padding)]),
        "mask": jnp.array([1.0] * 4 + [0.0] * 3),
    }
    new, metrics = advance(state, padded, KEY)
    np.testing.assert_allclose(metrics["half"], whole_metrics["half"], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss/fit"], 2 * metrics["half"], rtol=1e-6)
    if np.isfinite(padding):  # through a NaN no gradient is defined: 0 * NaN
        np.testing.assert_allclose(fitted(new), fitted(whole), rtol=1e-6)


def test_make_update_gives_progress_as_a_fraction_of_the_run():
    advance, state = toys.start(toys.noisy_mean(), num_steps=4)
    seen = []
    for _ in range(4):
        state, metrics = advance(state, toys.pixels(2), KEY)
        seen.append(float(metrics["progress"]))
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_make_update_noise_belongs_to_the_example_on_any_layout():
    advance, state = toys.start(toys.noisy_mean())
    x = jnp.arange(16.0).reshape(16, 1, 1, 1)
    one, _ = advance(state, {"x": x}, KEY)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    sharded, _ = advance(everywhere, {"x": spread}, KEY)
    assert len(spread.sharding.device_set) == 8
    order = np.random.default_rng(0).permutation(16)
    shuffled, _ = advance(state, {"x": x[order], "index": jnp.asarray(order)}, KEY)
    for other in (sharded, shuffled):
        np.testing.assert_allclose(fitted(other), fitted(one), rtol=1e-6)
    misplaced, _ = advance(state, {"x": x[order]}, KEY)
    assert abs(fitted(misplaced) - fitted(one)) > 1e-3


def test_average_forgets_half_in_a_half_life():
    options = {"num_steps": 1000, "ema_half_life": 0.02}
    advance, state = toys.start(toys.noisy_mean(), 0.0, **options)  # nothing moves
    one = {"fit": {"mean": jnp.float32(1.0)}}
    state = state._replace(step=jnp.int32(500), averages=(one,))
    for _ in range(20):
        state, _ = advance(state, toys.pixels(2), KEY)
    np.testing.assert_allclose(state.ema["fit"]["mean"], 0.5, rtol=1e-5)


def test_average_is_the_plain_mean_at_first_and_a_copy_when_off():
    averaging, state = toys.start(toys.noisy_mean(), num_steps=1000, ema_half_life=0.5)
    plain, other = toys.start(toys.noisy_mean(), num_steps=1000)
    means = []
    for _ in range(5):
        state, _ = averaging(state, toys.pixels(2), KEY)
        other, _ = plain(other, toys.pixels(2), KEY)
        means.append(fitted(state))
        assert float(other.ema["fit"]["mean"]) == fitted(other)
    np.testing.assert_allclose(state.ema["fit"]["mean"], np.mean(means), rtol=1e-5)


def test_averages_of_widths_follow_the_parameters_each_with_its_own_weight():
    advance, state = toys.start(
        toys.noisy_mean(), num_steps=50, num_averages=2, ema_widths=(0.05, 0.2)
    )
    gammas = [averaging.width_to_gamma(width) for width in (0.05, 0.2)]
    expected = [0.0, 0.0]
    for step in range(1, 6):
        state, _ = advance(state, toys.pixels(2), KEY)
        for i, gamma in enumerate(gammas):
            kept = (1 - 1 / step) ** (gamma + 1)
            expected[i] = kept * expected[i] + (1 - kept) * fitted(state)
    found = [float(average["fit"]["mean"]) for average in state.averages]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert float(state.ema["fit"]["mean"]) == found[0] != found[1]


def test_init_state_may_be_donated():
    model = toys.noisy_mean()
    _, state = toys.start(model)
    optimizers = {"fit": optax.sgd(0.1)}
    advance = update.make_update(model, optimizers, num_steps=10, ema_half_life=0.1)
    donating = jax.jit(advance, donate_argnums=0)
    new, _ = donating(state, toys.pixels(2), KEY)
    donating(new, toys.pixels(2), KEY)
    assert state.params["fit"]["mean"].is_deleted()


def test_init_state_names_a_player_without_optimizer():
    with pytest.raises(ValueError, match="optimizers has the players"):
        update.init_state(
            toys.dirac_gan(), {"generator": optax.sgd(1.0)}, KEY, toys.pixels(1)
        )
