"""From a method to arms: one ``Candidate`` and one ``evaluate`` for stages, commands, campaigns and the red team."""
