"""I: the Method contract, the built-in methods, and frozen artifacts I(M).

A method is one file with one subclass of ``Method``; see contract.py. ``methods/`` holds the built-in ones, one file
each.
"""

from stages.interpretation.artifact import load_interpretation, save_interpretation
from stages.interpretation.contract import (
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
from stages.interpretation.loading import built_in, from_file, method_name

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
    "built_in",
    "from_file",
    "load_interpretation",
    "method_name",
    "save_interpretation",
    "segment_sums",
]
