"""Their sides of the benchmarks, each run in a process of its own; what they need is optional."""
