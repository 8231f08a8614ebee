"""The report: what is on the page, what must never be, and runs that lack something."""

import base64
import html.parser
import io
import json
import re
import shlex

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen import cli, commands, data, models
from jaxgen._checks import RunError
from jaxgen.evaluate.report import write_report
from jaxgen.models.base import Model
from jaxgen.train import config as configs
from jaxgen.train import pictures, rundir, session

VOID = {"meta", "link", "img", "input", "br", "hr"}
HOSTILE = '<b onclick="x">&\'</script>$\\frac$'
EVALUATION = {
    "nll_nats": 163.27770,
    "nll_nats_se": 1.0972,
    "nll_nats_kind": "bound",
    "bits_per_dim": 3.680624,
    "bits_per_dim_se": 0.02473,
    "bits_per_dim_kind": "bound",
    "num_examples": 10,
    "step": 300,
}


class Page(html.parser.HTMLParser):
    """Checks that every tag is closed in its turn; keeps tags and the text of each."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, self.getpos()

    def handle_data(self, text):
        self.texts.append((self._open[-1] if self._open else "", text))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self):
        return " ".join(" ".join(text for _, text in self.texts).split())

    def images(self, **attributes):
        wanted = attributes.items()
        return [i for i in self.all("img") if all(i.get(k) == v for k, v in wanted)]


def content(image):
    return base64.b64decode(image["src"].partition("base64,")[2], validate=True)


def read(path):
    return Page(path.read_text())


def make_dataset(num_train=80, num_test=10, notes=()):
    x = np.random.default_rng(0).integers(0, 256, (num_train + num_test, 4, 4, 1))
    train, test = (
        data.ArraySource(a.astype(np.uint8)) for a in np.split(x, [num_train])
    )
    return data.Dataset("tiny", train, test, (4, 4, 1), None, notes)


def make_run(path, dataset, *, step=300, model=None, notes=(), params=None, **options):
    """A run folder and what `session.load` would make of it, but with a small model."""
    train = configs.TrainConfig(**{"steps": 300, **options})
    family = models.FAMILIES["vae"]
    config = configs.RunConfig(
        family="vae", model=family.config_class(), data=data.DataConfig(), train=train
    )
    config = session.resolve(config, dataset)
    run = rundir.RunFolder(path)
    run.claim()
    run.create(config)
    model = make_model() if model is None else model
    params = {"vae": {"w": jnp.ones((10, 123))}} if params is None else params
    return session.Loaded(run, config, model, params, step, list(notes))


def make_model(**fields):
    views = (
        ("the data, two by three", lambda params, x: x[:6].reshape(2, 3, 4, 4, 1)),
    )
    model = Model((), (), (), (), log_likelihood=(lambda: None), views=views)
    return model._replace(**fields)


def make_records(num, **terms):
    record = {"loss": 2.0, "loss/vae": 2.0, "examples_per_s": 5.0, "train_s": 61.0}
    return [{"step": 3 * i, **record, **terms} for i in range(1, num + 1)]


def write_records(run, records):
    run.metrics.write_text("".join(json.dumps(r) + "\n" for r in records))


def write_grids(run, steps):
    for name in [*(f"step_{step:08d}" for step in steps), "reals"]:
        picture = np.full((9, 9, 1), sum(map(ord, name)) % 256, np.uint8)
        (run.samples / f"{name}.png").write_bytes(pictures.png(picture))
    (run.samples / "step_of_something_else.png").write_bytes(b"not a picture")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished and evaluated run: (loaded, dataset, path of the page, page)."""
    dataset = make_dataset(notes=("a note on the data",))
    path = tmp_path_factory.mktemp("runs") / "00001-vae-tiny"
    loaded = make_run(path, dataset, notes=["checkpoint 200 is not valid"])
    records = make_records(40, distortion=1.5, **{"gradient_norm/vae": 3.0})
    records[0] |= {"loss": 1e9, "compile_s": 1.5}
    write_records(loaded.run, records)
    write_grids(loaded.run, [0, 30, 100_000])
    loaded.run.evaluation.write_text(json.dumps(EVALUATION))
    path = write_report(loaded, dataset)
    return loaded, dataset, path, read(path)


def test_report_is_self_contained(whole):
    _, _, path, page = whole
    text = path.read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttp", text)
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "default-src 'none'" in text
    curves = [i for i in page.images() if "svg" in i["src"]]
    for image in curves:
        links = re.findall(r'(?:href|src)="([^"]*)"', content(image).decode())
        assert all(link.startswith("#") for link in links)
    assert len(curves) == 4  # loss, distortion, gradient norm, speed


def test_report_is_well_formed(whole):
    _, _, path, page = whole
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert all(image["alt"] for image in page.images())
    assert not re.search(
        r"\$\{?\w+", page.text()
    )  # every place of the template is filled
    assert path.stat().st_size < 200_000


