"""VirtualHome's installed executor."""
