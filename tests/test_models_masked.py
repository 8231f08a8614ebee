"""Masked diffusion of text: the network, the family, and its way through the doors."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doors import call
from PIL import Image

from jaxgen import cli, infilling
from jaxgen._checks import UserError
from jaxgen.models import masked
from jaxgen.models.base import indexed_keys
from jaxgen.nets.attention import Attention, turned
from jaxgen.nets.tokens import NEIGHBOURS, TokenTransformer, with_neighbours
from jaxgen.train import session
from jaxgen.verify.cases import randomised

LENGTH = 12
SMALL = {"width": 16, "depth": 2, "head_width": 8}


def network(**knobs):
    return TokenTransformer(256, **{**SMALL, **knobs})


def made(**knobs):
    """A small network with random parameters, and three texts."""
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, LENGTH)), jnp.int32)
    net = network(**knobs)
    params = jax.jit(net.init)(jax.random.key(0), x, x > 99)["params"]
    params = jax.jit(randomised)(params, jax.random.key(0))
    apply = jax.jit(lambda x, hidden: net.apply({"params": params}, x, hidden))
    return apply, x, params


def model_of(**options):
    config = masked.MaskedConfig(**{**SMALL, **options})
    return masked.make_masked(masked.resolve(config, (LENGTH,), None)[0])


def test_logits_of_any_order_depend_on_all_that_is_seen_and_on_nothing_hidden():
    apply, x, _ = made()
    hidden = jnp.zeros(x.shape, bool).at[:, jnp.asarray([2, 7])].set(True)
    before = np.asarray(apply(x, hidden))
    for place in range(LENGTH):
        other = np.asarray(apply(x.at[:, place].add(1).clip(0, 255), hidden))
        moved = np.abs(other - before).max(axis=(0, 2))
        if place in (2, 7):
            np.testing.assert_array_equal(moved, 0)
        else:
            assert (moved > 1e-6).all()


def test_causal_logits_hear_what_stands_before_and_nothing_else():
    apply, x, _ = made(is_causal=True)
    hidden = jnp.ones(x.shape, bool)
    before = np.asarray(apply(x, hidden))
    for place in range(LENGTH):
        other = np.asarray(apply(x.at[:, place].set((x[:, place] + 9) % 256), hidden))
        moved = np.abs(other - before).max(axis=(0, 2))
        np.testing.assert_array_equal(moved[: place + 1], 0)
        assert (moved[place + 1 :] > 1e-6).all()
    np.testing.assert_array_equal(apply(x, ~hidden), before)


@pytest.mark.parametrize("before", [NEIGHBOURS // 2, NEIGHBOURS])
def test_tokens_are_joined_with_so_many_before_and_after_them(before):
    h = np.random.default_rng(0).standard_normal((2, 11, 3)).astype(np.float32)
    found = np.asarray(with_neighbours(h, before)).reshape(2, 11, 1 + NEIGHBOURS, 3)
    for place in range(11):
        for number in range(1 + NEIGHBOURS):
            other = place - before + number
            expected = h[:, other] if 0 <= other < 11 else np.zeros((2, 3))
            np.testing.assert_array_equal(found[:, place, number], expected)


def test_both_orders_have_the_same_parameters():
    shapes = [
        jax.tree.map(jnp.shape, made(is_causal=causal)[2]) for causal in (False, True)
    ]
    assert shapes[0] == shapes[1]


def test_products_of_turned_queries_and_keys_hear_their_distance_alone():
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, 9)) for i in (0, 1))
    many = [turned(jnp.broadcast_to(a, (1, 30, 1, 9)))[0, :, 0] for a in (q, k)]
    products = np.asarray(many[0] @ many[1].T)
    for shift in (0, 3, 11):
        diagonal = np.diagonal(products, shift)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-3, atol=1e-4)
    assert np.ptp(products[0]) > 0.1
    np.testing.assert_allclose(products[0, 0], (q * k).sum(), rtol=1e-5)


def test_attention_without_places_is_what_it_was():
    h = jax.random.normal(jax.random.key(0), (2, 5, 12))
    variables = Attention(head_width=4).init(jax.random.key(1), h)
    plain = Attention(head_width=4).apply(variables, h)
    turning = Attention(head_width=4, is_rotary=True).apply(variables, h)
    order = jnp.asarray([3, 1, 4, 0, 2])
    again = Attention(head_width=4).apply(variables, h[:, order])
    np.testing.assert_allclose(again, np.asarray(plain)[:, order], atol=1e-5)
    assert np.abs(np.asarray(turning) - np.asarray(plain)).max() > 1e-3


def test_before_training_every_byte_costs_eight_bits():
    x = jnp.asarray(np.random.default_rng(1).integers(0, 256, (4, LENGTH)), jnp.int32)
    keys = indexed_keys(jax.random.key(0), jnp.arange(4))
    for order in ("any", "causal"):
        model = model_of(order=order)
        params, _ = model.init(jax.random.key(1), {"x": x})
        told = model.log_likelihood(params, x, keys, num_samples=3)
        np.testing.assert_allclose(told.nats, -LENGTH * math.log(256), rtol=1e-5)
        assert told.kind == ("exact" if order == "causal" else "bound")
        (player,) = model.players
        loss, aux = player.objective(
            params, (), {"x": x}, jax.random.key(2), jnp.float32(0)
        )
        assert loss.shape == (4,)
        bits = np.asarray(aux.metrics["bits_per_byte"])
        np.testing.assert_allclose(bits, 8, rtol=1e-5)


@pytest.mark.parametrize("hides", ["number", "share"])
def test_the_mean_loss_is_the_bound(hides):
    """Of a random network: the mean over many draws by number, by share, and when judged."""
    _, x, params = made()
    x = jnp.broadcast_to(x[:1], (4000, LENGTH))
    model = model_of(hides=hides)
    params, (player,) = {masked.NAME: params}, model.players
    objective = jax.jit(
        lambda key: player.objective(params, (), {"x": x}, key, jnp.float32(0))[0]
    )
    loss = np.asarray(objective(jax.random.key(0)))
    keys = indexed_keys(jax.random.key(1), jnp.arange(200))
    judge = jax.jit(lambda p, x: model.log_likelihood(p, x, keys, num_samples=24))
    told = judge(params, x[:200])
    truth = -float(np.mean(told.nats))
    error = float(np.hypot(np.std(told.nats) / 200**0.5, loss.std() / 4000**0.5))
    assert float(loss.mean()) == pytest.approx(truth, abs=4 * error)
    assert abs(truth - LENGTH * math.log(256)) > 10 * error


def test_half_precision_and_remat_change_rounding_alone():
    _, x, params = made()
    keys = indexed_keys(jax.random.key(0), jnp.arange(3))
    nats = {
        name: model_of(**options)
        .log_likelihood({masked.NAME: params}, x, keys, num_samples=4)
        .nats
        for name, options in {
            "plain": {},
            "remat": {"remat": True},
            "half": {"compute": "bfloat16"},
        }.items()
    }
    np.testing.assert_allclose(nats["remat"], nats["plain"], rtol=1e-5)
    np.testing.assert_allclose(nats["half"], nats["plain"], rtol=0.02)
    assert nats["half"].dtype == jnp.float32
    assert (nats["half"] != nats["plain"]).all()


def test_causal_likelihood_is_the_sum_over_its_bytes():
    apply, x, params = made(is_causal=True)
    model = model_of(order="causal")
    keys = indexed_keys(jax.random.key(0), jnp.arange(3))
    told = model.log_likelihood({masked.NAME: params}, x, keys, num_samples=1)
    logs = jax.nn.log_softmax(apply(x, jnp.ones(x.shape, bool)))
    expected = np.take_along_axis(np.asarray(logs), np.asarray(x)[..., None], -1)
    np.testing.assert_allclose(told.nats, expected.sum(axis=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize("order", ["any", "causal"])
def test_a_network_learns_a_text_by_heart_and_says_it(order):
    import optax

    text = np.frombuffer(b"hello, world", np.uint8).astype(np.int32)
    x = jnp.broadcast_to(jnp.asarray(text), (16, LENGTH))
    model = model_of(order=order)
    params, extra = model.init(jax.random.key(0), {"x": x})
    adam = optax.adam(1e-2)

    @jax.jit
    def step(params, state, key):
        def loss(params):
            value, _ = model.players[0].objective(
                params, extra, {"x": x}, key, jnp.float32(0)
            )
            return value.mean()

        updates, state = adam.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = adam.init(params)
    for i in range(250):
        params, state = step(params, state, jax.random.key(i))
    keys = indexed_keys(jax.random.key(1), jnp.arange(4))
    if order == "causal":
        drawn = model.generate(params, model.prior(keys), keys)
        assert bytes(np.asarray(drawn[0], np.uint8)) == b"hello, world"
        told = model.log_likelihood(params, x[:4], keys, num_samples=8)
        assert float(told.nats.mean()) > -1.0
        assert model.infill is None
    else:  # of nothing that is seen it cannot know where a window begins
        seen = x[:4].at[:, :5].set(0)
        hidden = jnp.zeros(x[:4].shape, bool).at[:, :5].set(True)
        filled = model.infill(params, seen, hidden, keys)
        np.testing.assert_array_equal(filled, x[:4])


def test_what_is_seen_of_a_latent_stays():
    _, x, params = made()
    z = jnp.where(jnp.arange(LENGTH)[None] % 3 == 0, x, masked.HIDDEN)
    keys = indexed_keys(jax.random.key(1), jnp.arange(3))
    drawn = np.asarray(model_of().generate({masked.NAME: params}, z, keys))
    np.testing.assert_array_equal(drawn[:, ::3], np.asarray(x)[:, ::3])
    assert drawn.max() < 256
    few = masked.Sampling(num_steps=2)
    drawn = np.asarray(model_of(sampling=few).generate({masked.NAME: params}, z, keys))
    np.testing.assert_array_equal(drawn[:, ::3], np.asarray(x)[:, ::3])
    assert drawn.max() < 256


def test_the_curves_end_at_what_the_model_says():
    """All hidden, a byte costs what nothing but its frequency in training tells."""
    _, x, params = made()
    for order, ends in (("any", (1 / LENGTH, 1.0)), ("causal", (1, LENGTH))):
        model = model_of(order=order)
        (curve,) = model.curves
        places, lines = jax.jit(curve.lines)({masked.NAME: params}, x)
        assert (float(places[0]), float(places[-1])) == pytest.approx(ends)
        assert np.isfinite(lines["network"]).all()
        alone = np.asarray(lines["by frequency alone"])
        counts = np.bincount(np.asarray(x).ravel())
        share = counts[counts > 0] / x.size
        np.testing.assert_allclose(alone, -(share * np.log2(share)).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 2}, "--width must be at least 4"),
        ({"depth": 0}, "--depth must be at least 1"),
        ({"order": "causal", "sampling": masked.Sampling(num_steps=4)}, "--order any"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        masked.MaskedConfig(**options)
    with pytest.raises(UserError, match="--temperature must be at least 0"):
        masked.Sampling(temperature=-1.0)
    with pytest.raises(UserError, match="masked models texts"):
        masked.resolve(masked.MaskedConfig(), (8, 8, 1), None)
    with pytest.raises(UserError, match="--transform bytes, not levels"):
        masked.resolve(masked.MaskedConfig(), (8,), "levels")


# ---- through the doors


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "book.txt"
    words = np.random.default_rng(0).choice(
        ["the cat ", "a dog ", "sat\n", "ran "], 2500
    )
    path.write_text("".join(words))
    return path


TINY = ["--length", "24", "--width", "16", "--depth", "1", "--batch-size", "16"]


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("masked") / "run"
    argv = ["train", "masked", "--data", f"text:{text}", *TINY, "--steps", "40"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*argv, "--out", str(path)])
    assert not stop.value.code
    return path


def test_a_text_is_trained_sampled_and_judged(run, text, tmp_path, capsys):
    told = json.loads((run / "evaluation.json").read_text())
    assert told["bits_per_dim_kind"] == "bound"
    assert told["bits_per_dim"] == pytest.approx(told["nll_nats"] / 24 / math.log(2))
    config = json.loads((run / "config.json").read_text())
    assert (config["data"]["length"], config["data"]["transform"]) == (24, "bytes")
    assert config["data"]["name"] == f"text:{text}"
    with Image.open(run / "samples" / "reals.png") as picture:
        assert picture.width > 400
    page = (run / "report.html").read_text()
    assert "test bits per byte" in page
    assert "share that is hidden" in page
    status, _, err = call(capsys, "sample", run, "--num", "20", "--num-steps", "3")
    assert status == 0, err
    written = (run / "sample.txt").read_text()
    assert written.startswith("--- 0\n")
    assert "\n--- 19\n" in written
    status, _, err = call(
        capsys, "sample", run, "--num", "3", "--out", tmp_path / "s.npz"
    )
    assert status == 0, err
    stored = np.load(tmp_path / "s.npz", allow_pickle=False)["texts"]
    assert (stored.shape, stored.dtype) == ((3, 24), np.uint8)
    status, out, err = call(
        capsys, "evaluate", run, "--num", "40", "--num-samples", "8", "--json"
    )
    assert status == 0, err
    result = json.loads(out)
    assert result["five_gram_bits_per_byte"] < result["gzip_bits_per_byte"] < 8
    assert result["quality"]["coverage"]["features"] == "ngrams"
    assert not (run / "nearest_pairs.png").exists()
    assert "bits/byte (bound" in err


def test_a_run_of_text_is_diagnosed(run, capsys):
    status, out, err = call(capsys, "diagnose", run, "--num", "40", "--num-steps", "4")
    assert status == 0, err
    assert "bits a byte" in out
    found = json.loads((run / "diagnosis.json").read_text())
    assert set(found["problems"]) == {"fit", "samples", "copies"}
    assert found["problems"]["fit"]["is_clean"] is False  # forty steps teach little
    assert not (run / "diagnosis.png").exists()


def test_blanks_are_filled_and_the_rest_is_kept(run, capsys):
    argv = ("infill", run, "--text", "the ___ sat\\n", "--num", "10")
    status, out, err = call(capsys, *argv, "--json")
    assert status == 0, err
    answers = json.loads(out)["answers"]
    assert len(answers) == 10
    loaded = session.load(run)
    given, hidden = infilling.parsed("the ___ sat\\n", "_")
    found = infilling.answers(loaded, given, hidden, num=10, seed=0)
    np.testing.assert_array_equal(found[:, ~hidden], np.tile(given[~hidden], (10, 1)))
    assert given.tobytes() == b"the ___ sat\n"
    assert len(np.unique(found, axis=0)) > 5
    again = infilling.answers(loaded, given, hidden, num=3, seed=0)
    np.testing.assert_array_equal(again, found[:3])
    other = infilling.answers(loaded, given, hidden, num=3, seed=1)
    assert (other != again).any()
    status, out, err = call(
        capsys, "infill", run, "--text", "a?b", "--blank", "?", "--num", "2"
    )
    assert status == 0, err
    assert out.startswith("--- 0\na")
    assert "\n--- 1\na" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--text", "no blank"], "the text has no '_'"),
        (["--text", "_", "--blank", "ab"], "--blank must be one character"),
        (["--text", "_" * 25], "the text has 25 bytes, the run's windows have 24"),
        (["--text", "_", "--num", "0"], "--num must be at least 1"),
        ([], "--text"),
    ],
)
def test_a_mistake_in_a_text_to_fill_in_is_one_line(run, capsys, argv, message):
    status, out, err = call(capsys, "infill", run, *argv)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["sample", "RUN", "--out", "s.csv"],
            "must end in .txt or .npz or .png for texts",
        ),
        (["sample", "RUN", "--log-prob"], "--log-prob is for rows of a table"),
        (["edit", "RUN", "--task", "inpaint"], "diffusion runs of images"),
        (["evaluate", "RUN", "--features", "random"], "random is not for texts"),
        (["evaluate", "RUN", "--judge", "10"], "label"),
        (["evaluate", "RUN", "--ais", "10"], "--ais"),
        (["train", "vae", "--data", "latents:RUN"], "no encoder"),
        (
            ["train", "masked", "--data", "digits"],
            "masked models texts, digits holds images",
        ),
        (["train", "vae", "--data", "text:pydoc"], "jaxgen train masked"),
        (
            ["train", "masked", "--data", "text:pydoc", "--image-size", "8"],
            "--image-size",
        ),
        (["train", "masked", "--data", "table:wine"], "table:wine holds rows"),
    ],
)
def test_what_does_not_fit_a_text_is_one_line(run, tmp_path, capsys, argv, message):
    argv = [word.replace("RUN", str(run)) for word in argv]
    if argv[0] == "train":
        argv += ["--out", tmp_path / "other"]
    status, out, err = call(capsys, *argv)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "other").exists()


def test_a_causal_run_has_an_exact_likelihood_and_fills_nothing_in(
    text, tmp_path, capsys
):
    run = tmp_path / "run"
    argv = ["train", "masked", "--order", "causal", "--data", f"text:{text}", *TINY]
    status, _, err = call(capsys, *argv, "--steps", "4", "--out", run)
    assert status == 0, err
    assert json.loads((run / "evaluation.json").read_text())["nll_nats_kind"] == "exact"
    status, _, err = call(capsys, "infill", run, "--text", "a_")
    assert status == 2
    assert "is for runs of texts in any order" in err
    status, _, err = call(capsys, *argv, "--steps", "4", "--out", run)
    assert status == 0, err
    assert "has finished" in err
