"""T: task families, their instances, and the brute-force truth that makes an answer right.

Add a family: one file in families/ with a subclass of ``TaskFamily``, one line in families/__init__.py, its split in
params/tasks.yaml, and its name in dvc.yaml.
"""

from stages.tasks.contract import Instances, TaskFamily, Truth, skill
from stages.tasks.families import MODULES, family
from stages.tasks.storage import Task, list_tasks, load_task

__all__ = ["MODULES", "Instances", "Task", "TaskFamily", "Truth", "family", "list_tasks", "load_task", "skill"]
