"""Units of work: pieces of a command that may run anywhere, and the folder that keeps their results."""
