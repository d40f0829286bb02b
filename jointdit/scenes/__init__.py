"""Procedural RGB-D scenes with exact depth, rendered by ray casting on the CPU.

They are the demo's input, the tiny checkpoint's training data and the ground truth of tests. Read in this order:
vocabulary (the words), layout (the description of a scene), sampling (a scene from a seed), meshes and textures, render
(image and depth), caption (its text). styles renders a scene as a drawing or pixel art, colours checks the colours of
generated images.
"""

from jointdit.scenes.layout import Layout, Mention, SceneObject
from jointdit.scenes.render import Scene, render_layout, render_scene
from jointdit.scenes.sampling import sample_layout
from jointdit.scenes.vocabulary import COLOURS, COLUMNS, FLAT_SHAPES, SHAPES, SIZES

__all__ = [
    "COLOURS",
    "COLUMNS",
    "FLAT_SHAPES",
    "SHAPES",
    "SIZES",
    "Layout",
    "Mention",
    "Scene",
    "SceneObject",
    "render_layout",
    "render_scene",
    "sample_layout",
]
