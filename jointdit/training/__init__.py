"""Training: the tiny checkpoint from nothing, and an adapter on data. README.md beside this file says how.

The tiny checkpoint, in this order: spec (what can be set), run (the stages, top to bottom), data (rendered scenes),
autoencoder, base and joint (the three losses), loop (one optimisation loop for all of them).

An adapter: adapter_spec (what can be set), adapter (the loop, top to bottom), pairs and batches (which pairs a step
sees), encoding (pixels and captions to what the network sees), joint (the loss), optimizers, parallel (several
workers), validation, record (loss curve, TensorBoard, progress). checkpoint serves both. Ray Train calls it from
pipelines/training.
"""
