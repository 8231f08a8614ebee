"""What `import jaxgen.losses` costs beside `import jax, optax`, interleaved A B A B.

    python experiments/benchmarks/import_time.py [REPEATS]

Prints one JSON object: the medians in seconds and their ratio (to be at most 1.3).
"""

import json
import statistics
import subprocess
import sys
import time

IMPORTS = {"jax, optax": "import jax, optax", "jaxgen.losses": "import jaxgen.losses"}


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(repeats + 1):
        for name, code in IMPORTS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds[name].append(time.perf_counter() - began)
    # The first round warms the file cache and is left out.
    medians = {name: statistics.median(s[1:]) for name, s in seconds.items()}
    ratio = medians["jaxgen.losses"] / medians["jax, optax"]
    result = {"median_s": medians, "ratio": ratio, "repeats": repeats}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
