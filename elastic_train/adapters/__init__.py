"""Adapters, filed by port and then by technology; each is imported only where it is used."""
