"""Features and their identity, the quality of samples, and what `evaluate` makes of it."""

import base64
import json

import numpy as np
import pytest
from doors import SHORT, call
from PIL import Image
from scipy import ndimage

from jaxgen import data
from jaxgen._checks import RunError, UserError
from jaxgen.columns import Column
from jaxgen.evaluate import classifier, distances, features, quality, tables, tensors
from jaxgen.evaluate.features import Features

# Made by the package safetensors 0.8.0: save({"b": float32 [[1, 2]], "a": float16 [-1]}).
FROM_SAFETENSORS = bytes.fromhex(
    "70000000000000007b2262223a7b226474797065223a22463332222c227368617065223a5b312c325d2c"
    "22646174615f6f666673657473223a5b302c385d7d2c2261223a7b226474797065223a22463136222c22"
    "7368617065223a5b315d2c22646174615f6f666673657473223a5b382c31305d7d7d20200000803f0000"
    "004000bc"
)


@pytest.fixture(scope="module")
def digits():
    return data.open_dataset(data.DataConfig(name="digits"))


@pytest.fixture(scope="module")
def extractors(digits):
    return {
        n: features.choose(n, digits) for n in ("digits", "random", "pixels", "pca")
    }


def as_dataset(train, test, **options):
    return data.Dataset(
        name="tiny",
        train=data.ArraySource(train),
        test=data.ArraySource(test),
        shape=train.shape[1:],
        num_classes=None,
        notes=(),
        **options,
    )


def shift_of_means(x):
    """The first number of each example as its only feature: differences are plain."""
    return np.asarray(x, np.float64).reshape(len(x), -1)[:, :1]


FIRST = Features("first", "0" * 64, "none", shift_of_means)


def corrupted(x, kind, level):
    """Images uint8 `[N, 8, 8, 1]` as a worse sampler might make them, level 0 not at all."""
    x = x[..., 0].astype(np.float64)
    rng = np.random.default_rng(0)
    if kind == "noise":
        x = x + 45 * level * rng.normal(size=x.shape)
    elif kind == "blur":
        x = ndimage.gaussian_filter(x, (0, 0.5 * level, 0.5 * level))
    elif kind == "blackout":
        x[:, 4 - level : 4 + level, 4 - level : 4 + level] = 0
    elif kind == "swirl":
        down, right = np.mgrid[:8, :8] - 3.5
        angle = 0.6 * level * np.clip(1 - np.hypot(down, right) / 5.5, 0, None)
        places = [
            np.cos(angle) * down - np.sin(angle) * right + 3.5,
            np.sin(angle) * down + np.cos(angle) * right + 3.5,
        ]
        x = np.stack([ndimage.map_coordinates(i, places, order=1) for i in x])
    elif kind == "pixelise":
        size = 2**level
        means = x.reshape(len(x), 8 // size, size, 8 // size, size).mean(axis=(2, 4))
        x = np.kron(means, np.ones((1, size, size)))
    elif kind == "crop":
        part = x[:, level : 8 - level, level : 8 - level]
        x = ndimage.zoom(
            part, (1, *[8 / part.shape[1]] * 2), order=1, grid_mode=True, mode="nearest"
        )
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)[..., None]


KINDS = ("noise", "blur", "blackout", "swirl", "pixelise", "crop")


# Of 8x8 pixels a swirl blurs first, which the random network sees and the turn after it not.
@pytest.mark.parametrize(
    ("name", "kind"),
    [("digits", kind) for kind in KINDS]
    + [("random", kind) for kind in KINDS if kind != "swirl"],
)
def test_distances_grow_with_every_corruption(digits, extractors, kind, name):
    apply = extractors[name].apply
    test = apply(digits.test.take(np.arange(360))["x"])
    train = digits.train.take(np.arange(360))["x"]
    found = []
    for level in range(4):
        fake = apply(corrupted(train, kind, level))
        found.append(
            [
                distances.frechet(test, fake),
                distances.kernel_distance(test, fake).value,
                distances.sliced_wasserstein(test, fake, num_directions=200),
            ]
        )
    assert np.all(np.diff(found, axis=0) > 0), (kind, np.array(found).T)


@pytest.mark.parametrize("name", ["digits", "random", "pixels", "pca"])
def test_features_are_each_examples_own(digits, extractors, name):
    x = digits.test.take(np.arange(300))["x"]
    made = extractors[name]
    whole = made.apply(x)
    assert whole.dtype == np.float64
    assert len(whole) == 300
    for part in (slice(0, 1), slice(37, 260), slice(299, 300)):
        np.testing.assert_allclose(
            made.apply(x[part]), whole[part], rtol=1e-4, atol=1e-4
        )
    assert len(made.sha256) == 64
    ids = {(m.id, m.sha256) for m in extractors.values()}
    assert len(ids) == len(extractors)


