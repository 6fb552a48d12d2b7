"""Launchers: warm local processes, and none at all for workers that others start."""
