"""Session programs of engines, which run in their own processes by path and are not imported."""
