"""Circuits: which edges between the components of a module carry what it does.

One graph over any HookedRootModule, one masked forward, and on it ACDC, attribution patching, subnetwork probing and
their controls; cards whose circuit is known. Importing this room does not import transformer_lens or tracr.
"""
