"""Our sides of the benchmarks, each run in a process of its own (`bench.process`)."""
