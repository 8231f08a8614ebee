"""Runs compared: significance against SciPy, every branch on folders made by hand."""

import base64
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
import scipy.stats
from doors import call
from PIL import Image
from test_report import Page

from jaxgen._checks import UserError
from jaxgen.evaluate import comparison, comparison_page, significance
from jaxgen.train import config as configs

DATA = {"shape": [8, 8, 1], "num_train": 1437, "num_test": 360, "digest": "0123abcd"}
LIKELIHOOD = {
    "step": 1000,
    "nll_nats": 160.0,
    "nll_nats_se": 1.0,
    "nll_nats_kind": "bound",
    "bits_per_dim": 3.6,
    "bits_per_dim_se": 0.02,
    "bits_per_dim_kind": "bound",
    "num_examples": 360,
    "num_samples": 100,
}


def measured(value, better="lower", **changes):
    """An entry of "quality", as `jaxgen evaluate` writes it."""
    return {
        "value": value,
        "low": value - 0.5,
        "high": value + 0.5,
        "num_real": 360,
        "num_fake": 2000,
        "features": "digits-v1",
        "features_sha256": "a" * 64,
        "preprocessing": "uint8",
        "floor": 1.0,
        "ceiling": 400.0,
        "better": better,
    } | changes


@pytest.fixture
def make(tmp_path):
    """`make(name, evaluation, family=, seed=, data=, model={}, ...)`: a run folder."""

    def run(name, evaluation, *, family="vae", seed=0, data=DATA, model=(), train=()):
        folder = tmp_path / name
        (folder / "samples").mkdir(parents=True)
        values = configs.to_dict(configs.default(family))
        values["model"] |= dict(model)
        values["train"] |= {"steps": 1000, "seed": seed, **dict(train)}
        (folder / "config.json").write_text(json.dumps(values))
        for file, content in (("data", data), ("evaluation", evaluation)):
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (folder / f"{file}.json").write_text(text)
        return folder

    return run


def bits(value, **changes):
    nats = value * 64 * np.log(2)
    return LIKELIHOOD | {"bits_per_dim": value, "nll_nats": nats} | changes


def groups_of(make, *sides, evaluation=bits):
    """Run folders: for each side a run of each value, in configs that differ."""
    return [
        make(f"{i}-{seed}", evaluation(value), seed=seed, model={"beta": 1.0 + i})
        for i, values in enumerate(sides)
        for seed, value in enumerate(values)
    ]


# ---- significance


@pytest.mark.parametrize(
    ("first", "second"),
    [([3.1, 3.2, 3.4], [3.0, 2.9]), ([-1.0, 5.0], [30.0, 31.0, 32.5, 30.1])],
)
def test_difference_is_welchs(first, second):
    sides = [significance.side(v, [0.1] * len(v), 0.02) for v in (first, second)]
    got = significance.difference(*sides)
    expected = scipy.stats.ttest_ind(first, second, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    np.testing.assert_allclose(got.p_value, expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose(got.half_width, (high - low) / 2, rtol=1e-9)
    np.testing.assert_allclose(got.value, np.mean(first) - np.mean(second))


def test_single_runs_have_the_assumed_spread_and_the_resampling_error():
    first = significance.side([100.0], [1.5], 0.02)
    assert first == (100.0, pytest.approx(2.0**2 + 1.5**2), 3.0)
    assert significance.side([-50.0], [None], 0.02).variance == pytest.approx(1.0)
    second = significance.side([90.0], [0.0], 0.02)
    got = significance.difference(first, second)
    variances = np.array([6.25, 1.8**2])
    freedom = variances.sum() ** 2 / np.sum(variances**2 / 3)
    error = np.sqrt(variances.sum())
    half = scipy.stats.t.ppf(0.975, freedom) * error
    np.testing.assert_allclose(got.half_width, half, rtol=1e-9)
    p = 2 * scipy.stats.t.sf(10.0 / error, freedom)
    np.testing.assert_allclose(got.p_value, p, rtol=1e-9)


def test_without_any_spread_there_is_no_test():
    same = significance.side([2.0, 2.0], [None, None], 0.02)
    other = significance.side([3.0, 3.0], [None, None], 0.02)
    assert significance.difference(same, other) is None
    assert significance.difference(same, same) == (0.0, 0.0, 1.0)
    no_zero = significance.side([2.0], [0.1], None)
    assert no_zero.variance is None
    assert significance.difference(no_zero, same) is None


def test_holm_by_hand():
    adjusted = significance.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.7, 0.6]) == [1.0, 1.0]
    assert significance.holm([]) == []


