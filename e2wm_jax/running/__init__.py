"""Processes, interrupts, progress, devices, compilation."""
