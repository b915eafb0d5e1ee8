"""What the commands of `ka-ray` share: the context of a run, its steps, its output folder."""
