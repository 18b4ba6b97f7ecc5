"""Modules whose circuit is known: compiled programs, planted networks, truth by ablation."""
