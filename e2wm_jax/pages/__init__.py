"""Whole pages: `report.html` for whatever a command has left behind."""
