"""Built-in methods, one file each; the name of the file is the name of the method.

Add one: a file with a subclass of ``Method``, and its name in params/reward.yaml.
"""

from pathlib import Path

from stages.base.registry import Registry
from stages.contracts.method import Method

__all__ = ["METHODS"]

METHODS = Registry(
    Path(__file__).parent,
    __name__,
    "method",
    lambda cls: issubclass(cls, Method),
    "a file of your own: `lensmith score FILE.py`",
)
