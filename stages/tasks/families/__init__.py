"""Task families, one file each; the name of the file is the name of the family.

Add one: a file with a subclass of ``TaskFamily``, and its split and targets in params/tasks.yaml.
"""

from pathlib import Path

from stages.base.registry import Registry
from stages.contracts.task import TaskFamily

__all__ = ["FAMILIES", "family"]

FAMILIES = Registry(Path(__file__).parent, __name__, "task family", lambda cls: issubclass(cls, TaskFamily))


def family(name: str) -> TaskFamily:
    """An instance of the family.

    Raises:
        UserError: there is no family of that name.
    """
    made = FAMILIES.find(name)()
    assert isinstance(made, TaskFamily)
    return made