def test_random_features_are_those_of_their_seed(digits, extractors):
    again, other = features.random((8, 8, 1)), features.random((8, 8, 1), seed=1)
    assert again.sha256 == extractors["random"].sha256 != other.sha256
    # Weights of NumPy's promised stream: the same on every machine and version.
    assert again.sha256[:16] == "2194acb763421186"


def test_principal_components_are_those_of_the_training_split(digits, extractors):
    x = digits.train.take(np.arange(1437))["x"]
    made = extractors["pca"].apply(x)
    assert extractors["pca"].id == "pca:64"
    np.testing.assert_allclose(made.mean(axis=0), 0, atol=1e-9)
    variances = np.linalg.svd(
        x.reshape(len(x), -1) / 255 - x.reshape(len(x), -1).mean(axis=0) / 255,
        compute_uv=False,
    ) ** 2 / len(x)
    np.testing.assert_allclose(
        np.cov(made, rowvar=False, bias=True), np.diag(variances), atol=1e-9
    )


def test_shipped_classifiers_know_their_data(digits):
    made = classifier.make_classifier(digits)  # no training: they are shipped
    examples = digits.test.take(np.arange(360))
    guess = made.probabilities(examples["x"]).argmax(axis=1)
    assert np.mean(guess == examples["label"]) > 0.97
    for name, held in classifier.SHIPPED.items():
        path = classifier.WEIGHTS / f"{name}.safetensors"
        assert path.stat().st_size < 300_000
        made = classifier.shipped(name)
        image = np.zeros((2, *held.shape), np.uint8)
        np.testing.assert_allclose(made.probabilities(image).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("change", ["flipped", "truncated", "absent"])
def test_edited_weights_are_refused(digits, tmp_path, monkeypatch, capsys, change):
    content = bytearray((classifier.WEIGHTS / "digits.safetensors").read_bytes())
    content[-100] ^= 1
    if change == "truncated":
        content = content[:-2]
    if change != "absent":
        (tmp_path / "digits.safetensors").write_bytes(content)
    monkeypatch.setattr(classifier, "WEIGHTS", tmp_path)
    message = "No such file" if change == "absent" else "not the file that was shipped"
    with pytest.raises(UserError, match=message):
        features.choose("auto", digits)


def test_tensors_are_kept_whole_and_as_safetensors_has_them():
    arrays = {
        "b": np.float32([[1, 2]]),
        "a": np.float16([-1]),
        "none": np.zeros((0, 3), np.float64),
    }
    content = tensors.encode(arrays)
    found = tensors.decode(content)
    assert sorted(found) == sorted(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    theirs = tensors.decode(FROM_SAFETENSORS)
    np.testing.assert_array_equal(theirs["b"], arrays["b"])
    np.testing.assert_array_equal(theirs["a"], arrays["a"])
    for cut in range(len(content)):
        with pytest.raises(ValueError, match="no safetensors file"):
            tensors.decode(content[:cut])
    with pytest.raises(ValueError, match="no safetensors file"):
        tensors.decode(content + b"x")
    with pytest.raises(ValueError, match="no safetensors file"):
        tensors.decode((2**60).to_bytes(8, "little") + content[8:])
    # The two arrays over each other, and as many bytes as the last one's end says.
    over = FROM_SAFETENSORS.replace(b"[8,10]", b"[6,8] ")[:-2]
    with pytest.raises(ValueError, match="a begins at 6, not at 8"):
        tensors.decode(over)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("dino", (8, 8, 1), "unknown --features 'dino'"),
        ("mnist", (8, 8, 1), "is for images (28, 28, 1)"),
        ("random", (4, 8, 1), "at least 8 pixels"),
        ("classifier", (8, 8, 3), "no labels"),
    ],
)
def test_choose_refuses_features_that_do_not_fit(name, shape, message):
    x = np.zeros((4, *shape), np.uint8)
    with pytest.raises(UserError) as error:
        features.choose(name, as_dataset(x, x))
    assert message in str(error.value)


def test_auto_takes_what_the_data_have(digits):
    x = np.zeros((4, 8, 8, 3), np.uint8)
    assert features.choose("auto", digits).id == "classifier:digits"
    assert features.choose("auto", as_dataset(x, x)).id == "random:0"
    assert features.choose("auto", as_dataset(x[:, :4], x[:, :4])).id == "pixels"
    # Channels of a stacked set are seen one by one, by the classifier of its parts.
    stacked = as_dataset(x, x, parts=digits)
    made = features.choose("auto", stacked)
    assert made.preprocessing == "uint8 / 255, each channel by itself"
    assert made.apply(x).shape == (4, 3 * 128)


