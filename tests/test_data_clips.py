"""Clips: the ball at the peg, games, and what is given with each frame."""

import hashlib
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen._checks import UserError
from jaxgen.data import DataConfig, cache, clips, described, minatar, open_dataset, peg
from jaxgen.evaluate import peg_answers

PEGS = (2, 4)


@pytest.fixture(scope="module", params=PEGS)
def balls(request):
    """Number of ways, the set, the scenes of its training split, the ways they go."""
    num = request.param
    dataset = open_dataset(DataConfig(name=f"peg:{num}"))
    return num, dataset, *peg.examples(peg.NUM_TRAIN, num, 0)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Breakout with few games, opened once and then from the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(minatar, "NUM_TRAIN", 12)
        patch.setattr(minatar, "NUM_TEST", 2)
        patch.setattr(minatar, "NUM_KEPT", 10)
        first = open_dataset(DataConfig(name="minatar:breakout"))
        patch.setattr(minatar, "play", lambda *_, **__: pytest.fail("played again"))
        return first, open_dataset(DataConfig(name="minatar:breakout"))


def digest(dataset, num=200):
    told = hashlib.sha256()
    for source in (dataset.train, dataset.test):
        batch = source.take(np.arange(num))
        told.update(batch["x"].tobytes() + batch["condition"].tobytes())
    return told.hexdigest()[:16]


def one(x, y, before_x, before_y, peg_x=7, peg_y=10):
    values = (before_x, before_y, x, y, peg_x, peg_y)
    return peg.Scene(*(np.array([v]) for v in values))


def places(scene):
    return int(scene.x[0]), int(scene.y[0])


def test_peg_is_the_same_everywhere():
    found = [digest(open_dataset(DataConfig(name=f"peg:{num}"))) for num in PEGS]
    assert found == ["5274431c2d470fa0", "6c2cfa2802d88f7a"]


def test_peg_examples(balls):
    num, dataset, scene, _ = balls
    assert (dataset.name, dataset.shape) == (f"peg:{num}", (16, 16, 1))
    assert dataset.num_classes is None
    assert set(dataset.train.arrays) == {"x", "condition"}
    counts = dataset.train.num_examples, dataset.test.num_examples
    assert counts == (20_000, 2_000)
    assert peg.meets(scene)[::2].all()
    assert 0.5 <= peg.meets(scene).mean() < 0.55
    assert clips.num_actions(dataset) == 0
    given = dataset.train.arrays["condition"]
    assert len({g.tobytes() for g in given[::2]}) > 5_000
    test = dataset.test.arrays["condition"]
    np.testing.assert_array_less(
        0, np.abs(test.astype(int) - given[:2000]).sum((1, 2, 3)).max()
    )


def test_peg_ways_have_their_probabilities(balls):
    num, _, scene, way = balls
    for chosen in (way, way[peg.meets(scene)]):
        shares = np.bincount(chosen, minlength=num) / len(chosen)
        p = peg.PROBABILITIES[num]
        assert np.all(np.abs(shares - p) < 4 * np.sqrt(p * (1 - p) / len(chosen)))
    np.testing.assert_allclose(p.sum(), 1)
    assert len(set(p)) == num


def test_peg_ways_do_not_depend_on_the_condition(balls):
    num, _, scene, way = balls
    for value in (scene.x, scene.peg_y, scene.x - scene.before_x):
        upper = value[::2] > np.median(value[::2])
        halves = [way[::2][upper], way[::2][~upper]]
        a, b = (np.bincount(h, minlength=num) / len(h) for h in halves)
        p = peg.PROBABILITIES[num]
        error = np.sqrt(p * (1 - p) * sum(1 / len(h) for h in halves))
        assert np.all(np.abs(a - b) < 4 * error)


