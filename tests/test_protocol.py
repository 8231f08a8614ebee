"""Every registered family keeps the whole contract: no skip list."""

import dataclasses
import functools
import json
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import models
from jaxgen._checks import UserError
from jaxgen.data import ArraySource, DataConfig, Dataset
from jaxgen.models.base import indexed_keys
from jaxgen.train import config as configs
from jaxgen.train import session, update

SHAPE = (8, 8, 1)
SMALL = {
    "diffusion": {"widths": (8,), "blocks": 1},
    "flow": {"width": 8, "layers": 1, "bins": 4},
    "gan": {"width": 8, "latent_dim": 4},
    "masked": {"width": 16, "depth": 1},
}
SHAPES = {"texts": (12,), "images": SHAPE}


def shape_of(family):
    return SHAPES[models.FAMILIES[family].examples[0]]


def examples(family, num):
    x = jax.random.uniform(jax.random.key(0), (num, *shape_of(family)))
    return (255 * x).astype(jnp.int32) if x.ndim == 2 else x.round(1)


def bound(family, num_planes=0, **train):
    cls = models.FAMILIES[family].config_class
    small, shape = SMALL.get(family, {}), shape_of(family)
    model, transform = models.FAMILIES[family].resolve(
        cls(**small), shape, None, num_planes=num_planes
    )
    config = configs.RunConfig(
        family=family,
        model=model,
        data=DataConfig(transform=transform, task="inpaint" if num_planes else None),
        train=configs.TrainConfig(steps=4, batch_size=4, **train),
    )
    return session.bind(config)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_family_goes_from_init_to_views(family):
    made = bound(family, clip_norm=1.0)
    model = made.model
    x = examples(family, 8)
    state = jax.jit(
        lambda key: update.init_state(model, made.optimizers, key, {"x": x})
    )(jax.random.key(1))
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    expected = jax.tree.map(lambda a: (a.shape, a.dtype), session.abstract_state(made))
    assert shapes == expected
    one_update = update.make_update(model, made.optimizers, num_steps=4)
    traced = mock.Mock(wraps=one_update)
    advance = jax.jit(lambda *args: traced(*args))
    for _ in range(3):
        state, metrics = advance(state, {"x": x}, jax.random.key(2))
    assert traced.call_count == 1
    assert int(state.step) == 3
    for player in model.players:
        assert np.isfinite(metrics[f"loss/{player.name}"])
    keys = indexed_keys(jax.random.key(3), jnp.arange(5))
    z = model.prior(keys)
    images = jax.jit(model.generate)(state.ema, z, keys)
    assert images.shape == (5, *shape_of(family))
    np.testing.assert_allclose(model.prior(keys[3:]), z[3:], rtol=1e-6)
    if model.encode is not None:
        encoded = jax.eval_shape(model.encode, state.ema, x[:5], keys)
        assert encoded.shape == z.shape
    if model.log_likelihood is not None:
        judge = functools.partial(model.log_likelihood, num_samples=2)
        result = jax.eval_shape(judge, state.ema, x[:5], keys)
        assert result.nats.shape == (5,)
        assert result.kind in ("exact", "bound", "estimate")
    for caption, view in model.views:
        assert caption
        assert len(jax.eval_shape(view, state.ema, x).shape) == 5


OF_IMAGES = [n for n, family in models.FAMILIES.items() if "images" in family.examples]


