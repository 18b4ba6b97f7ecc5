"""M1: researchers that propose methods, the campaign loop, and the sealed test split."""

from stages.research.campaign import Campaign
from stages.research.gate import Decision, Gate
from stages.research.journal import Journal
from stages.research.researchers import RESEARCHERS, Researcher, make_researcher

__all__ = ["RESEARCHERS", "Campaign", "Decision", "Gate", "Journal", "Researcher", "make_researcher"]