def test_peg_frames_are_unique_but_at_the_peg(balls):
    """As a function of what is given, read as bytes: no simulator is asked."""
    _, dataset, scene, _ = balls
    seen: dict[bytes, set[bytes]] = {}
    arrays, meets = dataset.train.arrays, peg.meets(scene)
    for i in np.flatnonzero(~meets):
        seen.setdefault(arrays["condition"][i].tobytes(), set()).add(
            arrays["x"][i].tobytes()
        )
    assert max(map(len, seen.values())) == 1
    assert len(seen) < np.sum(~meets)  # some conditions come twice, so this is a test


def test_peg_scene_is_read_from_its_frames(balls):
    num, dataset, scene, _ = balls
    some = slice(0, 500)
    given = dataset.train.arrays["condition"][some]
    found = peg_answers.read(given)
    noise = 0.05 * np.random.default_rng(0).standard_normal(given.shape)
    noisy = peg_answers.read(given / 255 + noise)
    for name in peg.Scene._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(scene, name)[some])
        right = getattr(noisy, name) == getattr(scene, name)[some]
        assert right.mean() > 0.98


def test_peg_judge_knows_every_exact_frame(balls):
    num, dataset, scene, way = balls
    some = peg.Scene(*(a[:1000] for a in scene))
    exact = peg_answers.outcomes(some, num)
    modes, distance = peg_answers.modes(some, exact, num)
    meets = peg.meets(some)
    np.testing.assert_array_equal(modes, meets[:, None] * np.arange(num))
    assert distance.max() == 0
    modes, _ = peg_answers.modes(some, dataset.train.arrays["x"][:1000, None], num)
    np.testing.assert_array_equal(modes[:, 0], meets * way[:1000])
    assert np.all(exact[~meets] == exact[~meets][:, :1])
    apart = np.abs(exact[meets][:, :1].astype(int) - exact[meets][:, 1:])
    assert apart.sum((2, 3, 4)).min() > 0


def test_peg_judge_tells_none_of_them(balls):
    num, _, scene, _ = balls
    some = peg.Scene(*(a[:400:2] for a in scene))
    exact = peg_answers.outcomes(some, num) / 255
    empty = peg.draw(some._replace(x=some.x * 0, y=some.y * 0))[:, None] / 255
    two = exact[:, :1] + exact[:, -1:] - exact.min(axis=1, keepdims=True)
    mean = exact.mean(axis=1, keepdims=True)
    for wrong in (mean, empty, two, 0 * two):
        modes, distance = peg_answers.modes(some, wrong, num)
        assert np.all(modes == -1)
        assert distance.min() >= peg_answers.WITHIN
    blur = np.average(exact, axis=1, weights=peg.PROBABILITIES[num])[:, None]
    modes, _ = peg_answers.modes(some, blur, num)
    assert np.all(modes == -1)
    moved = 0.75 * exact + 0.25 * np.roll(exact, 1, axis=3)  # by a quarter of a pixel
    modes, _ = peg_answers.modes(some, moved, num)
    assert np.all(modes == np.arange(num))
    near = exact + 0.03 * np.random.default_rng(0).standard_normal(exact.shape)
    modes, _ = peg_answers.modes(some, near, num)
    assert np.all(modes == np.arange(num))


def test_true_frames_are_judged_to_be_as_frequent_as_they_are(balls):
    num, dataset, scene, way = balls
    given = dataset.train.arrays["condition"][:2000]
    true = dataset.train.arrays["x"][:2000, None]
    told = peg_answers.counted(f"peg:{num}", given / np.float32(255), true)
    meets = peg.meets(scene)[:2000]
    assert told["num_judged"] == meets.sum() < 2000
    assert told["none_share"].value == 0
    expected = np.bincount(way[:2000][meets], minlength=num) / meets.sum()
    np.testing.assert_allclose(told["shares"], expected)
    assert told["p_value"] > 1e-3
    one = peg_answers.outcomes(peg.Scene(*(a[:200] for a in scene)), num)[:, :1]
    told = peg_answers.counted(f"peg:{num}", given[:200] / np.float32(255), one)
    assert told["shares"][0] == 1
    assert told["p_value"] < 1e-9


