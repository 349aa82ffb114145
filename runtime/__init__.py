"""Run what the export stage wrote: engines, a drop-in network for diffusers, a torch-free loop."""
