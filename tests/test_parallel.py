"""One result on any layout: devices, wrappings, steps per dispatch, accumulation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from jaxgen import data, tasks
from jaxgen._checks import UserError
from jaxgen.columns import Column
from jaxgen.losses import balance
from jaxgen.models import diffusion, flow, gan, masked, vae
from jaxgen.models.base import Aux, Model, Player, example_keys
from jaxgen.train import parallel, update

BATCH, STEPS, NUM = 16, 20, 64
KEY = jax.random.key(7)


def small_vae():
    config = vae.VAEConfig(
        latent_dim=3,
        net="mlp",
        hidden=(16,),
        likelihood="bernoulli",
        shape=(4, 4, 1),
        gradient="analytic",
    )
    return vae.make_vae(config)


def balanced_vae():
    """With a computed sigma and the multiplier of GECO carried along."""
    config = vae.VAEConfig(latent_dim=3, hidden=(16,), likelihood="gaussian", geco=0.1)
    return vae.make_vae(vae.resolve(config, (4, 4, 1), None)[0])


def asked_vae():
    """That is told a smaller image under noise, of levels that are drawn."""
    config = vae.VAEConfig(latent_dim=3, hidden=(16,), likelihood="bernoulli")
    planes = tasks.enlarge(2).num_planes(1)
    return vae.make_vae(vae.resolve(config, (4, 4, 1), None, num_planes=planes)[0])


def small_diffusion():
    config = diffusion.DiffusionConfig(
        widths=(8,), blocks=1, conditional=True, num_classes=3, shape=(4, 4, 1), patch=1
    )
    return diffusion.make_diffusion(config)


def small_flow():
    config = flow.FlowConfig(width=8, layers=1, bins=3, conditional=True)
    return flow.make_flow(flow.resolve(config, (4, 4, 1), None, 3)[0])


def table_flow():
    columns = tuple(Column(name=name, deviation=0.3) for name in "abc")
    config = flow.FlowConfig(width=8, depth=2, bins=3)
    return flow.make_flow(flow.resolve(config, (3,), None, None, columns)[0])


def small_gan():
    """With every kind of key and the state of its augmentation."""
    config = gan.GANConfig(
        width=8, latent_dim=4, conditional=True, augment=0.5, adaptive=True, gamma=1e-3
    )
    return gan.make_gan(gan.resolve(config, (4, 4, 1), None, 3)[0])


def small_masked():
    config = masked.MaskedConfig(width=8, depth=1, head_width=4)
    return masked.make_masked(masked.resolve(config, (12,), None)[0])


def linear_gan():
    """A GAN of two linear players with latent noise, so that examples differ."""

    def fakes(params, batch, key):
        z = jax.vmap(lambda k: jax.random.normal(k, (16,)))(example_keys(key, batch))
        own = params["generator"]
        return z * own["scale"][None] + own["shift"][None]

    def discriminator(params, extra, batch, key, progress):
        own = params["discriminator"]["w"]
        real = batch["x"].reshape(-1, 16) @ own
        loss = jax.nn.softplus(fakes(params, batch, key) @ own) + jax.nn.softplus(-real)
        # The mean image so far: state that is carried, and not differentiated.
        mean = 0.9 * extra + 0.1 * jnp.mean(batch["x"], axis=0)
        return loss, Aux({"real": real}, mean)

    def generator(params, extra, batch, key, progress):
        return jax.nn.softplus(
            -(fakes(params, batch, key) @ params["discriminator"]["w"])
        ), Aux({"progress": progress})

    def init(key, batch):
        del batch
        params = {
            "discriminator": {"w": 0.1 * jax.random.normal(key, (16,))},
            "generator": {"scale": jnp.ones(16), "shift": jnp.zeros(16)},
        }
        return params, jnp.zeros((4, 4, 1))

    return Model(
        init=init,
        players=(
            Player("discriminator", discriminator, updates_per_step=2),
            Player("generator", generator),
        ),
        prior=lambda keys: keys,
        generate=lambda params, z, keys, condition=None: z,
    )


MODELS = {
    "vae": (small_vae, (4, 4, 1)),
    "balanced": (balanced_vae, (4, 4, 1)),
    "asked": (asked_vae, (4, 4, 1)),
    "diffusion": (small_diffusion, (4, 4, 1)),
    "flow": (small_flow, (4, 4, 1)),
    "table": (table_flow, (3,)),
    "gan": (small_gan, (4, 4, 1)),
    "masked": (small_masked, (12,)),
    "linear_gan": (linear_gan, (4, 4, 1)),
    "dirac": (toys.dirac_gan, (1, 1, 1)),
}


# One average by half-life, several by width, and none.
AVERAGES = {
    "vae": {"ema_half_life": 0.2},
    "balanced": {"ema_half_life": 0.2},
    "asked": {"ema_half_life": 0.2},
    "diffusion": {"ema_widths": (0.05, 0.1)},
    "flow": {"ema_half_life": 0.2},
    "table": {"ema_half_life": 0.2},
    "gan": {"ema_half_life": 0.2},
    "masked": {"ema_half_life": 0.2},
    "linear_gan": {"ema_widths": (0.05, 0.1)},
    "dirac": {},
}


# Twenty updates of a network with norms, attention or sines make more of rounding.
TOLERANCES = {
    "diffusion": 1e-3,
    "flow": 3e-4,
    "table": 3e-4,
    "gan": 1e-4,
    "masked": 3e-4,
}


def fetch(resident, item):
    examples = {name: a[item["rows"]] for name, a in resident.items()}
    return {**examples, "mask": item["mask"]}


def batches():
    """Rows of the data set, with a mask that drops some, not the same on each device."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        mask = (rng.random(BATCH) > 0.2).astype(np.float32)
        yield {"rows": rng.integers(0, NUM, BATCH).astype(np.int32), "mask": mask}