def test_peg_rules_by_hand():
    way = np.array([0])
    falls = one(20, 16, 18, 8)
    assert places(peg.advanced(falls, way, 2)) == (22, 24)  # 2 to the right, 8 down
    wall = one(54, 16, 50, 8)
    assert places(peg.advanced(wall, way, 2)) == (50, 24)  # turned round
    fast = one(20, 40, 31, 32)
    assert places(peg.advanced(fast, way, 2)) == (12, 48)  # no faster than two pixels
    leaves = one(52, 50, 52, 42)
    entered = peg.advanced(leaves, way, 2)
    assert places(entered) == (30, 2)  # 26 above the peg, a sixth of 52 - 28 aside
    assert places(peg.advanced(entered, way, 2)) == (30, 10)  # straight
    above = one(26, 28, 26, 20)  # the ball's lower side at 36, the peg's upper at 40
    assert peg.meets(above)[0]
    thrown = [places(peg.advanced(above, np.array([w]), 4)) for w in range(4)]
    assert thrown == [(15, 20), (15, 36), (37, 20), (37, 36)]
    assert [places(peg.advanced(above, np.array([w]), 2)) for w in (0, 1)] == [
        (15, 36),
        (37, 36),
    ]
    beside = [one(26 + d, 28, 26 + d, 20) for d in (-6, -5, 5, 6)]
    assert [bool(peg.meets(scene)[0]) for scene in beside] == [False, True, True, False]
    heights = [one(26, y, 26, y - 8) for y in (24, 25, 32, 33)]
    assert [bool(peg.meets(scene)[0]) for scene in heights] == [
        False,
        True,
        True,
        False,
    ]


def test_peg_goes_on_for_ever(balls):
    num, _, scene, _ = balls
    some, rng, met = peg.Scene(*(a[:200] for a in scene)), np.random.default_rng(0), []
    for _ in range(100):
        met.append(peg.meets(some))
        some = peg.advanced(some, rng.integers(0, num, 200), num)
        assert min(some.x.min(), some.y.min()) >= 0
        assert max(some.x.max(), some.y.max()) <= peg.LAST
    assert np.sum(met, axis=0).min() >= 8


def test_advance_is_what_the_simulator_goes_on_from(balls):
    num, dataset, scene, way = balls
    some, ways = peg.Scene(*(a[:50] for a in scene)), way[:50]
    given = clips.initial(dataset.train, np.arange(50))
    rng = np.random.default_rng(1)
    for _ in range(20):
        some = peg.advanced(some, ways, num)
        frame = jnp.asarray(peg.draw(some), jnp.float32) / 255
        given = jax.jit(clips.advance)(given, frame)
        np.testing.assert_array_equal(np.round(given * 255), peg.condition(some))
        ways = rng.integers(0, num, 50)
    for a, b in zip(peg_answers.read(np.asarray(given)), some, strict=True):
        np.testing.assert_array_equal(a, b)


def test_roll_equals_frame_after_frame():
    shape, num = (4, 5, 1), 3
    rng = np.random.default_rng(0)
    given = jnp.asarray(rng.random((2, 4, 5, 2 + num)), jnp.float32)
    actions = clips.random_actions(7, 2, 6, num)
    keys = jax.random.split(jax.random.key(0), (6, 2))

    def answer(condition, keys):
        noise = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
        return 0.5 * condition[..., :1] + 0.1 * condition.sum(-1, keepdims=True) * noise

    frames, last = jax.jit(lambda *a: clips.roll(answer, *a))(given, keys, actions)
    assert frames.shape == (6, 2, *shape)
    for i in range(6):
        frame = answer(given, keys[i])
        np.testing.assert_allclose(frames[i], frame, rtol=1e-5)
        planes = clips.action_planes(actions[i], num_actions=num, shape=shape)
        np.testing.assert_array_equal(planes[1, 3, 2], np.eye(num)[actions[i, 1]])
        given = clips.advance(given, frame, planes)
    np.testing.assert_allclose(last, given, rtol=1e-5)
    plain, _ = clips.roll(answer, given[..., :2], keys)
    assert plain.shape == frames.shape


