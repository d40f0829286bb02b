"""Cost of a network: FLOPs, memory, activations, times of steps."""

RESERVED_BYTES = 1 << 30  # assumed: GPU memory of the CUDA context, cuBLAS and fragmentation
