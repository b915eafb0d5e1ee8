"""Pure torch and numpy at the bottom: moments, regression, eigenvalues, hashed random numbers, ranks."""
