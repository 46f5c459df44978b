"""For researchers: simulation of sites in one process, and benchmarks of methods."""
