"""Circuits: which edges between the components of a module carry what it does.

One graph over any HookedRootModule, one masked forward, and on it ACDC, attribution patching, subnetwork probing and
their controls; cards whose circuit is known. Importing this room does not import transformer_lens or tracr.
"""

from stages.circuits.ablation import ABLATIONS
from stages.circuits.discovery import Subject, discover, load_subject
from stages.circuits.graph import Edge, Graph, Layout, Node
from stages.circuits.latents import with_latents
from stages.circuits.masked import MaskedForward
from stages.circuits.methods import METHODS, Settings, run_method
from stages.circuits.objectives import OBJECTIVES
from stages.circuits.zoo import graph_of_target

__all__ = [
    "ABLATIONS",
    "METHODS",
    "OBJECTIVES",
    "Edge",
    "Graph",
    "Layout",
    "MaskedForward",
    "Node",
    "Settings",
    "Subject",
    "discover",
    "graph_of_target",
    "load_subject",
    "run_method",
    "with_latents",
]
