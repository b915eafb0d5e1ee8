"""What the command line prints: progress while a run goes on, a summary when it has ended."""
