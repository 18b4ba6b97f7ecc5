"""Answers as programs: recorded on shapes, checked and priced before they run, run by the host.

``recording`` calls a method's ``answer`` once per query kind and shapes, with tensors that have shapes and no values,
and writes down what it computes: a ``Program``. Only that leaves the method's process, as data. ``checking`` holds it
against the price table and says exactly what it costs and how much memory it takes, before anything runs. ``running``
runs it on the data. So Python time of a method is worth nothing: the method has never seen the data.
"""
