"""Numerical building blocks in torch and numpy: moments, least squares, random numbers, process groups."""
