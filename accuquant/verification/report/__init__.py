"""Report: the figures of a verification as JSON and as a page with pictures."""
