"""The picture of a training run."""

import csv
from pathlib import Path

import pygal


def draw_curve(log: Path, picture: Path) -> None:
    """Draw held-out top-1 per chain step and acceptance length over tokens from ``log.csv``."""
    with log.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chart = pygal.XY(
        title="Held-out agreement with the target",
        x_title="tokens trained on",
        secondary_range=(1.0, max(2.0, *(float(row["acceptance_length"]) for row in rows))),
        include_x_axis=True,
        disable_xml_declaration=False,
        js=[],
        dots_size=2,
    )
    for k in range(sum(name.startswith("top1_") for name in rows[0])):
        points = [(int(row["tokens"]), float(row[f"top1_{k}"])) for row in rows]
        chart.add(f"top-1, step {k + 1}", points)
    lengths = [(int(row["tokens"]), float(row["acceptance_length"])) for row in rows]
    chart.add("acceptance length (right)", lengths, secondary=True)
    picture.write_bytes(chart.render())
