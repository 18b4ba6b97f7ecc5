"""Sparse dictionaries of a target's activations: training through SAELens, their files, and what they are worth.

Importing this room does not import sae_lens (seconds); only training and evaluation do, when they are called.
"""

from stages.dictionaries.codec import decode, encode
from stages.dictionaries.storage import load_dictionaries, load_dictionary
from stages.dictionaries.training import ARCHITECTURES, train_dictionary

__all__ = ["ARCHITECTURES", "decode", "encode", "load_dictionaries", "load_dictionary", "train_dictionary"]
