"""Read float graphs: traced from a network, or from a file that somebody else exported."""
