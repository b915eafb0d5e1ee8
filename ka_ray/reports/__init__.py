"""What a run reports: typed sections, their Markdown and their figures."""
