"""Where runs go: sweeps on this machine."""
