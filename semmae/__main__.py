"""Run the `semmae` command with `python -m semmae`."""

from semmae.cli.main import main

if __name__ == "__main__":
    main()