def test_seeds_of_one_way_of_training_are_seldom_called_different():
    rng, errors = np.random.default_rng(0), [None] * 3
    calls = []
    for _ in range(2000):
        sides = [significance.side(rng.normal(size=3), errors, 0.02) for _ in range(2)]
        calls.append(significance.difference(*sides).p_value <= 0.05)
    assert 0.02 < np.mean(calls) < 0.06


# ---- groups and verdicts


def test_groups_of_seeds_and_the_better_one(make):
    paths = groups_of(make, [3.60, 3.61, 3.62], [3.80, 3.82, 3.81])
    mixed = [paths[i] for i in (3, 0, 1, 4, 5, 2)]
    result = comparison.compare(mixed)
    first, second = result.groups
    assert [run.folder.path for run in first.runs] == [paths[3], paths[4], paths[5]]
    assert (first.name, first.differs) == ("A", {"model.beta": 2.0})
    assert second.differs == {"model.beta": 1.0}
    (verdict,) = result.verdicts
    assert (verdict.metric, verdict.winner) == ("bits_per_dim", "B")
    assert verdict.means == (pytest.approx(3.81), pytest.approx(3.61))
    # sqrt(2 * 0.01^2 / 3) times t with 4 degrees of freedom
    half = 0.01 * np.sqrt(2 / 3) * scipy.stats.t.ppf(0.975, 4)
    assert verdict.difference.half_width == pytest.approx(half)
    assert verdict.text == "B better by 0.200 +- 0.023 (95 %), 3 and 3 seeds"
    assert result.num_tests == 1
    assert not result.notes


def test_higher_is_better_where_it_is(make):
    def evaluation(value):
        quality = {"density": measured(value, "higher"), "frechet": measured(value)}
        return bits(3.6) | {"quality": quality}

    sides = [10.0, 10.1, 9.9], [20.0, 20.1, 19.9]
    result = comparison.compare(groups_of(make, *sides, evaluation=evaluation))
    winners = {verdict.metric: verdict.winner for verdict in result.verdicts}
    assert winners == {"bits_per_dim": None, "density": "B", "frechet": "A"}


def test_the_error_of_a_measure_is_that_of_its_interval(make):
    quality = {"frechet": measured(50.0), "kid": measured(0.1, low=None)}
    evaluation = bits(3.6, quality=quality, confident_share=0.8)
    evaluation |= {"real_confident_share": 0.98, "confident_share_se": 0.01}
    quantities = comparison.read(make("a", evaluation)).quantities
    # From 49.5 to 50.5 are 2 * 1.96 standard errors.
    assert quantities["frechet"].error == pytest.approx(0.2551, abs=1e-4)
    assert quantities["kid"].error is None
    assert quantities["confident_share"][:3] == (0.8, 0.01, "higher")
    assert quantities["confident_share"].floor == 0.98
    assert "nll_nats" not in quantities  # bits/dim are the same figure


def test_no_difference_is_said_with_its_interval(make):
    result = comparison.compare(groups_of(make, [3.60, 3.62], [3.61, 3.59]))
    (verdict,) = result.verdicts
    assert verdict.winner is None
    text = "no difference shown: A - B = 0.010 +- 0.061 (95 %), 2 and 2 seeds"
    assert verdict.text == text


def test_many_metrics_are_corrected_for(make):
    def evaluation(value):
        quality = {
            f"m{i}": measured(5.0 + (value if i == 0 else 0.0)) for i in range(9)
        }
        return bits(3.6, quality=quality)

    sides = [0.0, 0.1, 0.2], [0.3, 0.4, 0.5]
    result = comparison.compare(groups_of(make, *sides, evaluation=evaluation))
    verdict = next(v for v in result.verdicts if v.metric == "m0")
    assert result.num_tests == 10
    assert verdict.difference.p_value < 0.05
    assert verdict.winner is None
    assert verdict.p_adjusted == pytest.approx(10 * verdict.difference.p_value)
    assert verdict.text.startswith("no difference shown: A - B = -0.30 +- 0.23 (95 %)")
    assert verdict.text.endswith("p = 0.021 by itself, 0.21 among 10")


def test_runs_of_one_config_are_sides_of_their_own(make):
    paths = [make(f"r{i}", bits(3.6 + i / 50), seed=i) for i in range(3)]
    result = comparison.compare(paths)
    assert [group.differs for group in result.groups] == [
        {"train.seed": 0},
        {"train.seed": 1},
        {"train.seed": 2},
    ]
    assert [v.pair for v in result.verdicts] == [("A", "B"), ("A", "C"), ("B", "C")]
    assert all(v.winner is None and v.num_seeds == (1, 1) for v in result.verdicts)
    assert "each seed is a side of its own" in result.notes[0]
    assert "2 % of the value are assumed" in result.notes[1]


