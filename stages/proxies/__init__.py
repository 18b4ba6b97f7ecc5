"""Which metric of a dictionary predicts what it is worth? Swept dictionaries as methods, and rank correlations."""

from stages.proxies.correlation import correlate, partial, spearman

__all__ = ["correlate", "partial", "spearman"]
