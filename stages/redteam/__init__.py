"""Attacks on the score, all of which must fail, and honest methods beside them. No stage depends on it."""
