"""Procedural RGB-D scenes with exact depth, by ray casting on the CPU.

Read in this order: vocabulary (the words), layout (a scene from a seed), render (picture and depth), caption (the
sentence). They are the demo's input, the tiny checkpoint's training data and the ground truth of tests.
"""

from jointdit.scenes.layout import Layout, SceneObject, sample_layout
from jointdit.scenes.render import Scene, render_layout, render_scene
from jointdit.scenes.vocabulary import COLOURS, COLUMNS, SHAPES, SIZES

__all__ = [
    "COLOURS",
    "COLUMNS",
    "SHAPES",
    "SIZES",
    "Layout",
    "Scene",
    "SceneObject",
    "render_layout",
    "render_scene",
    "sample_layout",
]
