"""``python -m stages.reward``."""

from stages.errors import run_stage
from stages.reward.stage import main

if __name__ == "__main__":
    run_stage(main)
