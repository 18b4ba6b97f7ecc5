"""``python -m stages STAGE [ARGUMENTS]``: what every command of dvc.yaml runs.

``STAGE`` is a room (``targets``: its ``stage.py``) or one module (``scoring.fresh``); the module has a ``main``.
"""

import sys
from importlib import import_module

from stages.errors import UserError, run_stage


def entry_module(stage: str) -> str:
    """``targets`` -> ``stages.targets.stage``, ``scoring.fresh`` -> ``stages.scoring.fresh``."""
    return f"stages.{stage}" if "." in stage else f"stages.{stage}.stage"


def main() -> None:
    if len(sys.argv) < 2:
        raise UserError("name a stage, such as `python -m stages targets digits_mlp`; dvc.yaml lists them")
    name = entry_module(sys.argv.pop(1))
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # something that the stage imports is missing
        raise UserError(f"{name} does not exist: dvc.yaml lists the stages") from error
    module.main()


if __name__ == "__main__":
    run_stage(main)