def train(name, *, kind="sharded", devices=1, num_steps=1, num_parts=1):
    """State and metrics after STEPS updates on the layout."""
    make, shape = MODELS[name]
    model = make()
    prepare = lambda batch, key: batch
    if name == "asked":  # as a run's update does: bytes to numbers, then the condition
        config = data.DataConfig(task="enlarge", transform="dequantise")
        prepare = data.make_prepare(config, training=True)
    layout = parallel.Layout(kind, devices, batch_size=BATCH, num_parts=num_parts)
    # Adam with its usual eps makes a whole step of a gradient that is rounding alone.
    optimizers = {p.name: optax.adam(0.01, eps=1e-3) for p in model.players}
    advance = update.make_update(
        model,
        optimizers,
        num_steps=STEPS,
        **AVERAGES[name],
        num_parts=num_parts,
        axis_name=layout.axis_name,
        prepare=prepare,
    )
    x = jax.random.uniform(jax.random.key(1), (NUM, *shape))
    if name == "masked":
        x = (256 * x).astype(jnp.int32)
    if name == "asked":
        x = (256 * x).astype(jnp.uint8)
    first = prepare({"x": x}, KEY)
    num_averages = len(AVERAGES[name].get("ema_widths", "1"))
    state = update.init_state(
        model, optimizers, jax.random.key(0), first, num_averages=num_averages
    )
    arrays = {"x": x, "label": np.arange(NUM) % 3}
    state, resident = layout.place(state), layout.place_resident(arrays)
    items = [{n: a[layout.rows] for n, a in item.items()} for item in batches()]
    program = layout.compile(
        advance, fetch, (state, resident, items[0], KEY), num_steps
    )
    record = []
    while items:
        now, items = items[: program.num_steps], items[program.num_steps :]
        placed = layout.place_items(now, program.num_steps)
        state, metrics = program.run(state, resident, placed, np.int32(len(now)), KEY)
        jax.block_until_ready(metrics)
        record.append({n: np.asarray(v)[: len(now)] for n, v in metrics.items()})
    joined = {n: np.concatenate([r[n] for r in record]) for n in record[0]}
    return layout, state, joined


@functools.cache
def reference(name):
    _, state, metrics = train(name)
    return jax.tree.map(np.asarray, state), metrics


def assert_same(actual, expected, tolerance=1e-5):
    """Within a share of the largest number of each array.

    Or of a hundredth: a bias without a gradient, as that of keys, is rounding alone.
    """
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = max(float(np.max(np.abs(b))), 1e-2)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def told(state):
    """What a state says: of two sums over parts of a batch it is their ratio."""
    is_error = lambda leaf: isinstance(leaf, balance.Error)
    extra = jax.tree.map(
        lambda leaf: (leaf.mse, leaf.last) if is_error(leaf) else leaf,
        state.extra,
        is_leaf=is_error,
    )
    return state._replace(extra=extra)


LAYOUTS = {
    "sharded": {"devices": 8},
    "sharded on 2, 3 steps": {"devices": 2, "num_steps": 3},
    "fsdp": {"kind": "fsdp", "devices": 8},
    "fsdp, 8 steps, 2 parts": {
        "kind": "fsdp",
        "devices": 4,
        "num_steps": 8,
        "num_parts": 2,
    },
    "pmap": {"kind": "pmap", "devices": 8},
    "pmap, 3 steps, 2 parts": {
        "kind": "pmap",
        "devices": 8,
        "num_steps": 3,
        "num_parts": 2,
    },
    "pmap on one": {"kind": "pmap", "devices": 1},
    "7 steps": {"num_steps": 7},
    "automatic": {"num_steps": 0},
    "4 parts": {"num_parts": 4},
}


