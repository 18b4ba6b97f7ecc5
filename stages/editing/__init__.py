"""Editing: taking a capability out of a target, by its circuit or by training, and what else goes with it."""
