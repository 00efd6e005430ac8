"""What runs in an engine's own process; each file by its path, not by import."""
