"""One update for every family: order, freezing, masks, averages, device layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.train import update


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0, 3.0])
def test_make_update_alternates_players_on_the_dirac_gan(rate):
    model = toys.dirac_gan()
    optimizers, state = toys.start(model, rate)
    advance = update.make_update(model, optimizers, num_steps=10)
    batch = {"x": jnp.zeros((4,))}

    def step(values):
        params = {"discriminator": values[0], "generator": values[1]}
        new, _ = advance(state._replace(params=params), batch, jax.random.key(0))
        return jnp.stack([new.params["discriminator"], new.params["generator"]])

    def simultaneous(values):
        gradients = jnp.stack(
            [
                jax.grad(lambda psi: jax.nn.softplus(psi * values[1]))(values[0]),
                jax.grad(lambda theta: jax.nn.softplus(-values[0] * theta))(values[1]),
            ]
        )
        return values - rate * gradients

    radius = lambda f: max(abs(np.linalg.eigvals(jax.jacobian(f)(jnp.zeros(2)))))
    # Alternating steps neither grow nor shrink (h <= 4); simultaneous ones spiral out.
    np.testing.assert_allclose(radius(step), 1.0, atol=1e-6)
    np.testing.assert_allclose(
        radius(simultaneous), np.sqrt(1 + rate**2 / 4), rtol=1e-6
    )


def test_make_update_lets_the_second_player_see_the_first_ones_result():
    model = toys.dirac_gan(loss=lambda t: t)  # linear: the steps can be done by hand
    optimizers, state = toys.start(model, 0.1)
    advance = jax.jit(update.make_update(model, optimizers, num_steps=10))
    new, _ = advance(state, {"x": jnp.zeros((4,))}, jax.random.key(0))
    psi = 0.3 - 0.1 * 0.7
    np.testing.assert_allclose(new.params["discriminator"], psi, rtol=1e-6)
    np.testing.assert_allclose(new.params["generator"], 0.7 + 0.1 * psi, rtol=1e-6)


def test_make_update_freezes_the_other_player_bitwise():
    model = toys.dirac_gan()
    optimizers, state = toys.start(model)
    optimizers["generator"] = optax.set_to_zero()
    advance = jax.jit(update.make_update(model, optimizers, num_steps=10))
    state = state._replace(
        opt_state={n: optimizers[n].init(state.params[n]) for n in optimizers}
    )
    new, _ = advance(state, {"x": jnp.zeros((4,))}, jax.random.key(0))
    assert float(new.params["generator"]) == float(state.params["generator"])
    assert float(new.params["discriminator"]) != float(state.params["discriminator"])


def test_make_update_repeats_a_player_with_fresh_noise_and_carries_extra():
    model = toys.noisy_mean(updates_per_step=3)
    optimizers, state = toys.start(model)
    advance = jax.jit(update.make_update(model, optimizers, num_steps=10))
    batch = {"x": jnp.ones((4, 1, 1, 1))}
    thrice, _ = advance(state, batch, jax.random.key(0))
    assert int(thrice.extra) == 3
    assert int(thrice.step) == 1
    # Three repeats with the same noise would be gradient descent on one fixed target.
    once = jax.jit(update.make_update(toys.noisy_mean(), optimizers, num_steps=10))
    first = once(state, batch, jax.random.key(0))[0].params["fit"]["mean"]
    same_noise = first * (1 + 0.8 + 0.8**2)
    assert abs(float(thrice.params["fit"]["mean"] - same_noise)) > 1e-3


def test_make_update_draws_fresh_noise_each_step_and_for_each_example():
    model = toys.noisy_mean()
    optimizers, state = toys.start(model, 0.0)
    advance = jax.jit(update.make_update(model, optimizers, num_steps=10))
    losses = []
    for num in (1, 1, 64):
        state, metrics = advance(
            state, {"x": jnp.zeros((num, 1, 1, 1))}, jax.random.key(0)
        )
        losses.append(float(metrics["loss/fit"]))
    assert losses[0] != losses[1]
    # The mean of 64 squared normals: 1 +- 0.18; of one squared normal 64 times: anything.
    assert abs(losses[2] - 1.0) < 0.6
    one = {"x": jnp.zeros((64, 1, 1, 1)), "index": jnp.zeros(64, jnp.int32)}
    _, shared = advance(state, one, jax.random.key(0))
    _, own = advance(state, {"x": jnp.zeros((64, 1, 1, 1))}, jax.random.key(0))
    assert float(shared["loss/fit"]) != float(own["loss/fit"])


def test_make_update_ignores_padding():
    model = toys.noisy_mean()
    optimizers, state = toys.start(model)
    advance = jax.jit(update.make_update(model, optimizers, num_steps=10))
    key = jax.random.key(3)
    x = jnp.arange(4.0).reshape(4, 1, 1, 1)
    whole, whole_metrics = advance(state, {"x": x}, key)
    padded = {
        "x": jnp.concatenate([x, jnp.full((3, 1, 1, 1), 1e6)]),
        "mask": jnp.array([1.0] * 4 + [0.0] * 3),
    }
    new, metrics = advance(state, padded, key)
    np.testing.assert_allclose(
        new.params["fit"]["mean"], whole.params["fit"]["mean"], rtol=1e-6
    )
    np.testing.assert_allclose(metrics["half"], whole_metrics["half"], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss/fit"], 2 * metrics["half"], rtol=1e-6)


def test_make_update_gives_progress_as_a_fraction_of_the_run():
    model = toys.noisy_mean()
    optimizers, state = toys.start(model)
    advance = jax.jit(update.make_update(model, optimizers, num_steps=4))
    seen = []
    for _ in range(4):
        state, metrics = advance(
            state, {"x": jnp.ones((2, 1, 1, 1))}, jax.random.key(0)
        )
        seen.append(float(metrics["progress"]))
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_make_update_noise_belongs_to_the_example_on_any_layout():
    model = toys.noisy_mean()
    optimizers, state = toys.start(model)
    advance = jax.jit(update.make_update(model, optimizers, num_steps=10))
    key = jax.random.key(5)
    x = jnp.arange(16.0).reshape(16, 1, 1, 1)
    one, _ = advance(state, {"x": x}, key)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    sharded, _ = advance(everywhere, {"x": spread}, key)
    assert len(spread.sharding.device_set) == 8
    order = np.random.default_rng(0).permutation(16)
    shuffled, _ = advance(state, {"x": x[order], "index": jnp.asarray(order)}, key)
    misplaced, _ = advance(state, {"x": x[order]}, key)
    gap = misplaced.params["fit"]["mean"] - one.params["fit"]["mean"]
    assert abs(float(gap)) > 1e-3
    for other in (sharded, shuffled):
        np.testing.assert_allclose(
            other.params["fit"]["mean"], one.params["fit"]["mean"], rtol=1e-6
        )


def test_average_forgets_half_in_a_half_life():
    model = toys.noisy_mean()
    optimizers, state = toys.start(model, 0.0)  # parameters stay where they are
    advance = jax.jit(
        update.make_update(model, optimizers, num_steps=1000, ema_half_life=0.02)
    )
    state = state._replace(step=jnp.int32(500), ema={"fit": {"mean": jnp.float32(1.0)}})
    for _ in range(20):
        state, _ = advance(state, {"x": jnp.ones((2, 1, 1, 1))}, jax.random.key(0))
    np.testing.assert_allclose(state.ema["fit"]["mean"], 0.5, rtol=1e-5)


def test_average_is_the_plain_mean_at_first_and_a_copy_when_off():
    model = toys.noisy_mean()
    optimizers, state = toys.start(model, 0.1)
    batch = {"x": jnp.ones((2, 1, 1, 1))}
    advance = update.make_update(model, optimizers, num_steps=1000, ema_half_life=0.5)
    advance = jax.jit(advance)
    plain = jax.jit(update.make_update(model, optimizers, num_steps=1000))
    means, other = [], state
    for _ in range(5):
        state, _ = advance(state, batch, jax.random.key(0))
        other, _ = plain(other, batch, jax.random.key(0))
        means.append(float(state.params["fit"]["mean"]))
        assert float(other.ema["fit"]["mean"]) == float(other.params["fit"]["mean"])
    np.testing.assert_allclose(state.ema["fit"]["mean"], np.mean(means), rtol=1e-5)


def test_init_state_may_be_donated():
    model = toys.noisy_mean()
    optimizers, state = toys.start(model)
    advance = update.make_update(model, optimizers, num_steps=10, ema_half_life=0.1)
    donating = jax.jit(advance, donate_argnums=0)
    batch = {"x": jnp.ones((2, 1, 1, 1))}
    new, _ = donating(state, batch, jax.random.key(0))
    donating(new, batch, jax.random.key(0))
    assert state.params["fit"]["mean"].is_deleted()


def test_init_state_names_a_player_without_optimizer():
    model = toys.dirac_gan()
    with pytest.raises(ValueError, match="optimizers has the players"):
        update.init_state(
            model, {"generator": optax.sgd(1.0)}, jax.random.key(0), {"x": jnp.zeros(1)}
        )
