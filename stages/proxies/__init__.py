"""Which metric of a dictionary predicts what it is worth? Swept dictionaries as methods, and rank correlations."""