def test_report_shows_every_grid_of_samples_in_order(whole):
    loaded, _, _, page = whole
    grids = [image for image in page.images() if "data-step" in image]
    assert [grid["data-step"] for grid in grids] == ["0", "30", "100000"]
    for grid in grids:
        file = loaded.run.samples / f"step_{int(grid['data-step']):08d}.png"
        assert content(grid) == file.read_bytes()
    (reals,) = page.images(alt="training images")
    assert content(reals) == (loaded.run.samples / "reals.png").read_bytes()
    (slider,) = [i for i in page.all("input") if i["type"] == "range"]
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "2")
    assert "Samples at step 100,000" in page.text()


@pytest.mark.parametrize(("num_train", "share"), [(80, "100%"), (16, "48.72%")])
def test_report_shows_reals_at_the_scale_of_the_samples(tmp_path, num_train, share):
    dataset = make_dataset(
        num_train=num_train
    )  # 16 reals are 19 pixels wide, 64 are 39
    loaded = make_run(tmp_path / "run", dataset, batch_size=8)
    write_grids(loaded.run, [0])
    (reals,) = read(write_report(loaded, dataset)).images(alt="training images")
    assert reals["style"] == f"width:{share}"


def test_report_shows_the_views_of_the_test_images(whole):
    _, dataset, _, page = whole
    (image,) = page.images(alt="The data, two by three.")
    pixels = np.asarray(Image.open(io.BytesIO(content(image))))
    test = dataset.test.take(np.arange(6))["x"]
    expected = pictures.grid(test.reshape(2, 3, 4, 4, 1))[..., 0]
    np.testing.assert_array_equal(pixels, expected)


def test_report_states_the_headline_numbers(whole):
    text = whole[3].text()
    for words in (
        "vae on tiny",
        "00001-vae-tiny : step 300 of 300, finished",
        "training loss 2.00 nats",
        "test negative log-likelihood 163.3 ± 1.1 nats per image; upper bound, 10 test",
        "test bits per dim 3.681 ± 0.025 bits upper bound",
        "parameters 1,230",
        "training speed 5 images/s",
        "training time 0:01:01",
        "compile time 1.5 s",
        "a note on the data",
        "checkpoint 200 is not valid",
    ):
        assert words in text
    assert "Not evaluated" not in text


def test_report_cuts_a_huge_first_value_and_says_so(whole):
    text = whole[3].text()
    assert "loss: 2.000 at step 120. Outside the range shown: 1 of 40" in text
    assert "distortion: 1.500 at step 120." in text
    assert text.count("Outside the range") == 1


@pytest.mark.parametrize(
    ("records", "num_curves"),
    [
        ([], 0),
        (make_records(1), 2),
        ([{"step": 3, "loss": float("nan"), "examples_per_s": 5.0}], 1),
        ([*make_records(1), {"loss": 3.0}, 7, {"step": 6, "loss": None}], 2),
        (make_records(5, loss=1e300), 2),
        (make_records(2, flat=0.0), 3),
    ],
)
def test_report_takes_any_metrics(tmp_path, records, num_curves):
    dataset = make_dataset()
    loaded = make_run(tmp_path / "run", dataset)
    write_records(loaded.run, records)
    page = read(write_report(loaded, dataset))
    assert sum("svg" in image["src"] for image in page.images()) == num_curves
    assert ("No line in metrics.jsonl" in page.text()) == (num_curves == 0)


def test_report_names_a_lone_term_of_a_panel_whole(tmp_path):
    dataset = make_dataset()
    loaded = make_run(tmp_path / "run", dataset)
    terms = {"samples/diversity": 0.5, "right/real": 0.4, "right/fake": 0.7}
    write_records(loaded.run, make_records(2, **terms))
    text = read(write_report(loaded, dataset)).text()
    assert "samples diversity: 0.5000 at step" in text
    assert "right: real 0.4000, fake 0.7000 at step" in text


def test_report_of_an_empty_folder_says_what_is_missing(tmp_path):
    dataset = make_dataset()
    loaded = make_run(tmp_path / "my runs" / "a", dataset, step=40)
    loaded.run.samples.rmdir()
    (loaded.run.path / "environment.json").unlink()
    text = read(write_report(loaded, dataset)).text()
    assert "step 40 of 300, not finished" in text
    assert f"jaxgen evaluate '{loaded.run.path}'" in text
    assert "test negative log-likelihood – not evaluated yet" in text
    assert "Not recorded." in text
    loaded = loaded._replace(model=make_model(log_likelihood=None, views=()))
    text = read(write_report(loaded, dataset)).text()
    assert "negative log-likelihood" not in text
    assert "Not evaluated" not in text
    assert "This family has no likelihood." in text
    assert "This family has none." in text
    assert "evaluate" not in text
    loaded.run.evaluation.write_text('{"step": 40}')  # all there is to tell
    text = read(write_report(loaded, dataset._replace(num_classes=3))).text()
    assert "This family has no likelihood." in text
    assert f"jaxgen evaluate '{loaded.run.path}' --judge 2000" in text


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"nll_nats": "x"}', '{"a": {"b": 1}}']
)
def test_report_takes_any_evaluation(tmp_path, text):
    dataset = make_dataset()
    loaded = make_run(tmp_path / "run", dataset)
    loaded.run.evaluation.write_text(text)
    assert "± is" not in read(write_report(loaded, dataset)).text()


