"""Class-conditional diffusion on ImageNet 64x64 at the size of DiT-XL: for accelerators.

    python experiments/diffusion_imagenet64.py --data-dir DIR
    jaxgen plan experiments/diffusion_imagenet64.py --data photos --image-size 64 \
        --no-conditional --guidance 1 --target v5e:4x4

No machine of this project can train it: it was checked by --dry-run and by a smoke run
with a narrow network, never trained, and its plan was not seen to the end. Depth, width,
batch, rate and steps are those of Peebles & Xie 2022 (arXiv:2212.09748, tables 1 and 4),
who train on latents of 32x32 at patch 2; here pixels of 64x64 at patch 4 give the same
256 tokens. The data are TFDS' imagenet_resized/64x64.
"""

from jaxgen.cli import experiment
from jaxgen.data import DataConfig
from jaxgen.models.diffusion import DiffusionConfig, Sampling
from jaxgen.train.config import TrainConfig

MODEL = DiffusionConfig(
    net="transformer",
    width=1152,
    depth=28,
    patch=4,
    conditional=True,
    noise_mean=-1.2,
    compute="bfloat16",
    remat=True,
    sampling=Sampling(guidance=1.5),
)
DATA = DataConfig(name="imagenet_resized/64x64")
TRAIN = TrainConfig(
    steps=400_000,
    batch_size=256,
    learning_rate=1e-4,
    schedule="constant",
    warmup=0.01,
    beta2=0.999,
    weight_decay=0.0,
    parallel="fsdp",
    ema_widths=(0.05, 0.1),
)


def main() -> None:
    """`jaxgen train diffusion` with these defaults; every flag of it is taken."""
    experiment("diffusion", model=MODEL, data=DATA, train=TRAIN)


if __name__ == "__main__":
    main()
