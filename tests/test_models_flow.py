"""The flow family: densities against autodiff and quadrature, samples against densities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen._checks import UserError
from jaxgen.columns import Column
from jaxgen.models import flow
from jaxgen.models.base import indexed_keys
from jaxgen.verify.cases import randomised

KEY = jax.random.key(0)
SMALL = {"width": 8, "layers": 1, "bins": 4}
IMAGES = {
    "tarflow": {"net": "tarflow"},
    "tarflow_flipped": {"net": "tarflow", "depth": 2},
    "tarflow_published": {
        "net": "tarflow",
        "within": "independent",
        "elements": "affine",
        "depth": 2,
    },
    "jet": {"net": "jet", "depth": 2},
    "glow": {"net": "glow", "depth": 2},
}
SHAPE = (4, 4, 1)


def some(names, *quick):
    """The names as parameters; but for a few they are among the slow tests."""
    return [
        pytest.param(name, marks=[] if name in quick else [pytest.mark.slow])
        for name in names
    ]


def resolved(shape=SHAPE, *, columns=None, num_classes=None, **options):
    config = flow.FlowConfig(**{**SMALL, **options})
    return flow.resolve(config, shape, None, num_classes, columns)[0]


@functools.cache
def made(name, seed=1, **options):
    """Model and random parameters; the same for every test that asks."""
    config = resolved(**IMAGES[name], **options)
    return with_params(config, seed)


def with_params(config, seed=1, x=None):
    model = flow.make_flow(config)
    x = jax.random.uniform(KEY, (64, *config.shape)) if x is None else x

    def init(key):
        params, _ = model.init(key, {"x": x})
        noisy = randomised(params["flow"], jax.random.fold_in(key, 1), 0.15)
        if "contexts" not in params["flow"]:
            return {"flow": noisy}
        return {"flow": {**noisy, "contexts": params["flow"]["contexts"]}}

    return config, model, jax.jit(init)(jax.random.key(seed))


def keys_of(num, seed=2):
    return indexed_keys(jax.random.key(seed), jnp.arange(num))


@pytest.mark.parametrize("name", some(IMAGES, "tarflow", "jet"))
def test_image_density_is_the_latents_times_the_determinant_of_the_map(name):
    _, model, params = made(name)
    x = jax.random.uniform(jax.random.key(3), (4, *SHAPE))
    keys = keys_of(4)

    @jax.jit
    def both(params, x):
        one = lambda x: model.encode(params, x[None], keys[:1])[0].ravel()
        slope = jax.vmap(jax.jacrev(one))(x).reshape(len(x), 16, 16)
        z = model.encode(params, x, keys).reshape(len(x), -1)
        log_normal = -0.5 * jnp.sum(z**2, 1) - 8 * jnp.log(2 * jnp.pi)
        expected = log_normal + jnp.linalg.slogdet(slope)[1]
        return model.log_likelihood(params, x, keys, num_samples=1).nats, expected

    got, expected = both(params, x)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-3)
    assert np.ptp(got) > 0.1


@pytest.mark.parametrize("name", some(IMAGES, "tarflow_flipped", "glow"))
def test_images_are_generated_from_their_latents(name):
    config, model, params = made(name)
    x = jax.random.uniform(jax.random.key(3), (8, *SHAPE))
    keys = keys_of(8)
    z = jax.jit(model.encode)(params, x, keys)
    assert z.shape == x.shape
    assert np.abs(z - x).max() > 0.1
    back = jax.jit(model.generate)(params, z, keys)
    np.testing.assert_allclose(back, x, atol=5e-4)
    draw = jax.jit(functools.partial(flow.sample_and_log_prob, config))
    samples, log_prob = draw(params, keys)
    again = jax.jit(functools.partial(model.log_likelihood, num_samples=1))(
        params, samples, keys
    )
    np.testing.assert_allclose(log_prob, again.nats, rtol=1e-3, atol=0.05)
    assert again.kind == "exact"


def test_an_untrained_tarflow_is_uniform_and_has_8_bits():
    config = resolved(**IMAGES["tarflow"])
    model = flow.make_flow(config)
    x = jax.random.uniform(KEY, (16, *SHAPE))
    params, _ = model.init(KEY, {"x": x})
    nats = model.log_likelihood(params, x, keys_of(16), num_samples=1).nats
    np.testing.assert_allclose(nats, 0, atol=2e-5)


def test_the_density_of_a_pixel_integrates_to_one():
    config, model, params = with_params(resolved((1, 1, 1), net="tarflow"))
    x = (jnp.arange(4000) + 0.5).reshape(-1, 1, 1, 1) / 4000
    nats = model.log_likelihood(params, x, keys_of(4000), num_samples=1).nats
    np.testing.assert_allclose(np.exp(nats).mean(), 1, atol=1e-4)
    assert np.ptp(nats) > 0.05
    assert config.patch == 1


def test_classes_mix_into_a_density_and_are_told_apart_by_bayes_rule():
    options = {"conditional": True, "num_classes": 3}
    config, model, params = with_params(resolved(**IMAGES["tarflow"], **options))
    x = jax.random.uniform(jax.random.key(3), (5, *SHAPE))
    keys = keys_of(5)
    likelihood = jax.jit(functools.partial(model.log_likelihood, num_samples=1))
    by_class = jnp.stack(
        [likelihood(params, x, keys, jnp.full(5, label)).nats for label in range(3)], 1
    )
    mixed = likelihood(params, x, keys)
    np.testing.assert_allclose(
        mixed.nats, jax.nn.logsumexp(by_class, axis=1) - np.log(3), rtol=1e-5
    )
    np.testing.assert_allclose(
        mixed.class_log_prob, jax.nn.log_softmax(by_class, axis=1), atol=1e-4
    )
    assert np.ptp(by_class, axis=1).min() > 1e-3
    batch = {"x": x, "label": jnp.array([0, 1, 2, 0, 1])}
    objective = jax.jit(model.players[0].objective)
    kept = flow.make_flow(
        resolved(**IMAGES["tarflow"], **options, label_dropout=0.0)
    ).players[0]
    loss, _ = jax.jit(kept.objective)(params, (), batch, KEY, 0.0)
    np.testing.assert_allclose(
        loss, -by_class[jnp.arange(5), batch["label"]], rtol=1e-5
    )
    dropped = flow.make_flow(
        resolved(**IMAGES["tarflow"], **options, label_dropout=0.999)
    ).players[0]
    loss, _ = jax.jit(dropped.objective)(params, (), batch, KEY, 0.0)
    none = likelihood(params, x, keys, jnp.full(5, 3)).nats
    np.testing.assert_allclose(loss, -none, rtol=1e-5)
    assert np.all(np.isfinite(objective(params, (), batch, KEY, 0.0)[0]))


@pytest.mark.parametrize("guidance", some([0.0, 1.0, 2.0], 0.0))
def test_guidance_goes_from_no_class_to_the_class_and_beyond(guidance):
    options = {"conditional": True, "num_classes": 3}
    config, model, params = with_params(resolved(**IMAGES["tarflow"], **options))
    keys = keys_of(6)
    z, label = model.prior(keys), jnp.arange(6) % 3
    sampling = flow.Sampling(guidance=guidance)
    other = flow.make_flow(resolved(**IMAGES["tarflow"], **options, sampling=sampling))
    got = jax.jit(other.generate)(params, z, keys, label)
    told = jax.jit(model.generate)(params, z, keys, label)
    untold = jax.jit(model.generate)(params, z, keys, jnp.full(6, 3))
    assert np.abs(told - untold).max() > 1e-3
    if guidance < 2:
        np.testing.assert_allclose(got, told if guidance else untold, atol=1e-5)
    else:
        assert np.abs(got - told).max() > 1e-3
    del config


def test_samples_of_noisy_images_are_denoised_by_their_own_density():
    config, model, params = with_params(resolved(**IMAGES["jet"], noise=0.2))
    assert model.density == "other"
    keys = keys_of(4)
    z = model.prior(keys)
    clean = flow.make_flow(resolved(**IMAGES["jet"]))
    noisy = clean.encode  # the same chain of bijectors, without noise
    log_prob = lambda x: clean.log_likelihood(params, x, keys, num_samples=1).nats.sum()
    x, _ = jax.jit(functools.partial(flow.sample_and_log_prob, config))(params, keys)
    z_of = jax.jit(noisy)(params, x, keys)
    got = jax.jit(model.generate)(params, z_of, keys)
    expected = jnp.clip(x + 0.1**2 * jax.jit(jax.grad(log_prob))(x), 0, 1)
    np.testing.assert_allclose(got, expected, atol=2e-3)
    assert np.abs(got - jnp.clip(x, 0, 1)).max() > 5e-3
    assert z.shape == x.shape


def test_a_temperature_scales_the_latent():
    config = resolved(**IMAGES["jet"], sampling=flow.Sampling(temperature=0.5))
    cold, warm = flow.make_flow(config), flow.make_flow(resolved(**IMAGES["jet"]))
    np.testing.assert_allclose(cold.prior(keys_of(3)), 0.5 * warm.prior(keys_of(3)))


COLUMNS = {
    "real": (Column(name="a", mean=2.0, deviation=3.0),),
    "positive": (Column(name="a", kind="positive", mean=0.5, deviation=0.6),),
    "bounded": (Column(name="a", kind="bounded", low=-1, high=3, deviation=1.5),),
    "angle": (Column(name="a", kind="angle", low=-np.pi, high=np.pi),),
    "counts": (Column(name="a", kind="positive", step=1.0, mean=1.0),),
    "given": (
        Column(name="c", is_context=True, mean=1.0, deviation=2.0),
        Column(name="a", mean=-1.0, deviation=0.5),
        Column(name="d", kind="angle", is_context=True, low=0.0, high=360.0),
    ),
}
RANGES = {
    "real": (-25, 29),
    "positive": (1e-3, 40),
    "bounded": (-1.0004, 3.0004),
    "angle": (-np.pi, np.pi),
    "counts": (1e-3, 120),
    "given": (-5, 4),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("net", some(["autoregressive", "coupling"], "autoregressive"))
def test_density_of_one_column_integrates_to_one_in_its_own_units(name, net):
    columns, (low, high) = COLUMNS[name], RANGES[name]
    shape = (len(columns),)
    x = jnp.ones((8, *shape))
    config, model, params = with_params(resolved(shape, columns=columns, net=net), x=x)
    places = low + (high - low) * (np.arange(20_000) + 0.5) / 20_000
    likelihood = jax.jit(functools.partial(model.log_likelihood, num_samples=1))
    steps = config.columns[-1].step
    seen = []
    for context in [(0.0, 90.0), (3.0, 300.0)] if name == "given" else [()]:
        rows = np.full((len(places), len(columns)), 0.0, np.float32)
        if context:
            rows[:, [0, 2]], rows[:, 1] = context, places
        else:
            rows[:, 0] = places
        if steps:  # a density of x + u: without the noise where u is already there
            column = columns[0].__class__(**{**columns[0].__dict__, "step": 0.0})
            _, model, _ = with_params(resolved(shape, columns=(column,), net=net), x=x)
            likelihood = jax.jit(functools.partial(model.log_likelihood, num_samples=1))
        nats = likelihood(params, jnp.asarray(rows), keys_of(len(places))).nats
        seen.append(np.asarray(nats))
        np.testing.assert_allclose(np.exp(nats).mean() * (high - low), 1, atol=3e-3)
    if len(seen) > 1:
        assert np.abs(seen[0] - seen[1]).max() > 1e-2


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("net", ["autoregressive", "coupling"])
def test_rows_and_their_density_come_together(dim, net, x64):
    """In float64: random splines are steep."""
    del x64
    columns = tuple(Column(name=f"c{i}", mean=i, deviation=1 + i) for i in range(dim))
    x = jax.random.normal(KEY, (64, dim), jnp.float64)
    config, model, params = with_params(resolved((dim,), columns=columns, net=net), x=x)
    keys = keys_of(200)
    rows, log_prob = jax.jit(functools.partial(flow.sample_and_log_prob, config))(
        params, keys
    )
    nats = jax.jit(functools.partial(model.log_likelihood, num_samples=1))(
        params, rows, keys
    ).nats
    np.testing.assert_allclose(log_prob, nats, atol=1e-6)
    z = jax.jit(model.encode)(params, rows, keys)
    back = jax.jit(model.generate)(params, z, keys)
    np.testing.assert_allclose(back, rows, atol=1e-6)


def test_given_values_come_back_and_counts_are_whole():
    columns = (
        Column(name="n", kind="positive", step=1.0, mean=1.0),
        Column(name="c", is_context=True),
        Column(name="p", kind="bounded", low=0.0, high=1.0),
    )
    x = jnp.array([[1.0, 5.0, 0.5], [2.0, 7.0, 0.9]])
    config, model, params = with_params(resolved((3,), columns=columns), x=x)
    keys = keys_of(100)
    rows = np.asarray(model.generate(params, model.prior(keys), keys))
    np.testing.assert_array_equal(rows[:, 0], np.round(rows[:, 0]))
    assert rows[:, 2].min() >= 0
    assert rows[:, 2].max() <= 1
    assert set(rows[:, 1]) == {5.0, 7.0}
    told = resolved((3,), columns=columns, sampling=flow.Sampling(given=("c=2.5",)))
    rows = flow.make_flow(told).generate(params, model.prior(keys), keys)
    np.testing.assert_array_equal(rows[:, 1], 2.5)
    given = jnp.full((100, 1), -1.0)
    rows = model.generate(params, model.prior(keys), keys, given)
    np.testing.assert_array_equal(rows[:, 1], -1)


def test_weights_multiply_the_loss_of_their_row():
    columns = (Column(name="a"),)
    _, model, params = with_params(
        resolved((1,), columns=columns), x=jax.random.normal(KEY, (8, 1))
    )
    batch = {"x": jnp.array([[0.1], [2.0]])}
    plain, _ = model.players[0].objective(params, (), batch, KEY, 0.0)
    batch["weight"] = jnp.array([0.5, 3.0])
    loss, _ = model.players[0].objective(params, (), batch, KEY, 0.0)
    np.testing.assert_allclose(loss, plain * np.array([0.5, 3.0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"net": "coupling"}, "--net coupling is not for images: tarflow, jet, glow"),
        ({"patch": 3}, "--patch 3 does not divide images of 4x4: 1, 2 would"),
        ({"conditional": True}, "--conditional needs data with labels"),
        ({"sampling": flow.Sampling(label=1)}, "--label is for a model"),
        ({"depth": 0}, "--depth must be at least 1"),
        ({"noise": -0.1}, "--noise must not be negative"),
        (
            {"sampling": flow.Sampling(given=("a=1",))},
            "--given is for a table with context columns",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(options, message):
    with pytest.raises(UserError, match=message):
        resolved(**options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("d=1", "unknown context column 'd'"),
        ("c=x", "--given c: 'x' is not a number"),
        ("c=nan", "--given c: nan is not a finite number"),
        ("p=0", "--given p: 0 is not above 0"),
        ("b=1.5", r"--given b: 1.5 is not in -1\.\.1"),
        ("b=-1.1", r"--given b: -1.1 is not in -1\.\.1"),
    ],
)
def test_given_must_name_a_context_column_and_a_value_that_it_can_have(given, message):
    columns = (
        Column(name="a"),
        Column(name="c", is_context=True),
        Column(name="p", kind="positive", is_context=True),
        Column(name="b", kind="bounded", low=-1.0, high=1.0, is_context=True),
        Column(name="n", kind="positive", step=1.0, is_context=True),
    )
    with pytest.raises(UserError, match=message):
        resolved((5,), columns=columns, sampling=flow.Sampling(given=(given,)))
    fitting = flow.Sampling(given=("p=0.1", "b=-1", "b=1", "n=0", "c=-9"))
    resolved((5,), columns=columns, sampling=fitting)


@pytest.mark.parametrize(
    "shape", [(7, 5, 1), (7, 5, 3), (6, 10, 3), (1, 1, 1), (28, 28, 1)]
)
@pytest.mark.parametrize("net", ["tarflow", "glow"])
def test_odd_sizes_have_a_flow(shape, net):
    if net == "glow" and shape in ((7, 5, 1), (1, 1, 1)):
        with pytest.raises(UserError, match="--net glow needs even sides"):
            resolved(shape, net=net)
        return
    config = resolved(shape, net=net, depth=1)
    model = flow.make_flow(config)
    params, _ = jax.eval_shape(model.init, KEY, {"x": jnp.zeros((2, *shape))})
    z = jax.eval_shape(model.encode, params, jnp.zeros((2, *shape)), keys_of(2))
    assert z.shape == (2, *shape)
