"""The passes that turn a float graph into QDQ form, and the order in which they run."""
