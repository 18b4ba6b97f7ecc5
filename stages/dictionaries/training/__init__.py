"""How a dictionary is trained on an activation cache."""
