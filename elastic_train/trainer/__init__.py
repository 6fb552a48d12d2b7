"""The driver's side: builds a job out of the ports' adapters, runs it, shows it, and tells how it went."""
