"""``python -m stages.interpretation METHOD``."""

from stages.errors import run_stage
from stages.interpretation.stage import main

if __name__ == "__main__":
    run_stage(main)
