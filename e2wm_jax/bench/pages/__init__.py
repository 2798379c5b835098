"""What the pages of benchmarks show."""
