"""R_t: what a method is worth, with its uncertainty. Gates, seals and leaderboards are built from these rows."""
