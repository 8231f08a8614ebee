"""`jaxgen edit`: what it takes, what it refuses, and what it writes."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doors import call
from PIL import Image

from jaxgen import data, editing, models, operators
from jaxgen.models import diffusion_answers, diffusion_denoiser
from jaxgen.train import config as configs
from jaxgen.train import rundir, session
from jaxgen.verify.cases import randomised

TINY = {"widths": (8,), "blocks": 1}


def make_run(path, family="diffusion", model=None, **where):
    """A run folder without training: enough for what is refused."""
    config = configs.default(family)
    model = dataclasses.replace(config.model, **(model or {}))
    config = dataclasses.replace(
        config, model=model, data=dataclasses.replace(config.data, **where)
    )
    config = session.resolve(config, data.open_dataset(config.data))
    run = rundir.RunFolder(path)
    run.claim()
    run.create(config)
    return path


def write(path, *shape, seed=0):
    """An image of this shape of random levels, grey or colour."""
    levels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(levels).save(path)
    return levels


@pytest.fixture
def grey(tmp_path):
    return make_run(tmp_path / "grey", model=TINY)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task", "colourise"], "are grey (8x8x1): inpaint and enlarge fit"),
        (["--task", "paint"], "inpaint"),
        (
            ["--task", "enlarge", "--image", "five.png"],
            "by 2 takes 4x4, or a whole image",
        ),
        (["--task", "enlarge", "--scale", "3"], "--scale must be 2 or 4, got 3"),
        (["--task", "enlarge", "--mask", "half"], "--mask is for --task inpaint"),
        (["--task", "inpaint", "--scale", "2"], "--scale is for --task enlarge"),
        (
            ["--task", "inpaint", "--mask", "five.png"],
            "is 5x5, the run's images are 8x8",
        ),
        (["--task", "inpaint", "--mask", "black.png"], "hides nothing"),
        (["--task", "inpaint", "--mask", "hlaf"], "did you mean 'half'?"),
        (["--task", "inpaint", "--image", "no.png"], "--image no.png: no such file"),
        (["--task", "inpaint", "--image", "."], "--image .: a folder"),
        (["--task", "inpaint", "--image", "text.png"], "cannot be read (Unidentified"),
        (["--task", "inpaint", "--num", "0"], "--num must be at least 1, got 0"),
        (["--task", "inpaint", "--num-images", "999"], "at most 360, got 999"),
        (["--task", "inpaint", "--seed", "-1"], "--seed must be in"),
        (["--task", "inpaint", "--out", "x.jpg"], "must end in .png or be a folder"),
        (["--task", "inpaint", "--out", "no/x.png"], "--out: no such folder: no"),
        (["--task", "inpaint", "--method", "dsp"], "dps"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_edit_refuses_in_one_line(grey, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    write("five.png", 5, 5)
    Image.new("L", (8, 8)).save("black.png")
    (tmp_path / "text.png").write_text("no picture")
    status, out, err = call(capsys, "edit", grey, *argv)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_edit_refuses_runs_without_denoising_steps(tmp_path, capsys):
    runs = [
        make_run(tmp_path / "vae", "vae"),
        make_run(tmp_path / "mean-flow", model={**TINY, "one_step": True}),
        make_run(tmp_path / "table", name="table:wine"),
    ]
    for run in [*runs, tmp_path / "none"]:
        status, out, err = call(capsys, "edit", run, "--task", "inpaint")
        assert (status, out) == (2, "")
        assert (
            "no such run folder" if run not in runs else "takes runs on a --task"
        ) in err
        assert len(err.splitlines()) == 1


def test_edit_refuses_a_scale_that_does_not_divide(tmp_path, capsys):
    run = make_run(tmp_path / "ten", model=TINY, image_size=10)
    argv = ["edit", run, "--task", "enlarge", "--scale", "4"]
    status, _, err = call(capsys, *argv)
    assert status == 2
    assert "--scale 4 does not divide the images of" in err
    assert "10x10; --scale 2 does" in err


def options(tmp_path, task, *images, **others):
    return editing.EditOptions(run=tmp_path, task=task, image=images, **others)


def given(tmp_path, task, name, shape=(8, 8, 3), **others):
    each = options(tmp_path, task, tmp_path / name, **others)
    return editing._given(each, None, shape)[0]


def test_a_whole_image_is_the_truth_and_what_is_seen_of_it_the_condition(tmp_path):
    levels = write(tmp_path / "x.png", 8, 8, 3)
    x = (levels + 0.5) / 256
    filled = given(tmp_path, "inpaint", "x.png", mask="half")
    np.testing.assert_array_equal(filled.truth, levels)
    np.testing.assert_allclose(filled.seen[:, :4], x[:, :4], rtol=1e-6)
    np.testing.assert_array_equal(filled.seen[:, 4:], 0)
    np.testing.assert_array_equal(filled.shown[:, :4], levels[:, :4])
    assert (filled.shown[:, 4:] == 128).all()
    grey = given(tmp_path, "colourise", "x.png")
    np.testing.assert_array_equal(grey.truth, levels)
    np.testing.assert_allclose(grey.seen[..., 0], x @ operators.LUMA, rtol=1e-5)
    np.testing.assert_allclose(grey.shown[..., :1] / 255.0, grey.seen, atol=0.51 / 255)
    small = given(tmp_path, "enlarge", "x.png", scale=4)
    np.testing.assert_array_equal(small.truth, levels)
    np.testing.assert_allclose(small.seen[1, 0], x[4:, :4].mean((0, 1)), rtol=1e-5)
    assert (small.shown == small.shown.reshape(2, 4, 2, 4, 3)[:, :1, :, :1].repeat(
        4, 1
    ).repeat(4, 3).reshape(8, 8, 3)).all()  # fmt: skip


def test_a_part_of_an_image_has_no_truth(tmp_path):
    levels = write(tmp_path / "grey.png", 8, 8)
    grey = given(tmp_path, "colourise", "grey.png")
    assert grey.truth is None
    np.testing.assert_allclose(grey.seen[..., 0], (levels + 0.5) / 256, rtol=1e-5)
    levels = write(tmp_path / "small.png", 4, 4, 3)
    small = given(tmp_path, "enlarge", "small.png")
    assert small.truth is None
    np.testing.assert_allclose(small.seen, (levels + 0.5) / 256, rtol=1e-6)
    np.testing.assert_array_equal(small.shown[::2, 1::2], levels)


def test_an_image_of_another_size_is_resized_and_told(tmp_path, capsys):
    write(tmp_path / "wide.png", 16, 40, 3)
    each = given(tmp_path, "inpaint", "wide.png")
    assert each.truth.shape == (8, 8, 3)
    told = capsys.readouterr().err
    assert "16x40, cropped to the centre and resized to 8x8" in told
    with pytest.raises(editing.UserError, match="only squares are cropped and resized"):
        given(tmp_path, "inpaint", "wide.png", shape=(8, 6, 3))


def test_a_mask_file_hides_what_is_white(tmp_path):
    write(tmp_path / "x.png", 8, 8, 3)
    white = np.zeros((8, 8), np.uint8)
    white[2:5, 1] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    each = given(tmp_path, "inpaint", "x.png", mask=str(tmp_path / "mask.png"))
    np.testing.assert_array_equal(each.hidden[..., 0] * 255, white)


def fake(path):
    """A run whose answers are the latent, quarter by quarter, and what is seen."""
    traces = []

    def answer(params, z, keys, operator, y, **how):
        traces.append(how)
        noise = jax.vmap(lambda key: jax.random.uniform(key, z.shape[1:]))(keys)
        return operators.consistent(operator, (0 * z + noise) / 4, y)

    def prior(keys, params=None):
        return jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(keys)

    model = models.Model(
        init=None, players=(), prior=prior, generate=None, answer=answer
    )
    config = types.SimpleNamespace(data=data.DataConfig())
    return session.Loaded(rundir.RunFolder(path), config, model, {}, 1, []), traces


def test_an_answer_belongs_to_seed_image_and_number_by_one_program(tmp_path):
    loaded, traces = fake(tmp_path)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        write(path, 8, 8, seed=i)

    def answers(num, some=paths, **others):
        chosen = options(tmp_path, "inpaint", *some, num=num, mask="pixels", **others)
        images = editing._given(chosen, None, (8, 8, 1))
        return editing._answers(chosen, loaded, images), images

    many, images = answers(7)
    assert many.shape == (3, 7, 8, 8, 1)
    assert len(traces) == 1
    assert len(np.unique(many.reshape(21, -1), axis=0)) == 21
    np.testing.assert_array_equal(answers(2, paths[:2])[0], many[:2, :2])
    assert (answers(2, seed=1)[0] != many[:, :2]).any((2, 3, 4)).all()
    seen = np.stack([each.hidden for each in images])[:, None] == 0
    expected = np.stack([each.seen for each in images])[:, None]
    np.testing.assert_allclose(np.where(seen, many, 0), expected + 0 * many, atol=1e-6)
    assert len({each.hidden.tobytes() for each in images}) == 3
    twice, images = answers(1, paths[:1] * 2)  # the same image has other answers
    hidden = images[0].hidden * images[1].hidden > 0
    assert (twice[0, 0][hidden] != twice[1, 0][hidden]).all()
    expected = {"method": "pseudo_inverse", "step_size": 1.0, "resamples": 10}
    assert traces[0] == expected


def test_pictures_have_condition_answers_and_truth(tmp_path):
    write(tmp_path / "x.png", 8, 8)
    write(tmp_path / "small.png", 4, 4)
    names = [tmp_path / "x.png", tmp_path / "small.png"]
    images = editing._given(options(tmp_path, "enlarge", *names), None, (8, 8, 1))
    found = np.stack([np.full((3, 8, 8, 1), v, np.float32) for v in (0.0, 1.0)])
    (path,) = editing._write(tmp_path / "edit.png", images, found)
    picture = np.asarray(Image.open(path))
    factor = picture.shape[0] // 17
    assert picture.shape == (17 * factor, 44 * factor)  # 2 x 5 of 8 and gaps
    tiles = picture[::factor, ::factor]
    np.testing.assert_array_equal(tiles[:8, :8], images[0].shown[..., 0])
    assert (tiles[:8, 9:17] == 0).all()
    assert (tiles[9:, 27:35] == 255).all()
    np.testing.assert_array_equal(tiles[:8, 36:], images[0].truth[..., 0])
    assert (tiles[9:, 36:] == 128).all()  # of what was small there is no truth
    paths = editing._write(tmp_path / "all", images, found)
    expected = ["00-x-seen", "00-x-0", "00-x-1", "00-x-2", "00-x-given"]
    expected += ["01-small-seen", *(f"01-small-{k}" for k in range(3))]
    assert [p.stem for p in paths] == expected
    read = np.asarray(Image.open(tmp_path / "all" / "00-x-given.png"))
    np.testing.assert_array_equal(read, images[0].truth[..., 0])


def test_the_class_of_an_edit_is_told():
    """Of a random network of three classes, by replacement in two steps."""
    operator = operators.mask(jnp.zeros((1, 8, 8, 1)).at[:, :, 4:].set(1))
    y = operator.apply(jnp.full((2, 8, 8, 1), 0.4))
    z = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))

    def hidden(label):
        sampling = models.diffusion.Sampling(label=label, num_steps=2)
        config = models.diffusion.DiffusionConfig(
            **TINY, conditional=True, sampling=sampling
        )
        config, _ = models.diffusion.resolve(config, (8, 8, 1), None, num_classes=3)
        x = {"x": jnp.stack([z[0], 0 * z[0]]), "label": jnp.arange(2)}

        @jax.jit
        def run(key):
            params = diffusion_denoiser.init(config, key, x)
            params = {**params, "net": randomised(params["net"], jax.random.key(0))}
            keys = jax.random.split(key, 2)
            return diffusion_answers.answered(
                config, params, z, keys, operator, y, method="replacement"
            )

        return np.asarray(run(jax.random.key(0)))[:, :, 4:]

    assert np.abs(hidden(1) - hidden(None)).max() > 1e-3


@pytest.fixture(scope="module")
def exact():
    """An untrained network: the exact denoiser of N(mean, 0.2^2) of each value, inside."""
    dataset = data.open_dataset(data.DataConfig())
    sampling = models.diffusion.Sampling(sampler="dpmpp_2m", num_steps=24)
    config = models.diffusion.DiffusionConfig(**TINY, sampling=sampling)
    config, _ = models.diffusion.resolve(config, dataset.shape, None)
    x = {"x": jnp.asarray(dataset.test.take(np.arange(8))["x"] / 255, jnp.float32)}
    init = jax.jit(lambda key: diffusion_denoiser.init(config, key, x))
    params = init(jax.random.key(0))
    mean = jnp.full((1,), -0.1)
    return config, {**params, "sigma_data": jnp.float32(0.2), "mean": mean}


@pytest.mark.parametrize(
    "task", ["inpaint", pytest.param("enlarge", marks=pytest.mark.slow)]
)
def test_answers_of_an_exact_denoiser_are_those_of_the_posterior(
    exact, task, monkeypatch
):
    """In units of the data: mean 0.45, deviation 0.1."""
    config, params = exact
    if task == "inpaint":  # the sampler alone
        unchanged = lambda operator, x, y: x
        monkeypatch.setattr(operators, "consistent_within", unchanged)
    num = 64
    hidden = jnp.zeros((1, 8, 8, 1)).at[:, :, 4:].set(1)
    operator = {"inpaint": operators.mask(hidden), "enlarge": operators.block_mean(2)}[
        task
    ]
    truth = jnp.full((1, 8, 8, 1), 0.6).at[:, 2].set(0.4)
    y = jnp.repeat(operator.apply(truth), num, axis=0)

    @jax.jit
    def run(keys):
        z = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(keys)
        return diffusion_answers.answered(
            config, params, z, keys, operator, y, method="pseudo_inverse"
        )

    x = np.asarray(run(jax.random.split(jax.random.key(0), num)))
    off = 1e-3 if task == "inpaint" else 1e-5
    np.testing.assert_allclose(operator.apply(jnp.asarray(x)), y, atol=off)
    if task == "inpaint":
        free = (x[:, :, 4:] - 0.45) / 0.1
    else:  # what the means leave of a block: 3 of its 4 directions
        free = (x - np.asarray(operator.pseudo_inverse(y))) / 0.1 / np.sqrt(0.75)
    size = free.size if task == "inpaint" else 0.75 * free.size
    assert abs(free.mean()) < 4 / np.sqrt(size)
    assert abs((free**2).mean() - 1) < 0.03 + 4 * np.sqrt(2 / size)


@pytest.mark.slow
def test_the_first_estimate_is_already_led_all_the_way(exact, monkeypatch):
    """By the data's own deviation: with another one only the last steps would be."""
    config, params = exact
    unchanged = lambda operator, x, y: x
    monkeypatch.setattr(operators, "consistent_within", unchanged)
    sampling = models.diffusion.Sampling(sampler="euler", num_steps=1)
    config = dataclasses.replace(config, sampling=sampling)
    hidden = jnp.zeros((1, 8, 8, 1)).at[:, :, 4:].set(1)
    y = jnp.where(hidden > 0, 0, 0.6)

    @jax.jit
    def run(keys):
        z = jnp.ones((1, 8, 8, 1))
        return diffusion_answers.answered(
            config, params, z, keys, operators.mask(hidden), y, method="pseudo_inverse"
        )

    x = np.asarray(run(jax.random.split(jax.random.key(0), 1)))[0]
    np.testing.assert_allclose(x[:, :4], 0.6, atol=1e-3)
    np.testing.assert_allclose(x[:, 4:], 0.45, atol=1e-2)


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A run of tiny colour images, hardly trained."""
    from jaxgen import cli

    root = tmp_path_factory.mktemp("colour")
    (root / "photos").mkdir()
    for i in range(40):
        write(root / "photos" / f"{i:02d}.png", 8, 8, 3, seed=i)
    argv = ["train", "diffusion"]
    argv += ["--data", f"folder:{root / 'photos'}", "--image-size", "8", "--steps", "2"]
    argv += ["--widths", "8", "--blocks", "1", "--batch-size", "16"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*argv, "--out", str(root / "run")])
    assert not stop.value.code
    return root / "run"


@pytest.mark.slow
def test_edit_colours_fills_in_and_enlarges(colour, tmp_path, capsys):
    levels = write(tmp_path / "x.png", 8, 8, 3)
    argv = ["edit", colour, "--num-steps", "3", "--image", tmp_path / "x.png"]
    tasks = {
        "inpaint": ["--method", "dps", "--mask", "half"],
        "colourise": ["--sampler", "heun"],
        "enlarge": ["--method", "repaint", "--resamples", "2"],
    }
    for task, more in tasks.items():
        out = tmp_path / task
        status, told, err = call(
            capsys, *argv, "--task", task, *more, "--num", "2", "--out", out
        )
        assert status == 0, err
        assert len(told.splitlines()) == 4
        assert "2 answers to each of 1 images by" in err
        off = float(err.split("met within ")[1].split()[0])
        assert off < 0.5, err
        answers = [np.asarray(Image.open(out / f"00-x-{k}.png")) for k in range(2)]
        assert (answers[0] != answers[1]).any()
        if task == "inpaint":
            np.testing.assert_array_equal(answers[0][:, :4], levels[:, :4])
    status, _, err = call(
        capsys, *argv, "--task", "inpaint", "--method", "dps", "--sampler", "heun"
    )
    assert status == 2
    assert "--sampler heun is for --method moments and pseudo_inverse" in err