def test_report_escapes_everything_it_is_given(tmp_path):
    dataset = make_dataset(notes=(HOSTILE,))._replace(name=HOSTILE)
    view = lambda params, x: x[:1].reshape(1, 1, 4, 4, 1)  # noqa: E731
    model = make_model(views=((HOSTILE, view),))
    path = tmp_path / HOSTILE.replace("/", "$title \udcff")
    params = {HOSTILE: jnp.ones(2), "other": jnp.ones(3)}
    loaded = make_run(path, dataset, model=model, notes=[HOSTILE], params=params)
    write_records(
        loaded.run,
        [{"step": 1, "loss": 1.0, HOSTILE: 1.0, f"loss/{HOSTILE}": 1.0, "loss/b": 2.0}],
    )
    hostile = {HOSTILE: HOSTILE, f"{HOSTILE}_kind": HOSTILE, "x": {HOSTILE: [HOSTILE]}}
    loaded.run.evaluation.write_text(json.dumps(hostile | {"nll_nats": 1.0}))
    (path / "environment.json").write_text(json.dumps(hostile | {"command": [HOSTILE]}))
    report = write_report(loaded, dataset)
    page = read(report)
    assert {tag for tag, _ in page.tags} >= {"main", "section", "pre"}
    assert not page.all("b")
    assert len(page.all("script")) == 1
    assert not [
        name
        for _, attributes in page.tags
        for name in attributes
        if name.startswith("on")
    ]
    assert page.text().count(HOSTILE) >= 10
    assert "$title \\udcff" in page.text()


def test_report_marks_what_was_given_and_what_the_data_chose(tmp_path):
    dataset = make_dataset()
    loaded = make_run(tmp_path / "run", dataset, learning_rate=1e-3)
    page = read(write_report(loaded, dataset))
    given = [a for a in page.all("tr") if a.get("class") == "given"]
    assert len(given) == 2
    assert "steps 300 default 1000" in page.text()
    assert "learning_rate 0.001 default 0.002" in page.text()
    assert "shape 4, 4, 1 from the data" in page.text()


@pytest.mark.parametrize(("step", "steps"), [(40, 300), (300, 600)])
def test_report_gives_the_command_that_continues_this_run(
    tmp_path, monkeypatch, step, steps
):
    dataset = make_dataset()
    loaded = make_run(tmp_path / "a b", dataset, step=step, schedule="linear", seed=3)
    model = loaded.config.model
    model = type(model)(hidden=(32, 16), likelihood="bernoulli", shape=model.shape)
    config = session.resolve(
        configs.RunConfig(
            family="vae",
            model=model,
            data=data.DataConfig(transform="static"),
            train=loaded.config.train,
        ),
        dataset,
    )
    loaded.run.write_config(config)
    page = read(write_report(loaded, dataset))
    command = next(text for tag, text in page.texts if tag == "pre" and "train" in text)
    program, *arguments = shlex.split(command)
    assert program == "jaxgen"
    assert "--shape" not in arguments
    assert "--net" not in arguments  # it follows from the data
    parsed = []
    monkeypatch.setattr(commands, "train", lambda *args: parsed.append(args) or 0)
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    again, options, _ = parsed[0]
    differences = configs.differences(config, session.resolve(again, dataset))
    assert differences == ({"train.steps": (300, 600)} if steps == 600 else {})
    assert options.out == loaded.run.path


def test_report_shows_every_player_of_a_game(tmp_path):
    dataset = make_dataset()
    params = {"critic": jnp.ones(5), "generator": jnp.ones(1000)}
    loaded = make_run(tmp_path / "run", dataset, params=params)
    terms = {"loss/critic": 1.25, "loss/generator": 0.5, "gradient_norm/critic": 1.0}
    records = make_records(9, **terms, **{"gradient_norm/generator": 2.0})
    for record in records:
        del record["loss/vae"]
    write_records(loaded.run, records)
    page = read(write_report(loaded, dataset))
    assert "training loss of critic 1.25 nats" in page.text()
    assert "training loss of generator 0.50 nats" in page.text()
    assert "parameters 1,005 critic 5, generator 1,000" in page.text()
    assert "loss: critic 1.250, generator 0.5000 at step 27." in page.text()
    assert "clipping: critic 1.000, generator 2.000 at step 27." in page.text()
    assert sum("svg" in image["src"] for image in page.images()) == 3


def test_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    dataset = make_dataset()
    loaded = make_run(tmp_path / "run", dataset)
    path = write_report(loaded, dataset)
    assert path == loaded.run.path / "report.html"
    before = path.read_bytes()
    files = sorted(loaded.run.path.iterdir())

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(RunError, match="report.html: No space left on device"):
        write_report(loaded._replace(step=1), dataset)
    assert path.read_bytes() == before
    assert sorted(loaded.run.path.iterdir()) == files


def test_report_is_the_same_when_written_again(whole):
    loaded, dataset, path, _ = whole
    before = path.read_bytes()
    assert write_report(loaded, dataset).read_bytes() == before
