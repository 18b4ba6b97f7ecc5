"""``python -m stages.circuits``."""

from stages.circuits.stage import main
from stages.errors import run_stage

if __name__ == "__main__":
    run_stage(main)
