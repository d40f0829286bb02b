"""What a dataset of each task is, in a line."""

WHAT = {
    "joint": "RGB-D pairs: pictures and their depth, generated together from prompts",
    "depth": "Depth of the pictures of a corpus, estimated at each picture's own size",
    "depth-to-image": "Pictures generated from prompts on given depth maps",
    "encode": "Latents and text embeddings of pictures with depth and captions, for training",
    "prepare": "Pictures of a corpus with captions and relative disparity by teachers, for training",
}
