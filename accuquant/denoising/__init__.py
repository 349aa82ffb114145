"""What one denoising step is: the network call, the guidance around it, and the scheduler."""
