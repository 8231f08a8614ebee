"""VAE on scikit-learn's digits as 256 grey levels: the default run, in seconds."""

from jaxgen.cli import experiment


def main() -> None:
    """`jaxgen train vae` itself; every flag of it is taken."""
    experiment("vae")


if __name__ == "__main__":
    main()
