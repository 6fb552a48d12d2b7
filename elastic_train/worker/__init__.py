"""The worker: what runs in every training process, on both sides of the user's train function."""
