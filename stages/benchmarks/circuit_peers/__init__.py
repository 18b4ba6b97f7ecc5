"""Other people's circuit discovery, measured on our cards: same weights, prompts, partners and ablation.

``export.py`` writes a card as one file, ``auto_circuit_peer.py`` runs in the peer's environment and reads nothing but
that file, ``compare.py`` runs ours and the peer in turn and judges both by the same code.
"""
