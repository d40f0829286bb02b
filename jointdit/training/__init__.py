"""Training of adapters; see README.md.

Read in this order: adapter_spec (the settings), adapter (the training loop), pairs and batches (the pairs of a step),
encoding (pixels and captions to latents and embeddings), loss, optimizers, parallel (several workers), validation,
record (loss curve, TensorBoard, progress), checkpoint. The recipe of the tiny checkpoint is in jointdit/tiny. Ray Train
calls this package from pipelines/training.
"""