def test_a_wide_gap_of_single_runs_is_a_difference(make):
    paths = groups_of(make, [3.6], [4.6])
    assert comparison.compare(paths).verdicts[0].winner == "A"
    assert comparison.compare(paths, variation=0.2).verdicts[0].winner is None


@pytest.mark.parametrize(
    "train",
    [{"log_every": 7}, {"accumulate": 2}, {"devices": 1}, {"parallel": "fsdp"}],
)
def test_what_is_incidental_makes_no_other_group(make, train):
    paths = [make("a", bits(3.6)), make("b", bits(3.7), seed=1, train=train)]
    paths.append(make("c", bits(3.7), model={"beta": 2.0}))
    assert [len(group.runs) for group in comparison.compare(paths).groups] == [2, 1]


def test_another_sampler_is_another_group(make):
    steps = [bits(3.6, sampling={"num_steps": n}) for n in (10, 10, 20)]
    paths = [make(f"r{i}", e, seed=i, family="diffusion") for i, e in enumerate(steps)]
    result = comparison.compare(paths)
    assert [len(group.runs) for group in result.groups] == [2, 1]
    assert result.groups[1].differs["model.sampling.num_steps"] == 20


# ---- what is not compared


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bits_per_dim_kind": "exact"}, "bits_per_dim_kind: bound (A), exact (B)"),
        ({"num_samples": 16}, "num_samples: 100 (A), 16 (B)"),
        ({"num_examples": 20}, "num_examples: 360 (A), 20 (B)"),
    ],
)
def test_likelihoods_of_unlike_kinds_are_not_compared(make, change, reason):
    paths = [make("a", bits(3.6)), make("b", bits(1.6, **change), model={"beta": 2.0})]
    result = comparison.compare(paths)
    (verdict,) = result.verdicts
    assert verdict.text == f"not compared: unlike {reason}"
    assert (verdict.winner, verdict.difference, result.num_tests) == (None, None, 0)


def test_exact_likelihoods_do_not_depend_on_samples(make):
    sides = [
        bits(v, bits_per_dim_kind="exact", num_samples=n) for v, n in ((1, 1), (2, 9))
    ]
    paths = [
        make(f"r{b}", e, model={"beta": b})
        for b, e in zip((1.0, 2.0), sides, strict=True)
    ]
    assert comparison.compare(paths).verdicts[0].winner == "A"


def test_likelihoods_of_binary_and_grey_images_are_not_compared(make):
    paths = [make("a", bits(3.6)), make("b", bits(0.4), seed=1)]
    values = json.loads((paths[1] / "config.json").read_text())
    values["data"]["transform"] = "binarise"
    (paths[1] / "config.json").write_text(json.dumps(values))
    (verdict,) = comparison.compare(paths).verdicts
    assert "unlike images: in 256 levels (A), binarised afresh (B)" in verdict.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"features_sha256": "b" * 64}, "features_sha256: aaaaaaaaaaaa... (A), bbb"),
        ({"features": "random-v1"}, "features: digits-v1 (A), random-v1 (B)"),
        ({"preprocessing": "crop"}, "preprocessing: uint8 (A), crop (B)"),
        ({"num_fake": 500}, "num_fake: 2000 (A), 500 (B)"),
        ({"num_real": 100}, "num_real: 360 (A), 100 (B)"),
    ],
)
def test_values_of_unlike_features_are_not_compared(make, change, reason):
    entries = measured(50.0), measured(5.0, **change)
    paths = [
        make(f"r{i}", bits(3.6, quality={"frechet": entry}), model={"beta": 1.0 + i})
        for i, entry in enumerate(entries)
    ]
    verdicts = {v.metric: v for v in comparison.compare(paths).verdicts}
    assert verdicts["bits_per_dim"].difference is not None
    assert verdicts["frechet"].text.startswith(f"not compared: unlike {reason}")
    assert verdicts["frechet"].difference is None


def test_seeds_of_one_group_that_were_measured_unlike_are_told(make):
    paths = groups_of(make, [3.6, 3.7], [3.8, 3.9])
    (paths[1] / "evaluation.json").write_text(json.dumps(bits(3.7, num_samples=9)))
    (verdict,) = comparison.compare(paths).verdicts
    assert verdict.text == "not compared: unlike num_samples: 100 (A), 9 (A)"


