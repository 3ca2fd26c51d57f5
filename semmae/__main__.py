"""`python -m semmae`: the same as the `semmae` command."""

from semmae.cli.main import main

if __name__ == "__main__":
    main()
