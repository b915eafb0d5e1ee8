"""Reading features inside networks, stacking them, and keeping them on disk."""
