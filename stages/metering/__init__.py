"""What a FLOP costs: the op table, and the metered way to touch a target."""
