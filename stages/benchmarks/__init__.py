"""Measurements of speed and recovery behind `lensmith bench`. No stage depends on it."""
