"""Gates: the probability that an image belongs to each teacher, from the teachers' features. No Ray."""
