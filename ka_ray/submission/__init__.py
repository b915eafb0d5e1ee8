"""Send a run to a remote cluster as a Ray job: package it, submit it, follow its log."""
