"""How a saved dictionary is measured: metrics, baselines, probes, galleries."""
