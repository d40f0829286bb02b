"""What a network costs before it runs and while it runs: FLOPs, memory, activations, times of steps."""
