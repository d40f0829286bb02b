"""Training: the tiny checkpoint from nothing, by the JointDiT recipe.

Read in this order: spec (what can be set), run (the stages, top to bottom), data (rendered scenes), autoencoder, base
and joint (the three losses), loop (one optimisation loop for all of them).
"""
