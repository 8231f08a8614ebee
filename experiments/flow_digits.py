"""TarFlow with splines on scikit-learn's digits, told the class: minutes on a CPU.

    python experiments/flow_digits.py [--num-seeds 3]
    jaxgen sample RUN --label 3
    jaxgen evaluate RUN

`jaxgen evaluate` tells the exact likelihood over all classes and how often Bayes' rule
finds the class. The digits have 17 levels, stored as 17 of 256: a model that learns which
ones has fewer bits/dim than pictures of 256 levels can have.
"""

from jaxgen.cli import experiment
from jaxgen.models.flow import FlowConfig
from jaxgen.train.config import TrainConfig

MODEL = FlowConfig(conditional=True, width=64)
TRAIN = TrainConfig(
    steps=800,
    batch_size=64,
    optimizer="muon",
    learning_rate=5e-3,
    schedule="linear",
    clip_norm=1.0,
)


def main() -> None:
    """`jaxgen train flow` with these defaults; every flag of it is taken."""
    experiment("flow", model=MODEL, train=TRAIN)


if __name__ == "__main__":
    main()
