"""Write lowered graphs: one file, a pipeline folder, a Triton repository."""
