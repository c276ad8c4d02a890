"""`python -m jobs.cli` is the same as `mibf`; the current folder, which Python puts first, is not searched for modules."""

from jobs.cli import app
from jobs.runtime.import_path import leave_current_folder

if __name__ == "__main__":
    leave_current_folder()
    app()
