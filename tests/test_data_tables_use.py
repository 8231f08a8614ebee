"""Tables as data: from the split to the batches, the config and the folder of a run."""

import dataclasses

import jax
import numpy as np
import pytest
from doors import call

from jaxgen import data, models
from jaxgen.data import ArraySource, DataConfig, open_dataset, sources
from jaxgen.train import assembly, rundir, session
from jaxgen.train import config as configs

KEY = jax.random.key(0)
NUM = 100


def rows(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(NUM, 3)).astype(np.float32)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A file of three columns, of which the last is a weight."""
    monkeypatch.chdir(tmp_path)
    text = "\n".join(",".join(map(str, row)) for row in np.abs(rows()).tolist())
    (tmp_path / "my table.csv").write_text(f"a,b,w\n{text}\n")
    return tmp_path / "my table.csv"


def test_array_source_holds_rows_and_weights():
    x, weight = rows(), np.arange(NUM)
    source = ArraySource(x, weight=weight)
    assert (source.num_examples, source.shape) == (NUM, (3,))
    batch = source.take(np.array([4, 2]))
    np.testing.assert_array_equal(batch["x"], x[[4, 2]])
    assert (batch["weight"].dtype, batch["weight"].tolist()) == (np.float32, [4, 2])
    with pytest.raises(ValueError, match=r"or float32 \[N, C\], got float64"):
        ArraySource(x.astype(np.float64))
    with pytest.raises(ValueError, match=r"got float32 \(3, 100, 3\); convert"):
        ArraySource(np.stack([x] * 3))
    with pytest.raises(
        ValueError, match=r"weight must have shape \(100,\), one for each"
    ):
        ArraySource(x, weight=weight[:-1])


def test_hold_out_keeps_each_row_with_its_weight():
    x = rows()
    train, test, _ = sources.hold_out(ArraySource(x, weight=x[:, 0]), where="here")
    for part in (train, test):
        np.testing.assert_array_equal(part.arrays["x"][:, 0], part.arrays["weight"])
    assert (train.num_examples, test.num_examples) == (90, 10)


def test_stream_and_eval_batches_and_feed_give_the_rows():
    source = ArraySource(rows(), weight=np.arange(NUM))
    indices = data.batch_indices(3, 1, num_examples=NUM, batch_size=8)
    (batch,) = data.stream(source, seed=3, batch_size=8, start_step=1, num_steps=1)
    feed = assembly.make_feed(source, [3], 8, 1, 2)
    for found in (batch, feed.fetch(feed.resident, next(feed.items))):
        np.testing.assert_array_equal(found["x"], rows()[indices])
        np.testing.assert_array_equal(found["weight"], indices)
    whole = list(data.eval_batches(source, 64))
    np.testing.assert_array_equal(whole[1]["weight"][:36], np.arange(64, NUM))
    assert whole[1]["mask"].sum() == 36


def test_prepare_none_passes_rows_and_no_images():
    batch = {"x": rows(), "weight": np.ones(NUM, np.float32)}
    jitted = jax.jit(data.prepare, static_argnames="transform")
    found = jitted(batch, KEY, transform="none")
    assert found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"], batch["x"])
    assert set(found) == {"x", "weight"}
    with pytest.raises(
        ValueError, match="must be uint8 for transform 'levels', got float"
    ):
        data.prepare(batch, KEY, transform="levels")
    image = {"x": np.zeros((1, 2, 2, 1), np.uint8)}
    with pytest.raises(
        ValueError, match="must be float32 for transform 'none', got uint8"
    ):
        data.prepare(image, KEY, transform="none")


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("name", ["x", "weight"])
def test_data_identity_sees_every_number(part, name, place):
    config = DataConfig(name=f"table:{place}", columns=("w=weight",))
    dataset = open_dataset(config)
    before = session.data_identity(dataset)
    assert before == session.data_identity(open_dataset(config))
    assert (before["shape"], before["num_train"], before["num_test"]) == ([2], 80, 10)
    getattr(dataset, part).arrays[name][7] += 1
    changed = session.data_identity(dataset)
    assert changed.pop("digest") != before.pop("digest")
    assert changed == before


def test_resolve_makes_the_path_absolute_and_the_family_sees_the_columns(
    place, monkeypatch
):
    seen = []

    def resolve(model, shape, transform, num_classes, columns, num_planes):
        seen.append((shape, transform, num_classes, columns))
        return model, "none"

    stub = models.FAMILIES["vae"]._replace(resolve=resolve)
    monkeypatch.setitem(models.FAMILIES, "vae", stub)
    config = configs.default("vae")
    for name, resolved, stem in (
        (f"table:{place.name}", f"table:{place}", "my-table"),
        ("table:wine", "table:wine", "wine"),
    ):
        columns = ("w=weight",) if place.name in name else ()
        named = DataConfig(name=name, columns=columns)
        dataset = open_dataset(named)
        found = session.resolve(dataclasses.replace(config, data=named), dataset)
        assert found.data == DataConfig(
            name=resolved, columns=columns, transform="none"
        )
        assert seen[-1] == (dataset.shape, None, None, dataset.columns)
        assert configs.from_dict(configs.to_dict(found)) == found
        folder = rundir.find_or_claim(place.parent / "runs", found)
        assert folder.name.endswith(f"-vae-{stem}")


def test_list_names_tables(capsys):
    status, out, _ = call(capsys, "list")
    assert status == 0
    for name in ("table:FILE.csv", "table:wine", "table:diabetes", "folder:PATH"):
        assert name in out


def test_a_table_of_fewer_rows_than_a_batch_is_one_batch(capsys):
    argv = ("train", "vae", "--data", "table:iris", "--dry-run")
    status, out, _ = call(capsys, *argv)
    assert status == 0
    assert '"batch_size": 120' in out
