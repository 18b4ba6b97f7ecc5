"""Circuit discovery: ACDC, attribution patching, subnetwork probing and their controls."""