def test_a_missing_likelihood_is_none_and_never_zero(make, capsys):
    quality = {"quality": {"frechet": measured(50.0)}}
    paths = [
        make("a", bits(3.6) | quality),
        make("b", {"step": 1000} | quality, family="gan"),
        make("c", {"step": 1000, "bits_per_dim": None} | quality, family="gan", seed=1),
    ]
    result = comparison.compare(paths)
    verdict = result.verdicts[0]
    assert (verdict.metric, verdict.means[1]) == ("bits_per_dim", None)
    assert verdict.text == "not compared: B has none"
    told = comparison_page.as_json(result)["verdicts"][0]
    assert told["means"] == (pytest.approx(3.6), None)
    assert told["difference"] is None
    status, out, _ = call(capsys, "compare", *paths)
    assert status == 0
    assert "bits_per_dim: A 3.600, B none: not compared: B has none" in out
    both = comparison.compare(paths[1:])
    assert both.verdicts[0].text == "not compared: A and B have none"
    (paths[1] / "evaluation.json").write_text(json.dumps(bits(3.0) | quality))
    assert comparison.compare(paths).verdicts[0].text == (
        "not compared: 1 of 2 runs of B have none"
    )


def test_nats_of_rows_have_no_zero_to_be_a_share_of(make):
    rows = {
        "step": 1000,
        "nll_nats": -0.1,
        "nll_nats_se": 0.01,
        "nll_nats_kind": "exact",
    }
    rows |= {"num_examples": 20, "num_samples": 1}
    paths = [
        make("a", rows), make("b", rows | {"nll_nats": 9.0}, model={"beta": 2.0})
    ]  # fmt: skip
    (verdict,) = comparison.compare(paths).verdicts
    assert verdict.text == "cannot tell: more seeds a side are needed"
    assert (verdict.metric, verdict.winner) == ("nll_nats", None)


def test_a_run_that_was_judged_before_its_end_is_told(make):
    paths = [make("a", bits(3.6, step=500)), make("b", bits(3.6), seed=1)]
    notes = comparison.compare(paths).notes
    assert notes[-1] == f"{paths[0]} was judged at step 500 of 1,000"


# ---- bad input


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"evaluation": None}, r"b has no evaluation.json: jaxgen evaluate \S+/b$"),
        ({"evaluation": '{"step": 1'}, r"evaluation.json cannot be read .* evaluate"),
        ({"evaluation": "[1]"}, "evaluation.json holds no JSON object: jaxgen eval"),
        ({"evaluation": bits(3.6) | {"bits_per_dim": "low"}}, "is 'low', not a number"),
        ({"evaluation": bits(3.6) | {"bits_per_dim": True}}, "is True, not a number"),
        ({"evaluation": '{"step": 1, "bits_per_dim": NaN}'}, "is nan, not a number"),
        ({"evaluation": bits(3.6, quality=[])}, "damaged: quality is no object"),
        ({"evaluation": bits(3.6, sampling=3)}, "damaged: sampling is no object"),
        ({"evaluation": bits(3.6, quality={"kid": 3})}, "quality.kid does not say"),
        (
            {"evaluation": bits(3.6, quality={"kid": measured(0.1, low="x")})},
            "damaged: quality.kid.low is 'x', not a number: jaxgen evaluate",
        ),
        ({"data": None}, "b has no data.json"),
        (
            {"data": DATA | {"digest": "ffff"}},
            r"are of different data \(digest 0123abcd and ffff\)",
        ),
        (
            {"data": DATA | {"num_test": 7}},
            r"are of different data \(num_test 360 and 7\)",
        ),
        ({"seed": 0}, "are one run twice, of one config and seed 0"),
    ],
)
def test_bad_runs_are_one_line(make, capsys, second, message):
    first = make("a", bits(3.6))
    arguments = {"evaluation": bits(3.7), "seed": 1} | second
    other = make("b", arguments.pop("evaluation"), **arguments)
    status, out, err = call(capsys, "compare", first, other)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err.strip())


def test_bad_arguments_are_one_line(make, capsys, tmp_path):
    first, second = make("a", bits(3.6)), make("b", bits(3.7), seed=1)
    for argv, message in (
        ([], "compare needs at least two runs, got 0"),
        ([first], "compare needs at least two runs, got 1"),
        ([first, second, f"{first}/../a"], "is given twice"),
        ([first, tmp_path / "none"], "no such run folder"),
        ([first, tmp_path], "is not a run folder"),
        ([first, second, "--seed-variation", "0"], "--seed-variation is a share"),
        ([first, second, "--html", "page.txt"], "--html must end in .html"),
        ([first, second, "--html", tmp_path / "no" / "p.html"], "no such folder"),
        ([first, second, "--jsn"], "did you mean --json?"),
    ):
        status, out, err = call(capsys, "compare", *argv)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert message in err


