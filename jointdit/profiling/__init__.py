"""Cost of a network: FLOPs, memory, activations, times of steps."""
