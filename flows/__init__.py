"""WHEN and WHERE things run: the `lensmith` command, the walk over the graph, the nightly flow.
Knows no tensors.
"""
