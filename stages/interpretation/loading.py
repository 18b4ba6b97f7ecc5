"""From a name to a built-in method."""

from stages.contracts.method import Method
from stages.interpretation.methods import METHODS

__all__ = ["built_in"]


def built_in(name: str) -> Method:
    """A built-in method.

    Raises:
        UserError: no such method.
    """
    made = METHODS.find(name)()
    assert isinstance(made, Method)
    return made
