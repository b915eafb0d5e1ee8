"""What the command line prints: progress during a run, and a summary after it."""
