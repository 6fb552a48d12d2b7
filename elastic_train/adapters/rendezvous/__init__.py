"""Rendezvous for other launchers than ours, on the same coordination service."""
