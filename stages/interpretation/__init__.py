"""I: the built-in methods, one file each in ``methods/``, and frozen artifacts I(M).

The contract of a method is in stages/contracts/method.py; files of your own import it from ``lensmith``. The names
below are what such files imported before there was ``lensmith``.
"""

from stages.contracts.method import (
    Answer,
    Attribute,
    Budget,
    Compare,
    Interpretation,
    Localise,
    Method,
    Propose,
    Query,
    Represent,
    Steer,
    segment_sums,
)

__all__ = [
    "Answer",
    "Attribute",
    "Budget",
    "Compare",
    "Interpretation",
    "Localise",
    "Method",
    "Propose",
    "Query",
    "Represent",
    "Steer",
    "segment_sums",
]
