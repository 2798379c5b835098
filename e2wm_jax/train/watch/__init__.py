"""What is looked at while a run goes on: held-out loss, texts, speed, trackers."""
