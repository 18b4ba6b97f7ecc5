"""I: the Method contract, the built-in methods, and frozen artifacts I(M).

A method is one file with one subclass of ``Method``; see contract.py. ``methods/`` holds the built-in ones, one file
each.
"""