def test_the_next_condition_by_hand():
    given = jnp.arange(5.0)[None, None, None]  # two frames and three actions
    frame, planes = jnp.full((1, 1, 1, 1), 9.0), jnp.eye(3)[1][None, None, None]
    found = clips.advance(given, frame, planes)
    np.testing.assert_array_equal(found[0, 0, 0], [1, 9, 0, 1, 0])


def test_advance_refuses_other_planes():
    given, frame = jnp.zeros((1, 2, 2, 5)), jnp.zeros((1, 2, 2, 1))
    with pytest.raises(ValueError, match="advance: condition has 5 planes, the next"):
        clips.advance(given, frame)
    with pytest.raises(ValueError, match="would have 4: 2 frames of 1 channels"):
        clips.advance(given, frame, jnp.zeros((1, 2, 2, 2)))


def test_random_actions_are_even_fixed_and_each_clips_own():
    actions = clips.random_actions(0, 300, 40, 3)
    shares = np.bincount(actions.ravel()) / actions.size
    np.testing.assert_allclose(shares, 1 / 3, atol=4 * np.sqrt(2 / 9 / actions.size))
    np.testing.assert_array_equal(clips.random_actions(0, 301, 40, 3)[:, :300], actions)
    assert np.any(clips.random_actions(1, 300, 40, 3) != actions)
    assert clips.random_actions(0, 2, 4, 5).tolist() == [[4, 3], [3, 0], [4, 2], [1, 1]]


@pytest.mark.parametrize("num", [len(game.channels) for game in minatar.GAMES.values()])
def test_colours_give_the_channels_back(num):
    every = np.arange(2**num)[:, None] >> np.arange(num) & 1 > 0
    colours = minatar.to_image(every)
    assert len(np.unique(colours, axis=0)) == 2**num
    np.testing.assert_array_equal(minatar.to_channels(colours, num), every)
    half = 127 // (2 ** -(-num // 3) - 1) - 1  # nearly half of the way to the next
    noise = np.random.default_rng(0).uniform(-half, half, colours.shape)
    noisy = (colours + noise) / 255
    np.testing.assert_array_equal(minatar.to_channels(noisy, num), every)
    assert minatar.to_image(every[:1]).tolist() == [[0, 0, 0]]
    assert minatar.to_image(every[-1:]).tolist() == [[255, 255, 255]]


def test_minatar_is_kept_in_the_cache_with_its_conditions(short):
    first, again = short
    assert first._replace(train=None, test=None) == again._replace(
        train=None, test=None
    )
    for one, other in ((first.train, again.train), (first.test, again.test)):
        assert set(one.arrays) == set(other.arrays) == {"x", "condition"}
        for name, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[name])


def test_minatar_breakout(short):
    dataset, _ = short
    assert (dataset.name, dataset.shape) == ("minatar:breakout", (10, 10, 3))
    assert (dataset.train.num_examples, dataset.test.num_examples) == (120, 20)
    assert clips.num_actions(dataset) == 3
    assert "brick red" in dataset.notes[0]
    given, x = dataset.train.arrays["condition"], dataset.train.arrays["x"]
    planes = given[..., 6:]
    assert set(np.unique(planes)) == {0, 255}
    np.testing.assert_array_equal(planes.astype(int).sum(-1), 255)
    assert np.all(planes == planes[:, :1, :1])
    before, now, following = (
        minatar.to_channels(i, 4) for i in (given[..., :3], given[..., 3:6], x)
    )
    for frames in (before, now, following):
        assert np.all(frames[..., 0].sum((1, 2)) == 1)  # one paddle, in the lowest row
        assert np.all(frames[:, 9, :, 0].sum(1) == 1)
        assert np.all(frames[..., 1].sum((1, 2)) == 1)  # one ball
    # The action moves the paddle: none, left, right.
    paddle = [frames[:, 9, :, 0].argmax(1) for frames in (now, following)]
    moved = np.array([0, -1, 1])[planes[:, 0, 0].argmax(-1)]
    np.testing.assert_array_equal(paddle[1], np.clip(paddle[0] + moved, 0, 9))
    # The trail is where the ball was, also in the last frame of a game.
    np.testing.assert_array_equal(following[..., 2], now[..., 1])
    assert digest(dataset, 20) == "0386185a97ec595e"


