"""Sparse dictionaries of a target's activations: training, their files, and what they are worth.

Importing this room does not import sae_lens (seconds); only loading a saved dictionary for evaluation does.
"""

from stages.dictionaries.codec import decode, encode
from stages.dictionaries.storage import load_dictionaries, load_dictionary, save_dictionary
from stages.dictionaries.training import ARCHITECTURES, train_dictionary

__all__ = [
    "ARCHITECTURES",
    "decode",
    "encode",
    "load_dictionaries",
    "load_dictionary",
    "save_dictionary",
    "train_dictionary",
]
