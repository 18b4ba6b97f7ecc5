"""The free phase: a method computes I(M) on one target, uncharged, within its limits."""

from stages.base import paths
from stages.contracts.dictionary import Dictionary
from stages.contracts.method import Budget, Interpretation, Method
from stages.contracts.target import TWIN, Target
from stages.dictionaries.storage import load_dictionaries
from stages.errors import MethodError
from stages.interpretation.settings import Config
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger

__all__ = ["dictionaries_of", "interpret"]


def interpret(method: Method, name: str, target: Target, config: Config) -> Interpretation:
    """I(M) on one target, in this process.

    Raises:
        MethodError: the method raised.
    """
    access = MeteredAccess(target, Ledger(), free=True, dictionaries=lambda: dictionaries_of(target.name))
    budget = Budget(config.max_seconds, config.max_bytes, config.seed)
    try:
        return method.interpret(access, budget)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise MethodError(name, f"interpret on {target.name}", cause, "Run it on its own to debug it.") from error


def dictionaries_of(name: str) -> dict[str, Dictionary]:
    """A target's dictionaries: none where some were made and none of this target (``trained_on`` in
    params/dictionaries.yaml says of which). Where none was made at all, the error says which stage makes them."""
    made = paths.dictionaries_dir(name.removesuffix(TWIN))
    if not made.is_dir() and made.parent.is_dir():
        return {}
    return load_dictionaries(name)