# Each wrapping, model and way to cut a batch once; in the slow tests a VAE on all layouts
# and every model on some.
QUICK = {
    ("vae", "sharded"),
    ("vae", "pmap, 3 steps, 2 parts"),
    ("balanced", "pmap, 3 steps, 2 parts"),
    ("balanced", "4 parts"),
    ("asked", "sharded"),
    ("asked", "pmap, 3 steps, 2 parts"),
    ("linear_gan", "fsdp, 8 steps, 2 parts"),
    ("linear_gan", "4 parts"),
    ("masked", "sharded"),
    ("dirac", "sharded on 2, 3 steps"),
    ("dirac", "automatic"),
}
# A U-Net takes half a minute to compile for eight devices, a flow some seconds.
SOME = ("sharded", "fsdp, 8 steps, 2 parts", "pmap, 3 steps, 2 parts")
PAIRS = [
    pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow)
    for pair in itertools.product(MODELS, LAYOUTS)
    if pair[0] == "vae" or pair[1] in SOME or pair in QUICK
]


@pytest.mark.parametrize(("name", "layout"), PAIRS)
def test_every_layout_has_the_numbers_of_one_device(name, layout):
    placed, state, metrics = train(name, **LAYOUTS[layout])
    expected_state, expected_metrics = reference(name)
    states = told(placed.view(state)), told(expected_state)
    assert_same(*states, TOLERANCES.get(name, 1e-5))
    assert_same(metrics, expected_metrics, TOLERANCES.get(name, 1e-5))


def test_pmap_keeps_every_copy_the_same():
    _, state, _ = train("vae", kind="pmap", devices=8)
    for leaf in jax.tree.leaves(state):
        copies = np.asarray(leaf)
        assert copies.shape[0] == 8
        np.testing.assert_array_equal(copies, np.broadcast_to(copies[:1], copies.shape))


def test_fsdp_splits_what_divides():
    _, state, _ = train("vae", kind="fsdp", devices=8)
    kernel = state.params["vae"]["decoder"]["output"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    moments = jax.tree.leaves(state.opt_state["vae"])
    largest = max(moments, key=lambda leaf: leaf.size)
    assert largest.addressable_shards[0].data.size == largest.size // 8


@pytest.mark.parametrize("kind", ["sharded", "fsdp", "pmap"])
def test_the_state_is_donated(kind):
    layout = parallel.Layout(kind, 2, batch_size=BATCH)
    model = toys.dirac_gan()
    optimizers = {p.name: optax.sgd(0.1) for p in model.players}
    advance = update.make_update(
        model,
        optimizers,
        num_steps=9,
        ema_half_life=0.1,
        axis_name=layout.axis_name,
    )
    x = {"x": jnp.zeros((NUM, 1, 1, 1))}
    state = layout.place(update.init_state(model, optimizers, KEY, x))
    resident = layout.place_resident(x)
    item = next(batches())
    program = layout.compile(advance, fetch, (state, resident, item, KEY), 1)
    program.run(state, resident, layout.place_items([item], 1), np.int32(1), KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("kind", ["sharded", "fsdp", "pmap"])
def test_shapes_are_those_of_what_is_placed(kind):
    layout = parallel.Layout(kind, 8, batch_size=BATCH)
    model = small_vae()
    x = {"x": np.zeros((NUM, 4, 4, 1), np.uint8), "label": np.zeros(NUM, np.int64)}
    optimizers = {p.name: optax.adam(0.1) for p in model.players}
    state = update.init_state(model, optimizers, KEY, {"x": x["x"] / 255.0})
    placed = layout.place(state), layout.place_resident(x)
    shapes = layout.shapes(state, x)
    for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_devices": 9, "batch_size": 18}, "--devices 9: this machine has 8"),
        ({"num_devices": 8, "batch_size": 100}, "100 does not .* 96 or 104 does"),
        ({"num_devices": 4, "batch_size": 3}, "3 does not .*; 4 does"),
        ({"num_devices": 4, "batch_size": 12, "num_parts": 2}, "4 devices and 2 parts"),
    ],
)
def test_layout_refuses_what_does_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        parallel.Layout("sharded", **options)


def test_a_loss_over_the_whole_batch_is_not_cut():
    config = vae.VAEConfig(
        latent_dim=2,
        hidden=(8,),
        likelihood="gaussian",
        sigma="optimal",
        shape=(4, 4, 1),
    )
    for options in ({"num_parts": 2}, {"axis_name": "data"}):
        with pytest.raises(ValueError, match="depends on the whole batch"):
            update.make_update(vae.make_vae(config), {}, num_steps=1, **options)
