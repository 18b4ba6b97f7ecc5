"""``python -m stages.tasks FAMILY``."""

from stages.errors import run_stage
from stages.tasks.stage import main

if __name__ == "__main__":
    run_stage(main)
