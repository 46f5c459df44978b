"""What a researcher does: sites simulated in one process, and benchmarks."""
