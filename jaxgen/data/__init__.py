"""Images or rows in, batches out: batch t is a pure function of (seed, t).

```
open_dataset(config) -> Dataset(train, test, ...)      uint8 images, float32 rows
batch_indices(seed, step, ...)  stream(source, ...)    which examples, read ahead
prepare(batch, key, transform=...)                     uint8 -> float32 on the device
make_prepare(config)(batch, key)                       the same, and the config's task
```
Nothing here needs TensorFlow. scikit-learn, grain and tensorflow_datasets are imported
when they are first used, and for a set in the cache not at all.
"""

from jaxgen.data.batches import batch_indices, eval_batches, stream
from jaxgen.data.conditions import check_task, make_prepare, task_of
from jaxgen.data.config import DataConfig
from jaxgen.data.opening import DATASETS, described, open_dataset
from jaxgen.data.sources import (
    ArraySource,
    Dataset,
    Source,
    check_batch_size,
    spread,
    with_validation,
)
from jaxgen.data.transforms import prepare, static_binarise

__all__ = [
    "DATASETS",
    "ArraySource",
    "DataConfig",
    "Dataset",
    "Source",
    "batch_indices",
    "check_batch_size",
    "check_task",
    "described",
    "eval_batches",
    "make_prepare",
    "open_dataset",
    "prepare",
    "spread",
    "static_binarise",
    "stream",
    "task_of",
    "with_validation",
]
