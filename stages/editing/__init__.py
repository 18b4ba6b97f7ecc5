"""Editing: taking a capability out of a target, by its circuit or by training, and what else goes with it."""

from stages.editing.behaviours import Behaviour, behaviour_of
from stages.editing.capability import Settings, remove_capability
from stages.editing.cutting import SITES, Site, cut, cut_scores, mean_inputs, top
from stages.editing.removing import HOWS, remove

__all__ = [
    "HOWS",
    "SITES",
    "Behaviour",
    "Settings",
    "Site",
    "behaviour_of",
    "cut",
    "cut_scores",
    "mean_inputs",
    "remove",
    "remove_capability",
    "top",
]
