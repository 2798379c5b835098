"""What pages show of evaluations."""
