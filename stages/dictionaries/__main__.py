"""``python -m stages.dictionaries TARGET`` or ``python -m stages.dictionaries summary``."""

from stages.dictionaries.stage import main
from stages.errors import run_stage

if __name__ == "__main__":
    run_stage(main)
