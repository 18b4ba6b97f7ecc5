"""From a method to rows: one ``Candidate`` and one ``evaluate`` for the stage, the command, the campaign and the red team."""
