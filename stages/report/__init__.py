"""The HTML report and the README's figure: read from result files alone, so they show what was computed.

One file without network: plots are inline SVG drawn here, images are inline PNG, text is set in the reader's own fonts.
"""

from stages.report.composing import render
from stages.report.figure import leaderboard_svg
from stages.report.results import Missing, Results, load_results

__all__ = ["Missing", "Results", "leaderboard_svg", "load_results", "render"]