def test_features_of_rows_are_standardised_columns():
    columns = (
        Column(name="a", mean=3.0, deviation=2.0),
        Column(name="b", kind="angle", low=0.0, high=360.0),
        Column(name="c", kind="positive", mean=1.0, deviation=0.5),
    )
    rows = np.float32([[5, 90, np.e], [1, 180, 1]])
    expected = [[1, 0, 1, 0], [-1, -1, 0, -2]]
    dataset = as_dataset(rows, rows, columns=columns)
    made = features.choose("auto", dataset)
    np.testing.assert_allclose(made.apply(rows), expected, atol=1e-6)
    with pytest.raises(UserError, match="tables have pixels and pca"):
        features.choose("random", dataset)


def test_own_features_are_what_their_owner_says():
    x = (np.arange(6 * 64) % 256).astype(np.uint8).reshape(6, 8, 8, 1)
    made = features.own("mean", lambda x: x.mean(axis=(1, 2)), preprocessing="none")
    np.testing.assert_array_equal(made.apply(x), x.mean(axis=(1, 2)))
    assert (made.id, made.preprocessing) == ("own:mean", "none")
    other = features.own("mean", lambda x: x, preprocessing="none", sha256="f" * 64)
    assert other.sha256 == "f" * 64 != made.sha256
    with pytest.raises(ValueError, match=r"must give \[250, D\]"):
        other.apply(x)


def told_of(samples, *, train=None, test=None, num=10_000, by=FIRST):
    rng = np.random.default_rng(5)
    train, test = (
        rng.integers(0, 200, (n, 2, 2, 1)).astype(np.uint8) if x is None else x
        for x, n in ((train, 300), (test, 200))
    )
    return quality.evaluate(
        by, as_dataset(train, test), lambda start: samples[start : start + 64], num
    )


def test_evaluation_has_every_figure_with_all_that_belongs_to_it():
    rng = np.random.default_rng(6)
    told = told_of(rng.integers(40, 240, (200, 2, 2, 1)).astype(np.uint8))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert list(told["quality"]) == list(quality.BETTER)
    for name, entry in told["quality"].items():
        assert entry["low"] <= entry["value"] <= entry["high"], name
        assert (entry["num_real"], entry["num_fake"]) == (200, 200)
        assert (entry["features"], entry["features_sha256"]) == ("first", "0" * 64)
        assert (entry["preprocessing"], entry["better"]) == (
            "none",
            quality.BETTER[name],
        )
    frechet = told["quality"]["frechet"]
    # A shift by 40 of what lies evenly on 0 .. 199.
    assert abs(frechet["value"] - 1600) < 4 * 2 * 40 * 200 / np.sqrt(12) * np.sqrt(
        2 / 200
    )
    assert frechet["low"] > frechet["floor"]
    assert frechet["ceiling"] > 5 * frechet["floor"]
    assert told["quality"]["c2st"]["p_value"] < 0.05
    assert told["memorisation"]["num_train"] == 300


def test_a_figure_that_is_not_finite_is_null(monkeypatch):
    """Never 0, which would read as a perfect distance."""
    nothing = quality.Interval(np.nan, np.nan, np.inf)
    told = quality.Measured(dict.fromkeys(quality.BETTER, nothing), 0.5)
    monkeypatch.setattr(quality, "measure", lambda *x, **options: told)
    x = np.zeros((20, 2))
    places = np.arange(20)
    compared = quality.Compared(
        real=x, fake=x, floor=x, ceiling=x, train=x, places=places
    )
    for entry in quality.figures(compared, {}).values():
        for name in ("value", "low", "high", "floor", "ceiling"):
            assert entry[name] is None


def test_as_many_samples_as_test_examples_are_drawn_and_no_more():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, (300, 2, 2, 1)).astype(np.uint8)
    for num, expected in ((100, 100), (2000, 200)):
        asked = []

        def draw(start, asked=asked, expected=expected):
            asked.append(start)
            y = np.roll(x, 40, axis=0)[start : start + 64].copy()
            y[max(0, expected - start) :] = 255  # of the last ones that are not wanted
            return y

        told = quality.evaluate(FIRST, as_dataset(x, x[:200]), draw, num)
        assert told["quality"]["frechet"]["num_fake"] == expected
        assert asked == list(range(0, expected, 64))
        assert told["quality"]["sliced_wasserstein"]["value"] < 900


