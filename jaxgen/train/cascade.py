"""A cascade: small images of one run, enlarged by another, of whatever families they are.

Whatever noise the small images are put under, the means of the large one's blocks are they.

References:
    Ho et al. 2021, arXiv:2106.15282.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import tasks
from jaxgen._checks import UserError
from jaxgen.models.base import indexed_keys
from jaxgen.train import assembly
from jaxgen.train.session import Loaded

STREAM = 2**31 - 5  # of a seed: the noise of what is to be enlarged


class Cascade:
    """Draws from the first run and has the second enlarge it, as a `Sampler` draws.

    Args:
        base: The run whose samples are small.
        top: A run on --task enlarge, whose parameters are given when it is called.
        level: Standard deviation of the noise that the small images are put under, of
            images in [0, 1]; the second run is told of it.

    Raises:
        UserError: if the two do not chain.
    """

    def __init__(self, base: Loaded, top: Loaded, *, level: float = 0.0):
        _check(base, top, level)
        self._base, self._level = base, level
        self._small, self._large = assembly.Sampler(base), assembly.Sampler(top)
        self._scale = top.config.data.scale or 2
        self.num = self._small.num

    def __call__(self, params: object, seed: int, start: int = 0) -> np.ndarray:
        """Images `start .. start + num`, uint8 `[num, H, W, C]`."""
        small = self._small(self._base.params, seed, start)
        key = jax.random.fold_in(jax.random.key(seed), STREAM)
        keys = indexed_keys(key, start + jnp.arange(self.num))
        small = (
            jnp.asarray(small, jnp.float32) + 0.5
        ) / 256  # the middle of each level
        told, seen = (
            np.asarray(
                tasks.small_planes(
                    small, keys, jnp.full(self.num, level), scale=self._scale
                )
            )
            for level in (self._level, 0.0)
        )
        return self._large.answers(params, seed, start, told, seen)


def _check(base: Loaded, top: Loaded, level: float) -> None:
    """Raises UserError, saying what would fit, where two runs do not chain."""
    asked = top.config.data
    if asked.task != "enlarge":
        does = "has no task" if asked.task is None else f"is on --task {asked.task}"
        raise UserError(f"{top.run.path} {does}: a run on --task enlarge would chain")
    scale = asked.scale or 2
    height, width, channels = top.config.model.shape
    wanted = height // scale, width // scale, channels
    if tuple(base.config.model.shape) != wanted:
        made, takes = (
            "x".join(map(str, shape)) for shape in (base.config.model.shape, wanted)
        )
        raise UserError(
            f"{base.run.path} makes examples of {made}, {top.run.path} enlarges images of "
            f"{takes}: --image-size {wanted[0]} --channels {channels} would fit"
        )
    if not 0 <= level <= tasks.MOST_NOISE:
        raise UserError(
            f"--noise must be in 0 .. {tasks.MOST_NOISE}, as in training, got {level}"
        )
