"""The tiny checkpoint that ships in the package, and its training recipe; see README.md.

Read in this order: spec (the settings), recipe (the stages), architecture (the networks), data (rendered scenes),
autoencoder, base, guidance and joint (the losses), loop (the training loop). `checkpoint/` holds the weights.
"""
