"""Sparse dictionaries of a target's activations: training, their files, and what they are worth.

Importing this room does not import sae_lens (seconds); only loading a saved dictionary for evaluation does.
"""
