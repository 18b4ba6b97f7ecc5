"""M: the zoo of target models. Trains each, checks that it learned, and freezes it.

Add a target: one file in zoo/ with a class that fulfils ``TargetDefinition``, plus one line in zoo/__init__.py.
"""