def marked(name):
    """A game, among the slow tests but for one: each is compiled for seconds."""
    marks = [] if name == "breakout" else [pytest.mark.slow]
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [marked(name) for name in minatar.GAMES])
def test_minatar_games_have_their_channels_and_past(name, monkeypatch):
    """With every frame kept, the past of each is what came before it."""
    monkeypatch.setattr(minatar, "EVERY", 1)
    game = minatar.GAMES[name]
    keys = jax.random.split(jax.random.key(0), 3)
    past, planes, following = minatar.play(game, keys, num_kept=60)
    num = len(game.channels)
    assert past.shape == (180, 2, 10, 10, num)
    assert following.shape == (180, 10, 10, num)
    assert planes.shape[:3] == (180, 10, 10)
    past, following = (
        past.reshape(3, 60, 2, 10, 10, num),
        following.reshape(3, 60, 10, 10, num),
    )
    goes_on = np.all(past[:, 1:, 1] == following[:, :-1], axis=(2, 3, 4))
    begins = np.all(past[:, 1:, 1] == past[:, 1:, 0], axis=(2, 3, 4))
    assert np.all(goes_on | begins)
    assert goes_on.mean() > 0.6
    kept = np.all(past[:, 1:, 0] == past[:, :-1, 1], axis=(2, 3, 4))
    assert np.all(kept | begins)
    assert following.any(axis=(0, 1, 2, 3)).sum() >= num // 2
    images = minatar.to_image(following)
    np.testing.assert_array_equal(minatar.to_channels(images, num), following)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "peg:3"}, "unknown --data 'peg:3'; did you mean 'peg:[24]'"),
        ({"name": "minatar:brekout"}, "did you mean 'minatar:breakout'"),
        ({"image_size": 8}, "--image-size would leave the past frames of peg:2 as"),
        ({"channels": 3}, "--channels would leave the past frames of peg:2 as they"),
        ({"transform": "static"}, "--transform static would leave the past frames"),
        ({"transform": "none"}, "--transform none is for tables, peg:2 holds images"),
        ({"columns": ("a=real",)}, "--columns: peg:2 holds images; leave it out"),
        ({"name": "stacked:peg:2"}, "stacked:peg:2: these images have no labels"),
    ],
)
def test_what_clips_are_not_is_told_in_a_line(config, message):
    with pytest.raises(UserError, match=message) as told:
        open_dataset(DataConfig(**{"name": "peg:2", **config}))
    assert "\n" not in str(told.value)


def test_absent_gymnax_is_a_line(monkeypatch, fresh_cache):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    line = r'--data minatar:asterix needs: python -m pip install -e "\.\[games\]"'
    with pytest.raises(UserError, match=line):
        open_dataset(DataConfig(name="minatar:asterix"))


def test_gymnax_of_another_version_is_played_anew(monkeypatch, fresh_cache):
    made = []
    monkeypatch.setattr(
        minatar, "open_minatar", lambda name: made.append(name) or tiny(name)
    )
    for version in ("1.0.1", "1.0.2", "1.0.1"):
        monkeypatch.setattr(minatar, "version", lambda _, v=version: v)
        open_dataset(DataConfig(name="minatar:asterix"))
    assert len(made) == 2
    assert len(list(cache.cache_directory().glob("*.npz"))) == 2


def tiny(name):
    dataset = open_dataset(DataConfig(name="peg:2"))
    few = type(dataset.test)(**dataset.test.take(np.arange(3)))
    return dataset._replace(name=name, train=few, test=few)


def test_clips_are_listed():
    told = described()
    assert "2 or 4 ways" in told["peg:2, peg:4"]
    assert all(game in told["minatar:GAME"] for game in minatar.GAMES)
