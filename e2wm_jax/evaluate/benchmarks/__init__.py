"""Published benchmarks: bAbI, Embodied Agent Interface, lm-evaluation-harness."""
