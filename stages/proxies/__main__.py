"""``python -m stages.proxies [downstream TARGET]``."""

from stages.errors import run_stage
from stages.proxies.stage import main

if __name__ == "__main__":
    run_stage(main)
