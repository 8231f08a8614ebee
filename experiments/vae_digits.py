"""VAE on scikit-learn's digits as 256 grey levels: the default run, in seconds.

    python experiments/vae_digits.py [--seed 1]

The same as `jaxgen train vae`. About 18 s on 2 CPU cores, of which 9 s are training.
Expected on the 360 test images, with 16 importance samples: 160.4 +- 1.1 nats, 3.62
bits/dim (seed 0; the error is over the images).
"""

from jaxgen.cli import experiment


def main() -> None:
    """`jaxgen train vae` itself; every flag of it is taken."""
    experiment("vae")


if __name__ == "__main__":
    main()
