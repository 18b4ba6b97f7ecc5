"""``python -m stages.research``."""

from stages.errors import run_stage
from stages.research.stage import main

if __name__ == "__main__":
    run_stage(main)
