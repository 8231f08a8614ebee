"""How fast a run draws, measured in a process of its own.

python -m jaxgen.bench.drawing RUN
"""

import json
import sys
import time
from pathlib import Path

from jaxgen.train import assembly, session

SECONDS = 5.0  # at least


def sampling_rate(run: Path, *, seconds: float = SECONDS) -> float:
    """Samples a second of a run by its own sampler, 64 at once, after compiling.

    Of the processor's time, which is that of one core where the process is bound to it.
    """
    loaded = session.load(run)
    draw = assembly.Sampler(loaded)
    draw(loaded.params, 0)
    count, began = 0, time.process_time()
    while (spent := time.process_time() - began) < seconds or not count:
        draw(loaded.params, 0, count)
        count += draw.num
    return count / spent


if __name__ == "__main__":
    rate = sampling_rate(Path(sys.argv[1]))
    sys.stdout.write(json.dumps({"samples_per_s": rate}) + "\n")
