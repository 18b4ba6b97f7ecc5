"""``python -m stages.targets NAME``."""

from stages.errors import run_stage
from stages.targets.stage import main

if __name__ == "__main__":
    run_stage(main)
