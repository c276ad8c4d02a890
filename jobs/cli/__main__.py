"""`python -m jobs.cli` is the same as `mibf`."""

from jobs.cli import app

if __name__ == "__main__":
    app()
