"""Published results for comparison, each with its protocol and source.

"paper": from the full text. "secondary": quoted by another source. A table never mixes protocols: Marigold's error on
DIODE is 30.8, 11.1 or 6.13 %, depending only on mask and alignment.
"""

from __future__ import annotations

from jointdit.evaluation.tables import Column, ResultRow, ResultTable

LEAST_SQUARES = (
    "zero-shot, scale and shift per image by least squares, the benchmark's mask and range, mean over images"
)
ROBUST = "MoGe's robust alignment of scale and shift, ensemble of 10 for diffusion models"
NYU_JOINT = "NYUv2, scale and shift per image by least squares, as rerun by MERGE's authors"
OPEN_IMAGES = (
    "6,000 OpenImages with Depth-Anything-V2 depth as condition; FID to the true images; AbsRel of depth re-estimated"
)
LDM3D_CARD = "text to image, as stated on LDM3D's model card"

JOINTDIT_TABLE = "JointDiT's own table (arXiv 2505.00482), secondary"
MODALITY_FORCING = "Modality Forcing (arXiv 2606.13676), table 3, paper"
MODALITY_FORCING_IMAGES = "Modality Forcing (arXiv 2606.13676), table 4, paper"
MERGE = "MERGE, paper"


def abs_rel(title: str) -> str:
    """Return the column name of a benchmark's AbsRel."""
    return f"{title} AbsRel %"


def delta1(title: str) -> str:
    """Return the column name of a benchmark's delta1."""
    return f"{title} δ1 %"


# AbsRel in %, by JointDiT's authors; their delta1 could not be read.
_LEAST_SQUARES_ROWS = {
    "JointDiT (FLUX)": (4.9, 9.4, 5.6),
    "Marigold": (5.5, 9.6, 6.5),
    "GeoWizard": (5.2, 10.1, 6.4),
    "Depth-Anything-V2": (4.4, 7.5, 13.2),
}
LEAST_SQUARES_TITLES = ("NYUv2", "KITTI (Eigen)", "ETH3D")

_ROBUST_TITLES = ("NYUv2", "KITTI (Eigen)", "ETH3D", "ScanNet", "DIODE")
_ROBUST_ROWS: dict[str, tuple[tuple[float, float] | None, ...]] = {
    "JointNet": ((11.92, 86.7), (13.74, 81.3), (12.63, 87.1), (14.81, 81.8), (20.02, 82.7)),
    "UniCon": ((8.75, 91.7), (18.67, 73.0), (8.77, 92.9), (9.23, 91.0), (13.57, 90.8)),
    "JointDiT (FLUX)": ((5.12, 96.9), (10.90, 88.4), (5.32, 97.0), (5.76, 96.3), (10.22, 93.9)),
    "Modality Forcing": ((2.52, 98.9), (5.37, 96.6), (2.37, 99.3), (2.32, 98.9), (3.35, 97.7)),
    "Marigold": ((4.88, 96.8), (9.05, 90.3), (4.90, 97.2), (5.89, 95.2), (6.13, 94.5)),
    "PPD": ((3.82, 97.7), (6.57, 95.1), (4.02, 98.3), (4.04, 97.8), (4.97, 95.6)),
    "MoGe-2": ((2.89, 98.6), (3.75, 98.1), (2.80, 99.1), None, (3.14, 97.4)),
}

_NYU_JOINT_ROWS = {
    "JointNet": (13.7, 81.9),
    "UniCon": (7.9, 93.9),
    "OneDiffusion": (6.8, 95.2),
    "MERGE-L (FLUX)": (5.9, 95.4),
}

_OPEN_IMAGES_ROWS = {
    "Readout Guidance": (18.72, 23.19),
    "ControlNet": (13.68, 9.85),
    "UniCon": (13.21, 9.26),
    "JointDiT (FLUX)": (12.62, 6.99),
    "Modality Forcing": (11.41, 9.26),
}


def least_squares_rows() -> list[ResultRow]:
    """Return results of JointDiT, Marigold, GeoWizard and Depth-Anything-V2 on NYUv2, KITTI and ETH3D."""
    return [
        ResultRow(
            method,
            {abs_rel(title): value for title, value in zip(LEAST_SQUARES_TITLES, values, strict=True)},
            JOINTDIT_TABLE,
            LEAST_SQUARES,
        )
        for method, values in _LEAST_SQUARES_ROWS.items()
    ]


def robust_table() -> ResultTable:
    """Return depth results by another protocol, which cannot be compared with ours."""
    columns = [
        Column(name(title), ".2f" if name is abs_rel else ".1f")
        for title in _ROBUST_TITLES
        for name in (abs_rel, delta1)
    ]
    table = ResultTable("Published: depth, robust alignment", ROBUST, columns)
    for method, pairs in _ROBUST_ROWS.items():
        values: dict[str, float | None] = {}
        for title, pair in zip(_ROBUST_TITLES, pairs, strict=True):
            values |= {} if pair is None else {abs_rel(title): pair[0], delta1(title): pair[1]}
        table.add(ResultRow(method, values, MODALITY_FORCING, ROBUST))
    table.notes.append("Modality Forcing has ScanNet in its training mix.")
    return table


def joint_models_table() -> ResultTable:
    """Return depth results on NYUv2 of models that generate images and depth."""
    columns = [Column(abs_rel("NYUv2"), ".1f"), Column(delta1("NYUv2"), ".1f")]
    table = ResultTable("Published: depth of joint models on NYUv2", NYU_JOINT, columns)
    for method, (error, share) in _NYU_JOINT_ROWS.items():
        table.add(ResultRow(method, {abs_rel("NYUv2"): error, delta1("NYUv2"): share}, MERGE, NYU_JOINT))
    return table


def depth_to_image_table() -> ResultTable:
    """Return results of depth-to-image models."""
    table = ResultTable("Published: depth to image", OPEN_IMAGES, [Column("FID", ".2f"), Column("AbsRel %", ".2f")])
    for method, (distance, error) in _OPEN_IMAGES_ROWS.items():
        table.add(ResultRow(method, {"FID": distance, "AbsRel %": error}, MODALITY_FORCING_IMAGES, OPEN_IMAGES))
    return table


def text_to_image_table() -> ResultTable:
    """Return text-to-image results of joint models."""
    table = ResultTable(
        "Published: text to image and depth", LDM3D_CARD, [Column(name, ".2f") for name in ("FID", "IS", "CLIP score")]
    )
    figures = {"FID": 27.82, "IS": 28.79, "CLIP score": 26.61}
    table.add(ResultRow("LDM3D", figures, "huggingface.co/Intel/ldm3d, model card", LDM3D_CARD))
    table.notes.append("JointNet, UniCon and JointDiT: no result for joint generation was found.")
    return table
