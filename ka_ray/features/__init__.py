"""Read features inside networks, stack them over teachers, and store them on disk."""