# ---- what is shown


@pytest.fixture
def pictured(make):
    """Three runs of two groups with samples, and hostile names."""

    def evaluation(value):
        quality = {"frechet": measured(10 * value), "<b>": measured(value)}
        return bits(value, quality=quality)

    paths = groups_of(make, [3.6, 3.62], [3.9], evaluation=evaluation)
    for i, path in enumerate(paths):
        for name in ("step_00000010", "step_00000200", "reals"):
            picture = Image.new("L", (9, 9), 10 * i + ord(name[-3]))
            picture.save(path / "samples" / f"{name}.png")
    return paths


def test_the_page_is_whole_and_shows_floor_ceiling_and_samples(
    pictured, tmp_path, capsys
):
    out = tmp_path / "page.html"
    status, told, err = call(capsys, "compare", *pictured, "--html", out)
    assert status == 0, err
    text = out.read_text()
    page = Page(text)
    assert "<b>" not in text
    assert not re.search(
        r"https?://(?!www\.w3\.org)", re.sub(r"base64,[^\"]*", "", text)
    )
    assert not page.all("script")
    captions = [text for tag, text in page.texts if tag == "figcaption"]
    assert "frechet: A 36.10, B 39.00, floor 1.000, ceiling 400.0." in captions
    assert [c for c in captions if "samples" in c] == [
        "A, seed 0: samples at step 200",
        "A, seed 1: samples at step 200",
        "B, seed 0: samples at step 200",
    ]
    assert "training examples" in captions
    sources = [image["src"] for image in page.all("img")]
    assert all(source.startswith("data:image/") for source in sources)
    assert sum("image/png" in source for source in sources) == 4
    svgs = [base64.b64decode(s.split(",")[1]).decode() for s in sources if "svg" in s]
    assert len(svgs) == 3
    assert not any("$" in svg for svg in svgs)  # of a logarithmic axis
    named = [re.findall(r">(floor|ceiling|A|B)<", svg) for svg in svgs]
    assert [sorted(set(names)) for names in named] == [
        ["A", "B"],
        ["A", "B", "ceiling", "floor"],
        ["A", "B", "ceiling", "floor"],
    ]
    for line in told.splitlines():
        if line.startswith("bits_per_dim: "):
            assert line.split(": ", 2)[2].replace("+-", "±") in page.text()
    assert "model.beta 2" in page.text()


def test_json_has_all_and_nothing_else_is_printed(pictured, capsys):
    status, out, err = call(capsys, "compare", *pictured, "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert [group["seeds"] for group in told["groups"]] == [[0, 1], [0]]
    assert [group["differs"] for group in told["groups"]] == [
        {"model.beta": 1.0},
        {"model.beta": 2.0},
    ]
    assert told["seed_variation"] == 0.02
    first = told["verdicts"][0]
    assert first["pair"] == ["A", "B"]
    for name in ("difference", "half_width", "p_value", "p_adjusted"):
        assert isinstance(first[name], float)


@pytest.mark.slow
def test_seeds_are_alike_and_a_heavy_kl_is_told_apart(tmp_path, capsys):
    runs = {}
    for beta in (1, 20):
        argv = ["train", "vae", "--num-seeds", "2", "--steps", "300", "--hidden", "64"]
        argv += ["--beta", beta, "--out", tmp_path / f"beta-{beta}"]
        assert call(capsys, *argv)[0] == 0
        runs[beta] = sorted((tmp_path / f"beta-{beta}").iterdir())
    for pair in runs.values():
        (verdict,) = comparison.compare(pair).verdicts
        assert verdict.text.startswith("no difference shown")
    for pair in itertools.product(*runs.values()):
        # So short a training differs by less than the longer one of the default.
        (verdict,) = comparison.compare(pair, variation=0.01).verdicts
        assert verdict.winner == "A"
    (verdict,) = comparison.compare([*runs[1], *runs[20]]).verdicts
    assert verdict.num_seeds == (2, 2)


def test_described_is_short_of_many_keys(make):
    many = {"beta": 2.0, "latent_dim": 3, "width": 8, "levels": 2, "blocks": 2}
    many |= {"mixture": 2, "hidden": [4], "free_bits": 0.1}
    paths = [make("a", bits(3.6)), make("b", bits(3.7), model=many)]
    first, second = comparison.compare(paths).groups
    assert comparison_page.described(second).endswith(", 2 more")
    assert comparison_page.described(first).startswith("vae, model.beta 1")
    with pytest.raises(UserError):
        comparison.compare([paths[0]])
    assert dataclasses.is_dataclass(first.runs[0].config)
