"""How fast the runtime is on this machine, as ratios to the loops everybody writes first, measured in the same run."""
