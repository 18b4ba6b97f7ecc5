"""M2: the executor that solves tasks, in three arms that differ only in what it may query."""
