"""Diffusion on scikit-learn's digits: the default run, in minutes.

python experiments/diffusion_digits.py [--seed 1]
"""

from jaxgen.cli import experiment


def main() -> None:
    """`jaxgen train diffusion` itself; every flag of it is taken."""
    experiment("diffusion")


if __name__ == "__main__":
    main()
