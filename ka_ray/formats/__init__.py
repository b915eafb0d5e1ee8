"""Write a student in the formats of other programs, and check each file by loading and running it."""
