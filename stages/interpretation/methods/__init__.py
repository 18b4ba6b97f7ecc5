"""Built-in methods, one file each; the name of the file is the name of the method.

Nothing is imported here: a method is imported when it is used, so that a change to one re-runs that one alone.
"""

BUILT_IN = (
    "attention",
    "circuit",
    "gradient",
    "logit_lens",
    "nothing",
    "pca",
    "random_features",
    "raw_activations",
    "sae",
)

__all__ = ["BUILT_IN"]