def test_the_floor_is_of_training_examples():
    rng = np.random.default_rng(0)
    train, test = (
        rng.integers(a, 100 + a, (99, 2, 2, 1)).astype(np.uint8) for a in (50, 0)
    )
    told = told_of(test, train=train, test=test)["quality"]["frechet"]
    assert told["value"] < 1e-9
    assert abs(told["floor"] - 2500) < 4 * 2 * 50 * 100 / np.sqrt(12) * np.sqrt(2 / 99)


def test_samples_whose_features_are_not_finite_are_refused():
    def broken(x):
        made = shift_of_means(x)
        made[made > 250] = np.nan
        return made

    samples = np.zeros((200, 2, 2, 1), np.uint8)
    samples[3:5] = 255
    with pytest.raises(RunError, match="2 of 200 samples have features by first"):
        told_of(samples, by=FIRST._replace(apply=broken))


def test_fewer_samples_than_dimensions_are_told_of_and_few_refused(capsys):
    wide = features.own(
        "wide", lambda x: np.tile(x.reshape(len(x), -1), 60), preprocessing=""
    )
    rng = np.random.default_rng(0)
    told = told_of(rng.integers(0, 200, (200, 2, 2, 1)).astype(np.uint8), by=wide)
    assert "200 samples in 240 dimensions" in capsys.readouterr().err
    assert told["quality"]["frechet"]["value"] is not None
    few = np.zeros((19, 2, 2, 1), np.uint8)
    assert told_of(None, test=few) == {}
    assert "at least 20 test and training examples" in capsys.readouterr().err


def test_rows_are_drawn_by_their_weights():
    rows = np.float32(np.arange(100)[:, None])
    weight = np.where(np.arange(100) < 50, 0.0, 1.0).astype(np.float32)
    source = data.ArraySource(rows, weight=weight)
    taken = quality.taken(source, 80, 0)["x"]
    assert len(taken) == 80
    assert taken.min() >= 50


@pytest.mark.parametrize("key", quality.SAME)
def test_figures_of_unlike_kinds_are_not_compared(key):
    entry = dict.fromkeys(quality.SAME, "x")
    quality.check_comparable("frechet", entry, dict(entry))
    with pytest.raises(UserError, match=f"unlike {key}"):
        quality.check_comparable("frechet", entry, entry | {key: "y"})


def test_tables_are_of_every_figure_and_show_what_is_missing(tmp_path):
    rng = np.random.default_rng(6)
    told = told_of(rng.integers(0, 200, (200, 2, 2, 1)).astype(np.uint8))
    told["quality"]["kernel"]["low"] = None
    shown = tables.text(told)
    lines = shown.splitlines()
    assert len({len(line) for line in lines[2:13]}) <= 2
    assert "Frechet distance" in shown
    assert "none .." in shown
    assert "no copying shown" in shown.lower()
    assert tables.text({"nll_nats": None}) == tables.page({}, tmp_path) == ""
    hostile = {n: {**e, "features": "<b>"} for n, e in told["quality"].items()}
    assert "<b>" not in tables.page({"quality": hostile}, tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from jaxgen import cli

    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "vae", *SHORT, "--out", str(path)])
    assert not stop.value.code
    return path


@pytest.mark.slow
def test_evaluate_measures_quality_in_json_table_and_report(run, capsys):
    assert "quality" not in json.loads((run / "evaluation.json").read_text())
    argv = ("evaluate", run, "--num-samples", "1", "--num-images", "5", "--num", "100")
    status, out, _ = call(capsys, *argv, "--json")
    assert status == 0
    told = json.loads(out)
    assert told == json.loads((run / "evaluation.json").read_text())
    assert told["quality"]["frechet"]["num_fake"] == 100
    assert told["quality"]["frechet"]["features"] == "classifier:digits"
    assert told["memorisation"]["num_train"] == 1437
    page = (run / "report.html").read_text()
    assert "sliced Wasserstein" in page
    assert "classifier:digits" in page
    picture = base64.b64encode((run / "nearest_pairs.png").read_bytes()).decode()
    assert picture in page
    with Image.open(run / "nearest_pairs.png") as pairs:
        assert pairs.size[1] > pairs.size[0]
    status, out, _ = call(capsys, *argv, "--features", "pixels")
    assert status == 0
    assert "by pixels" in out
    status, _, err = call(capsys, *argv, "--features", "pixel")
    assert status == 2
    assert "did you mean 'pixels'?" in err
    status, out, _ = call(capsys, *argv[:-1], "0", "--json")
    assert "quality" not in json.loads(out)
