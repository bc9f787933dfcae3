"""Side-by-side benchmarks of the node and its peers: `scripts/bench`."""
