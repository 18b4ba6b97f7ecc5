"""What every room uses and none owns: disk layout, typed parameters, byte-stable files, processes, intervals."""
