"""Small helpers of the core: files, locks, timing, processors, GPUs."""
