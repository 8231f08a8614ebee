"""The validation loss of runs that one program trains, and their best parameters."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data
from jaxgen.train import parallel, stopping
from jaxgen.train.session import Session

SEED = 20_270_101  # of all noise: one value is compared with another


class Validator:
    """Judges the averaged parameters on the validation split, and keeps the best.

    All processes call it alike and have the same numbers. A run that is over is not
    judged again, though others go on: it has what it would have alone.

    Args:
        session: Of the first run; the others differ in their seed.
        layout: Where the joined state lies.
        source: The validation split.
        histories: Of each run, up to the step from which it is trained.
    """

    def __init__(
        self,
        session: Session,
        layout: parallel.Layout,
        source: data.Source,
        histories: Sequence[stopping.History],
    ):
        self.histories = [list(history) for history in histories]
        self._session, self._layout, self._source = session, layout, source
        self._sums = layout.compile_sums(self._sums_of)
        self._select: Any = None

    @property
    def is_over(self) -> bool:
        """Whether the last of the runs should stop."""
        patience = self._session.config.train.patience
        return all(stopping.is_over(history, patience) for history in self.histories)

    def judge(self, done: int, state: Any) -> tuple[Any, list[dict[str, float | None]]]:
        """The placed state with the best parameters, and the new losses for the metrics.

        Args:
            done: The step.
            state: As it is placed; its `best` is donated.
        """
        patience = self._session.config.train.patience
        told, better = [], []
        for loss, history in zip(self._losses(state), self.histories, strict=True):
            judged = not stopping.is_over(history, patience)
            better.append(judged and loss < stopping.best(history)[1])
            told.append(
                {stopping.NAME: loss if loss < math.inf else None} if judged else {}
            )
            if judged:
                history.append((done, loss))
        if any(better):
            if self._select is None:
                self._select = self._layout.compile_select(state.best)
            which = np.array(better if len(better) > 1 else better[0])
            state = state._replace(best=self._select(which, state.ema, state.best))
        return state, told

    def _losses(self, state: Any) -> list[float]:
        """The mean of each run's objective over the split; inf where it is not finite."""
        view = self._layout.view((state.ema, state.extra))
        total, batch_size = 0.0, self._session.config.train.batch_size
        for batch in data.eval_batches(self._source, batch_size):
            placed = self._layout.place_batch(batch)
            total += np.asarray(self._sums(*view, placed), np.float64)
        means = np.atleast_1d(total / self._source.num_examples)
        return [float(mean) if np.isfinite(mean) else math.inf for mean in means]

    def _sums_of(self, params: Any, extra: Any, raw: Any) -> jax.Array:
        """The sum of the objective over a batch, `[]`, or `[K]` for each joined run."""
        key = jax.random.key(SEED)
        prepare = data.make_prepare(self._session.config.data)
        batch = prepare(raw, jax.random.fold_in(key, 0))
        (player,) = self._session.model.players

        def one(params: Any, extra: Any) -> jax.Array:
            loss, _ = player.objective(
                params, extra, batch, jax.random.fold_in(key, 1), jnp.float32(1.0)
            )
            return jnp.sum(jnp.where(batch["mask"] > 0, loss, 0.0))

        if len(self.histories) == 1:
            return one(params, extra)
        return jax.vmap(one)(params, extra)
