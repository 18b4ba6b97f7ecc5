"""The types that rooms share, and no behaviour: what a target, a method and a task family are, and the rows of every
result file. Imports nothing of ours but ``stages.base`` and ``stages.errors``.
"""
