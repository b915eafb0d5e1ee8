"""Find out what a teacher is from its source: a file, a folder, or the name of a published model."""
