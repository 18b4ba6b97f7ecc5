"""One module per group of commands. Each imports what it needs inside the command, so that help stays instant."""