@pytest.mark.parametrize("family", OF_IMAGES)
def test_family_hears_what_is_given(family):
    made = bound(family, num_planes=2, learning_rate=0.05, warmup=0.0)
    model = made.model
    x = jax.random.uniform(jax.random.key(0), (8, *SHAPE)).round(1)
    seen = jnp.concatenate([x, 1 - x], axis=-1)
    batch = {"x": x, "condition": seen}
    state = jax.jit(lambda key: update.init_state(model, made.optimizers, key, batch))(
        jax.random.key(1)
    )
    shapes = jax.tree.map(lambda a: a.shape, state)
    assert shapes == jax.tree.map(lambda a: a.shape, session.abstract_state(made))
    advance = jax.jit(update.make_update(model, made.optimizers, num_steps=4))
    for _ in range(3):
        state, metrics = advance(state, batch, jax.random.key(2))
    for player in model.players:
        assert np.isfinite(metrics[f"loss/{player.name}"])
    keys = indexed_keys(jax.random.key(3), jnp.arange(8))
    z, generate = model.prior(keys), jax.jit(model.generate)
    answers = generate(state.params, z, keys, seen)
    other = generate(state.params, z, keys, seen.at[0].set(1 - seen[0]))
    assert answers.shape == (8, *SHAPE)
    assert float(jnp.abs(other - answers)[0].max()) > 1e-3
    np.testing.assert_allclose(other[1:], answers[1:], atol=2e-5)
    both = seen, seen.at[0].set(1 - seen[0])
    if model.encode is not None:
        encode = jax.jit(model.encode)
        found, moved = (encode(state.params, x, keys, c) for c in both)
        assert found.shape == z.shape
        assert float(jnp.abs(moved - found)[0].max()) > 1e-3
        np.testing.assert_allclose(moved[1:], found[1:], rtol=1e-4, atol=1e-4)
    if model.log_likelihood is not None:
        judge = jax.jit(functools.partial(model.log_likelihood, num_samples=3))
        nats = [np.asarray(judge(state.params, x, keys, c).nats) for c in both]
        assert np.isfinite(nats).all()
        assert abs(nats[0] - nats[1])[0] > 1e-3
        np.testing.assert_allclose(nats[0][1:], nats[1][1:], rtol=1e-4)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_config_round_trips_through_json(family):
    config = bound(family).config
    text = json.dumps(configs.to_dict(config))
    assert configs.from_dict(json.loads(text)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(familly="vae"), "did you mean 'family'"),
        (lambda c: c["train"].update(step=3), "did you mean 'steps'"),
        (lambda c: c["model"].update(latent_dims=3), "did you mean 'latent_dim'"),
        (lambda c: c["train"].update(steps="3"), "train.steps must be"),
        (lambda c: c["train"].update(steps=True), "train.steps must be"),
        (lambda c: c["model"].update(net="os.system"), "model.net must be"),
        (lambda c: c["model"].update(shape=[8.5, 8]), "model.shape must be"),
        (lambda c: c.update(version=2), "version 2"),
        (lambda c: c.update(family="os.system"), "unknown family"),
        (lambda c: c.update(train=[1]), "train must be an object"),
        (lambda c: c["train"].update(steps=0), "at least 1"),
    ],
)
def test_from_dict_refuses_what_it_does_not_know(change, message):
    values = json.loads(json.dumps(configs.to_dict(bound("vae").config)))
    change(values)
    with pytest.raises(UserError, match=message):
        configs.from_dict(values)


@pytest.mark.parametrize("command", ["train", "bench", "plan"])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_every_config_field_is_documented_for_the_command_line(family, command, capsys):
    from jaxgen import cli

    def names(cls):
        for field in dataclasses.fields(cls):
            inside = dataclasses.is_dataclass(field.type)
            yield from names(field.type) if inside else [field.name]

    with pytest.raises(SystemExit) as stop:
        cli.main([command, family, "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    for name in {*names(models.FAMILIES[family].config_class)} - {"columns"}:
        flag = f"--{name.replace('_', '-')}"
        assert (flag in text) == (name not in ("shape", "num_classes", "num_planes"))


def test_resolve_stores_places_that_hold_from_any_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    split = ArraySource(np.zeros((4, 6, 6, 3), np.uint8))
    dataset = Dataset("photos", split, split, (6, 6, 3), None, ())
    config = configs.RunConfig(
        family="vae",
        model=models.FAMILIES["vae"].config_class(),
        data=DataConfig(name="folder:~/photos", data_dir="sets"),
        train=configs.TrainConfig(),
    )
    resolved = session.resolve(config, dataset).data
    assert resolved.name == f"folder:{tmp_path}/photos"
    assert resolved.data_dir == str(Path.cwd() / "sets")
    assert (resolved.image_size, resolved.channels) == (6, 3)


def test_differences_name_the_part_and_the_key():
    old, new = bound("vae").config, bound("vae", learning_rate=0.5).config
    assert configs.differences(old, new) == {"train.learning_rate": (2e-3, 0.5)}
    assert configs.may_change("train.learning_rate", 0.1, 0.2)
    assert not configs.may_change("model.hidden", (8,), (9,))
    assert not configs.may_change("train.seed", 0, 1)


def test_make_optimizer_follows_its_schedule_and_spares_biases():
    params = {"layer": {"kernel": jnp.ones(()), "bias": jnp.ones(())}}
    grads = jax.tree.map(jnp.zeros_like, params)
    train = configs.TrainConfig(
        steps=100, learning_rate=0.1, warmup=0.1, weight_decay=0.5
    )
    optimizer = configs.make_optimizer(train)
    opt_state = optimizer.init(params)
    steps = []
    for _ in range(100):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        assert float(updates["layer"]["bias"]) == 0.0
        steps.append(-float(updates["layer"]["kernel"]) / 0.5)
    assert steps[0] == 0.0
    np.testing.assert_allclose(steps[5], 0.05, rtol=1e-5)
    np.testing.assert_allclose(max(steps), 0.1, rtol=1e-5)
    np.testing.assert_allclose(steps[55], 0.05, rtol=1e-4)
    assert steps[99] < 1e-4
