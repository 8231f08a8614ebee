"""The GAN family: what each player pays, schedules, and what a discriminator learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import augmentation
from jaxgen._checks import UserError
from jaxgen.columns import Column
from jaxgen.losses import gan as games
from jaxgen.models import gan
from jaxgen.nets import gan as nets
from jaxgen.train import config as configs
from jaxgen.train import update

SHAPE = (4, 4, 1)
SMALL = {"width": 8, "blocks": 1, "patch": 1, "latent_dim": 4}
KEY = jax.random.key(3)


def resolved(shape=SHAPE, num_classes=None, **options):
    config = gan.GANConfig(**{**SMALL, **options})
    return gan.resolve(config, shape, None, num_classes)[0]


def batch(num=6, num_classes=None):
    x = jax.random.uniform(jax.random.key(1), (num, *SHAPE))
    label = jnp.arange(num) % num_classes if num_classes else None
    return {"x": x} if label is None else {"x": x, "label": label}


@functools.cache
def started(**options):
    """Model, parameters that no zero hides, and extra state."""
    model = gan.make_gan(resolved(**options))
    params, extra = model.init(jax.random.key(0), batch())
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: a + jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype), params
    )
    return model, params, extra


def paid(player, progress=0.0, given=None, **options):
    """Loss of a player, its terms, and the gradient in all parameters."""
    model, params, extra = started(**options)
    given = batch() if given is None else given

    def mean(params):
        loss, aux = model.players[player].objective(
            params, extra, given, KEY, jnp.float32(progress)
        )
        return loss.mean(), (loss, aux)

    (_, (loss, aux)), grads = jax.value_and_grad(mean, has_aux=True)(params)
    return loss, aux, grads


def said(player, progress=0.0, given=None, **options):
    """As `paid`, compiled, without the gradient."""
    model, params, extra = started(**options)
    given = batch() if given is None else given
    objective = jax.jit(model.players[player].objective)
    return objective(params, extra, given, KEY, jnp.float32(progress))


def largest(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_the_discriminator_does_not_move_the_generator():
    loss, aux, grads = paid(0)
    assert loss.shape == (6,)
    assert largest(grads["discriminator"]) > 1e-3
    assert largest(grads["generator"]) == 0
    assert {"right/pair", "slope/real", "slope/fake", "penalty"} == set(aux.metrics)
    _, _, grads = paid(1)
    assert largest(grads["generator"]) > 1e-3


CLASSES = {"conditional": True, "num_classes": 3, "augment": 1.0}


@functools.cache
def logits_of(player, *, with_classes):
    """Of the data and samples that a player is shown, written out; of any game.

    A sample has the class of the example beside it, and both are augmented alike.
    """
    options, num = (CLASSES, 3) if with_classes else ({}, 0)
    model, params, _ = started(**options, penalty="none")
    split = lambda num, keys: jax.vmap(lambda k: jax.random.split(k, num), 0, 1)(keys)

    @jax.jit
    def judged(params, x, label):
        own = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(6))
        z_keys, keys = split(3 if player == 0 else 2, own)[:2]
        fake = nets.ResidualGenerator(SHAPE, 8, 1, 1, num).apply(
            {"params": params["generator"]}, model.prior(split(2, z_keys)[1]), label
        )
        shown = [2 * x - 1, fake]
        if with_classes:
            shown = [augmentation.augmented(x, keys, 1.0) for x in shown]
        config = resolved(**options)
        return [gan.discriminate(config, params, (x + 1) / 2, label) for x in shown]

    given = batch(num_classes=num or None)
    return judged(params, given["x"], given.get("label"))


@pytest.mark.parametrize("player", [0, 1], ids=["discriminator", "generator"])
@pytest.mark.parametrize(
    "options",
    [*({"game": game} for game in games.GAMES), CLASSES],
    ids=lambda o: o.get("game", "classes"),
)
def test_both_players_pay_what_the_game_says(options, player):
    """With the penalty off, from the logits of what each player was shown."""
    given = batch(num_classes=options.get("num_classes"))
    loss, aux = said(player, 1.0, given, **options, penalty="none")
    assert "penalty" not in aux.metrics
    game = options.get("game", "relativistic")
    real, fake = logits_of(player, with_classes=options is CLASSES)
    expected = games.GAMES[game](real, fake)[player]
    np.testing.assert_allclose(loss, expected, rtol=2e-5, atol=1e-5)
    if player == 1:
        return
    right = {"pair": real > fake}
    if game not in ("relativistic", "wasserstein"):  # there D has no boundary
        boundary = 0.5 if game == "least_squares" else 0.0
        right |= {"real": real > boundary, "fake": fake < boundary}
    told = {name for name in aux.metrics if name.startswith("right/")}
    assert told == {f"right/{name}" for name in right}
    for name, truth in right.items():
        np.testing.assert_array_equal(aux.metrics[f"right/{name}"], truth)


@pytest.mark.parametrize("player", [0, 1])
def test_on_a_task_both_networks_are_told_what_is_given(player):
    config, _ = gan.resolve(gan.GANConfig(**SMALL), SHAPE, None, num_planes=2)
    given = batch() | {"condition": jax.random.uniform(KEY, (6, *SHAPE[:2], 2))}
    model = gan.make_gan(config)
    params, extra = jax.jit(lambda key: model.init(key, given))(KEY)
    leaves, form = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    leaves = [a + 0.3 * rng.standard_normal(a.shape).astype(a.dtype) for a in leaves]
    params = jax.tree.unflatten(form, leaves)

    @jax.jit
    @jax.grad
    def slope(params, given):
        objective = model.players[player].objective
        return objective(params, extra, given, KEY, jnp.float32(0))[0].mean()

    own = slope(params, given)[("discriminator", "generator")[player]]
    if player:
        assert (np.abs(own["told"]["kernel"]).max(axis=1) > 1e-9).all()
        given["weight"] = jnp.float32(jnp.arange(6) == 2)
        given["condition"] = given["condition"].at[2].set(0.5)  # a network sees 0
        own = slope(params, given)["generator"]["told"]
        np.testing.assert_array_equal(own["kernel"][:2], 0)  # another's planes are not
        assert (np.abs(own["kernel"][2]) > 1e-9).any()
    else:  # the image and three planes
        assert (np.abs(own["input"]["kernel"]).max(axis=1) > 1e-6).all()
        judge = functools.partial(gan.discriminate, config, params, given["x"])
        before, seen = judge(given["condition"]), given["condition"]
        after = judge(seen.at[2].set(1 - seen[2]))
        np.testing.assert_array_equal(np.abs(after - before) > 1e-4, np.arange(6) == 2)


def test_slopes_are_told_whatever_the_penalty():
    truth = said(0)[1].metrics
    assert float(truth["slope/real"].min()) > 1e-3
    for penalty in ("none", "gradient"):
        told = said(0, penalty=penalty)[1].metrics
        for name in ("slope/real", "slope/fake"):
            np.testing.assert_allclose(told[name], truth[name], rtol=1e-5)


def test_networks_may_compute_in_bfloat16_but_what_is_paid_is_float32():
    half, whole = said(0, compute="bfloat16"), said(0)
    whole[1].metrics.pop("right/pair"), half[1].metrics.pop("right/pair")
    pairs = zip(jax.tree.leaves(half), jax.tree.leaves(whole), strict=True)
    for found, truth in pairs:
        assert found.dtype == jnp.float32
        assert 1e-5 < np.max(np.abs(found - truth)) < 0.1 * np.max(np.abs(truth))
    grads = jax.eval_shape(lambda: paid(0, compute="bfloat16")[2])
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_penalties_add_up_and_fall_along_a_cosine():
    def price(kind, progress=0.0, **options):
        return paid(0, progress, penalty=kind, **options)[1].metrics["penalty"]

    np.testing.assert_allclose(price("r1") + price("r2"), price("r1r2"), rtol=1e-5)
    aux = paid(0, penalty="r1")[1].metrics
    # gamma 0.03 for each of 16 numbers, half of it times the squared slope.
    np.testing.assert_allclose(
        aux["penalty"], 0.5 * 16 * 0.03 * aux["slope/real"] ** 2, rtol=1e-5
    )
    np.testing.assert_allclose(price("r1r2", 1.0), 0.1 * price("r1r2"), rtol=1e-5)
    np.testing.assert_allclose(price("r1r2", 0.5), 0.55 * price("r1r2"), rtol=1e-5)
    steep = price("gradient", gamma_decay=1.0)
    assert np.all(steep >= 0)
    doubled = price("gradient", gamma=20.0, gamma_decay=1.0)
    np.testing.assert_allclose(doubled, 2 * steep, rtol=1e-5)


def test_the_estimated_penalty_is_near_the_exact_one():
    """Over many draws of noise; one draw deviates by sqrt 2 of it."""
    model, params, extra = started(penalty="estimated")
    objective = jax.jit(model.players[0].objective)
    rooms = [
        objective(params, extra, batch(), jax.random.key(i), jnp.float32(0))[1].metrics
        for i in range(300)
    ]
    found = np.mean([m["slope/real"] ** 2 for m in rooms])
    exact = np.mean(paid(0)[1].metrics["slope/real"] ** 2)
    np.testing.assert_allclose(found, exact, rtol=0.15)


def test_augmentation_is_nothing_at_first_and_whole_from_the_middle():
    plain, *_ = paid(0)
    np.testing.assert_array_equal(paid(0, augment=0.9)[0], plain)
    assert np.abs(paid(0, 0.25, augment=0.9)[0] - plain).max() > 1e-3
    told = [paid(0, p, augment=0.9)[1].metrics["augment"] for p in (0.25, 0.5, 1.0)]
    np.testing.assert_allclose(told, [0.45, 0.9, 0.9], rtol=1e-5)


def test_adaptive_augmentation_follows_the_sign_of_the_steps_before():
    model, params, extra = started(augment=0.8, adaptive=True)
    assert float(extra["augment"]) == 0
    _, aux = model.players[0].objective(
        params,
        {"augment": jnp.float32(0.3), "sign": jnp.float32(0.9)},
        batch(),
        KEY,
        0.0,
    )
    logits_sign = 2 * jnp.mean(aux.metrics["right/pair"]) - 1
    np.testing.assert_allclose(aux.extra["augment"], 0.31, rtol=1e-4)
    np.testing.assert_allclose(
        aux.extra["sign"], 0.99 * 0.9 + 0.01 * logits_sign, rtol=1e-4
    )
    low = {"augment": jnp.float32(0.005), "sign": jnp.float32(0.0)}
    _, aux = model.players[0].objective(params, low, batch(), KEY, 0.0)
    assert float(aux.extra["augment"]) == 0
    assert model.players[1].objective(params, low, batch(), KEY, 0.0)[1].extra is None


def test_samples_have_the_class_that_is_asked_for():
    options = {"num_classes": 3, "conditional": True}
    model, params, _ = started(**options)
    keys = jax.random.split(jax.random.key(5), 4)
    z = model.prior(keys)
    told = model.generate(params, z, keys, jnp.array([0, 1, 2, 0]))
    one = gan.make_gan(resolved(**options, sampling=gan.Sampling(label=1)))
    np.testing.assert_array_equal(one.generate(params, z, keys)[1], told[1])
    assert np.abs(one.generate(params, z, keys)[0] - told[0]).max() > 1e-4
    loss, *_ = paid(0, given=batch(num_classes=3), **options)
    other = batch(num_classes=3)
    other["label"] = (other["label"] + 1) % 3
    assert np.abs(paid(0, given=other, **options)[0] - loss).max() > 1e-4
    drawn = model.generate(params, z, keys)
    by_class = [model.generate(params, z, keys, jnp.full(4, c)) for c in range(3)]
    found = [
        [c for c in range(3) if np.allclose(by_class[c][i], drawn[i], atol=1e-6)]
        for i in range(4)
    ]
    assert found == [[int(jax.random.randint(key, (), 0, 3))] for key in keys]
    assert all(view(params, None).ndim == 5 for _, view in model.views)
    assert len(model.views) == 2


def test_rows_are_made_in_the_units_of_the_table():
    columns = (
        Column(name="a", mean=5.0, deviation=2.0),
        Column(name="b", kind="positive", mean=1.0, deviation=0.5),
        Column(name="c", kind="bounded", low=0.0, high=10.0, step=1.0, deviation=2.0),
    )
    config, transform = gan.resolve(gan.GANConfig(width=8), (3,), None, None, columns)
    assert (transform, config.net, config.gamma) == ("none", "dense", 0.01)
    model = gan.make_gan(config)
    x = jnp.array([[4.0, 2.0, 3.0], [6.0, 3.0, 7.0]])
    params, extra = model.init(jax.random.key(0), {"x": x})
    keys = jax.random.split(jax.random.key(1), 200)
    rows = np.asarray(model.generate(params, 9 * model.prior(keys), keys))
    assert rows.shape == (200, 3)
    assert rows[:, 1].min() > 0
    assert set(rows[:, 2]) <= set(range(11))
    for player in model.players:
        plain, _ = player.objective(params, extra, {"x": x}, KEY, 0.0)
        weight = jnp.array([2.0, 0.0])
        weighed, _ = player.objective(
            params, extra, {"x": x, "weight": weight}, KEY, 0.0
        )
        np.testing.assert_allclose(weighed, weight * plain, rtol=1e-5)


def test_critic_steps_are_updates_of_the_discriminator_alone():
    counts = {}
    for steps in (1, 3):
        model = gan.make_gan(resolved(critic_steps=steps))
        optimizers = {p.name: optax.adam(1e-3) for p in model.players}
        state = update.init_state(model, optimizers, jax.random.key(0), batch())
        advance = update.make_update(model, optimizers, num_steps=4)
        state, _ = jax.jit(advance)(state, batch(), KEY)
        counts[steps] = [
            int(state.opt_state[name][0].count)
            for name in ("discriminator", "generator")
        ]
    assert counts == {1: [1, 1], 3: [3, 1]}


def test_beta2_rises_along_a_cosine():
    train = configs.TrainConfig(
        steps=100, beta1=0.0, beta2=0.99, beta2_start=0.9, weight_decay=0.0
    )
    params = {"kernel": jnp.ones(())}
    optimizer = configs.make_optimizer(train)
    state = optimizer.init(params)
    found = []
    for _ in range(100):
        _, state = optimizer.update({"kernel": jnp.ones(())}, state, params)
        found.append(float(state[1].hyperparams["b2"]))
    np.testing.assert_allclose(
        [found[0], found[50], found[99]], [0.9, 0.945, 0.99], atol=1e-3
    )


def test_a_trained_discriminator_approaches_the_log_ratio_of_two_known_flows():
    """The best discriminator of samples of q against data of p is log p - log q."""
    p, q = (
        (1.0, 0.4),
        (0.8, -0.3),
    )  # of the first value the scale, of the second the bend

    def log_prob(flow, x):
        scale, bend = flow
        z = jnp.stack([x[:, 0] / scale, x[:, 1] - bend * x[:, 0] ** 2], axis=1)
        return -0.5 * jnp.sum(z**2, axis=1) - jnp.log(scale)

    def drawn(flow, key, num):
        scale, bend = flow
        z = jax.random.normal(key, (num, 2)) * jnp.array([[scale, 1.0]])
        return z.at[:, 1].add(bend * z[:, 0] ** 2)

    net = nets.RowDiscriminator(64, 2)
    params = net.init(jax.random.key(3), jnp.zeros((1, 2)))["params"]
    adam = optax.adam(optax.cosine_decay_schedule(5e-3, 1500))

    def loss(params, key):
        keys = jax.random.split(key)
        real, fake = drawn(p, keys[0], 512), drawn(q, keys[1], 512)
        logits = [net.apply({"params": params}, x) for x in (real, fake)]
        return games.non_saturating(*logits).discriminator.mean()

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            updates, state = adam.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(4), 1500)
        return jax.lax.scan(step, (params, adam.init(params)), keys)[0][0]

    params = train(params)
    x = jnp.concatenate([drawn(p, jax.random.key(5), 2000), drawn(q, KEY, 2000)])
    truth = log_prob(p, x) - log_prob(q, x)
    found = net.apply({"params": params}, x)
    assert float(jnp.std(truth)) > 0.5
    assert float(jnp.mean(jnp.abs(found - truth))) < 0.25  # mostly where neither is
    # What it pays is log 4 - 2 JSD(p, q) of the truth.
    real, fake = truth[:2000], truth[2000:]
    best = games.non_saturating(real, fake).discriminator.mean()
    reached = games.non_saturating(found[:2000], found[2000:]).discriminator.mean()
    assert float(best) < float(reached) + 0.01 < float(best) + 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critic_steps": 0}, "--critic-steps must be at least 1"),
        ({"gamma": -1.0}, "--gamma must not be negative"),
        ({"gamma": 1e39}, "--gamma must be a finite number of float32, got 1e.39"),
        ({"augment": 1.5}, "probability"),
        ({"adaptive": True}, "--adaptive needs"),
        ({"width": 2}, "--width"),
        ({"net": "dense"}, "--net dense is not for images: residual, dcgan"),
        ({"conditional": True}, "--conditional needs data with labels"),
        ({"sampling": gan.Sampling(label=1)}, "--label is for a model"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        resolved(**options)


def test_resolve_fills_what_was_left_open_and_keeps_what_was_given():
    def found(shape, *names, columns=None, **options):
        config = gan.resolve(gan.GANConfig(**options), shape, None, 10, columns)[0]
        return tuple(getattr(config, name) for name in names)

    sizes = "net", "latent_dim", "width", "blocks", "patch"
    assert found((16, 9, 3), *sizes) == ("residual", 64, 96, 2, 2)
    assert found((9, 17, 1), *sizes) == ("residual", 64, 96, 2, 4)
    assert found((8, 8, 1), *sizes, net="dcgan") == ("dcgan", 64, 32, 2, 2)
    columns = (Column(name="a"), Column(name="b"))
    assert found((2,), *sizes, columns=columns) == ("dense", 2, 48, 5, 2)
    weights = "gamma", "gamma_decay"
    assert found((8, 8, 1), *weights) == (0.03, 0.1)
    assert found((8, 8, 1), *weights, penalty="gradient") == (10.0, 0.1)
    assert found((2,), *weights, columns=columns) == (0.01, 0.01)
    assert found((8, 8, 1), *weights, gamma=0.0, gamma_decay=0.0) == (0.0, 0.0)
    given = {"latent_dim": 7, "width": 12, "blocks": 3, "patch": 1}
    assert found((8, 8, 1), *given, **given) == tuple(given.values())
    assert found((8, 8, 1), "num_classes") == (None,)
    assert found((8, 8, 1), "num_classes", conditional=True) == (10,)


def test_resolve_refuses_what_is_for_other_data():
    columns = (Column(name="a"), Column(name="b", is_context=True))
    with pytest.raises(UserError, match="no context columns"):
        gan.resolve(gan.GANConfig(), (2,), None, None, columns)
    with pytest.raises(UserError, match="are for images"):
        gan.resolve(gan.GANConfig(augment=0.3), (1,), None, None, columns[:1])
    with pytest.raises(UserError, match="takes --transform levels"):
        gan.resolve(gan.GANConfig(), SHAPE, "binarise")
    assert dataclasses.is_dataclass(gan.resolve(gan.GANConfig(), SHAPE, None)[0])


def test_collapse_needs_all_lines_and_names_the_evidence():
    healthy = {"samples/diversity": 0.9, "right/pair": 0.8, "loss/generator": 1.0}
    alike = healthy | {"samples/diversity": 0.02}
    assert gan.collapse([healthy] * 3) is None
    assert gan.collapse([alike, alike, healthy]) is None
    assert "2.0 % of the variance" in gan.collapse([alike] * 3)
    few = healthy | {"samples/classes": 0.3}
    assert "30 % of the classes" in gan.collapse([few] * 3)
    certain = healthy | {"right/pair": 1.0, "loss/generator": 20.0}
    assert "certain" in gan.collapse([certain] * 3)
    assert gan.collapse([healthy | {"loss/generator": 20.0}] * 3) is None
    # What is added to a critic of Wasserstein's game changes nothing but this loss.
    judged = gan.make_gan(resolved(game="wasserstein")).collapse
    assert judged([certain] * 3) is None
    assert "nearly alike" in judged([certain | alike] * 3)
    judged = gan.make_gan(resolved(game="minimax")).collapse
    told = lambda logit: float(games.minimax(jnp.zeros(1), jnp.full(1, logit))[1][0])
    assert "certain" in judged([certain | {"loss/generator": told(-11.0)}] * 3)
    assert judged([certain | {"loss/generator": told(-9.0)}] * 3) is None
