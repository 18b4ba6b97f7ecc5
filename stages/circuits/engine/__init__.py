"""Graphs over hook points, and the one masked forward pass that all algorithms share."""
