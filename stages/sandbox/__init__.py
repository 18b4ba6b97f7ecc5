"""Running methods nobody has reviewed: in a process of their own, within walls."""
