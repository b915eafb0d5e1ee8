"""Run a workflow on a remote cluster as a Ray job: package its files, submit it, follow its log."""
