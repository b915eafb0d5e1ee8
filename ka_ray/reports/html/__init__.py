"""The report of a run as one HTML page that needs no other file, and as a short form for notebooks."""
