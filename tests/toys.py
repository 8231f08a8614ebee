"""Small models with known answers, as the contract of `jaxgen.models.base` has them."""

import jax
import jax.numpy as jnp
import optax

from jaxgen.models.base import Aux, Model, Player, example_keys
from jaxgen.train import update


def dirac_gan(loss=jax.nn.softplus):
    """Dirac-GAN (Mescheder et al. 2018): data at 0, fake at theta, D(x) = psi x."""

    def discriminator(params, extra, batch, key, progress):
        real = params["discriminator"] * batch["x"].reshape(-1)
        fake = _fake(params, batch)
        return loss(fake) + loss(-real), Aux({})

    def generator(params, extra, batch, key, progress):
        return loss(-_fake(params, batch)), Aux({})

    def _fake(params, batch):
        num = batch["x"].shape[0]
        return jnp.full(num, params["discriminator"] * params["generator"])

    return Model(
        init=lambda key, batch: (
            {"discriminator": jnp.float32(0.3), "generator": jnp.float32(0.7)},
            (),
        ),
        players=(
            Player("discriminator", discriminator),
            Player("generator", generator),
        ),
        prior=lambda keys, params=None: jnp.zeros((keys.shape[0], 1)),
        generate=lambda params, z, keys, condition=None: z + params["generator"],
    )


def noisy_mean(updates_per_step=1):
    """One parameter fitted to the data's mean under per-example noise."""

    def objective(params, extra, batch, key, progress):
        noise = jax.vmap(jax.random.normal)(example_keys(key, batch))
        x = batch["x"].reshape(batch["x"].shape[0], -1).mean(axis=1)
        # The noise grows with x: whose noise it is matters to the gradient.
        squared = jnp.square(x + (1 + x) * noise - params["fit"]["mean"])
        return squared, Aux({"progress": progress, "half": 0.5 * squared}, extra + 1)

    return Model(
        init=lambda key, batch: ({"fit": {"mean": jnp.float32(0.0)}}, jnp.int32(0)),
        players=(Player("fit", objective, updates_per_step),),
        prior=lambda keys, params=None: jax.vmap(jax.random.normal)(keys),
        generate=lambda params, z, keys, condition=None: z + params["fit"]["mean"],
    )


def start(model, learning_rate=0.1, num_averages=1, **options):
    """The compiled update under plain gradient descent, and the state before it."""
    optimizers = {p.name: optax.sgd(learning_rate) for p in model.players}
    state = update.init_state(
        model, optimizers, jax.random.key(0), pixels(4), num_averages=num_averages
    )
    options = {"num_steps": 10, **options}
    return jax.jit(update.make_update(model, optimizers, **options)), state


def pixels(num, value=1.0):
    """A batch of `num` images of one pixel."""
    return {"x": jnp.full((num, 1, 1, 1), value)}
