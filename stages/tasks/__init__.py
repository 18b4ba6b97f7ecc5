"""T: task families, their instances, and the brute-force truth that makes an answer right.

Add a family: one file in families/ with a subclass of ``TaskFamily``, one line in families/__init__.py, its split in
params/tasks.yaml, and its name in dvc.yaml.
"""
