"""Callbacks: when to save, stop, write and watch. What they write belongs to the run's folder."""
