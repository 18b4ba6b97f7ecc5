"""Cache of a target's activations on its corpus: written once, shuffled, read by everything that trains on them."""
