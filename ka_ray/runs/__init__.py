"""What the verbs share: the context of a run, its steps, its output folder."""
