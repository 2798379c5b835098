"""What the model learned and what it forgot."""
