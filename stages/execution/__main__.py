"""``python -m stages.execution ARM``."""

from stages.errors import run_stage
from stages.execution.stage import main

if __name__ == "__main__":
    run_stage(main)
