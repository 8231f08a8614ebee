"""The console script, and `python -m jaxgen`."""

from jaxgen import _signals


def main() -> None:
    """As `jaxgen.cli.main`, in a process of its own."""
    _signals.end_quietly()  # before the imports: they take their half second
    from jaxgen import cli

    _signals.fail_at_once(cli.main)


if __name__ == "__main__":
    main()
