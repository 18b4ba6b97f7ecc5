"""``python -m stages.report`` writes the report, ``python -m stages.report figure`` the README's figure."""

from stages.errors import run_stage
from stages.report.stage import main

if __name__ == "__main__":
    run_stage(main)
