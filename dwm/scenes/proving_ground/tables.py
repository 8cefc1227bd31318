"""The nuScenes tables as rows: the fixed vocabularies, and a writer that links and stores them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dwm.geometry import quaternion_from_rotation
from dwm.scenes.dataroot import TABLES
from dwm.scenes.proving_ground.tokens import make_token
from dwm.scenes.types import Array

CATEGORIES = {
    "human.pedestrian.adult": "Adult.",
    "human.pedestrian.child": "Child.",
    "human.pedestrian.wheelchair": "Person in a wheelchair.",
    "human.pedestrian.stroller": "Stroller with or without a child.",
    "human.pedestrian.personal_mobility": "Person on a scooter, skateboard or the like.",
    "human.pedestrian.police_officer": "Police officer.",
    "human.pedestrian.construction_worker": "Construction worker.",
    "animal": "Animal.",
    "vehicle.car": "Car.",
    "vehicle.motorcycle": "Motorcycle.",
    "vehicle.bicycle": "Bicycle.",
    "vehicle.bus.bendy": "Articulated bus.",
    "vehicle.bus.rigid": "Rigid bus.",
    "vehicle.truck": "Truck.",
    "vehicle.construction": "Construction vehicle.",
    "vehicle.emergency.ambulance": "Ambulance.",
    "vehicle.emergency.police": "Police vehicle.",
    "vehicle.trailer": "Trailer.",
    "movable_object.barrier": "Temporary barrier.",
    "movable_object.trafficcone": "Traffic cone.",
    "movable_object.pushable_pullable": "Object to push or pull.",
    "movable_object.debris": "Debris.",
    "static_object.bicycle_rack": "Bicycle rack.",
}
ATTRIBUTES = {
    "cycle.with_rider": "Somebody rides it.",
    "cycle.without_rider": "Nobody rides it.",
    "pedestrian.moving": "The person moves.",
    "pedestrian.standing": "The person stands.",
    "pedestrian.sitting_lying_down": "The person sits or lies.",
    "vehicle.moving": "The vehicle moves.",
    "vehicle.parked": "The vehicle is parked.",
    "vehicle.stopped": "The vehicle stands in traffic.",
}
VISIBILITIES = {"1": (0, 40), "2": (40, 60), "3": (60, 80), "4": (80, 100)}  # token -> percent visible


class TableWriter:
    """Rows of the 13 tables, with tokens derived from one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        for name, description in CATEGORIES.items():
            self.add("category", self.token("category", name), name=name, description=description)
        for name, description in ATTRIBUTES.items():
            self.add("attribute", self.token("attribute", name), name=name, description=description)
        for token, (low, high) in VISIBILITIES.items():
            level = f"v{low}-{high}"
            self.add("visibility", token, level=level, description=f"{low} to {high} % of the object are visible")

    def token(self, kind: str, *parts: int | str) -> str:
        return make_token(self.seed, kind, *parts)

    def add(self, table: str, token: str, **fields: Any) -> dict[str, Any]:
        """Appends a row and returns it, so that ``next`` tokens can be filled in later."""
        row = {"token": token, **fields}
        self.rows[table].append(row)
        return row

    def add_chain(self, table: str, rows: list[dict[str, Any]]) -> None:
        """Appends rows in order of time and links their ``prev`` and ``next``."""
        tokens = ["", *(row["token"] for row in rows), ""]
        for i, row in enumerate(rows):
            self.rows[table].append({**row, "prev": tokens[i], "next": tokens[i + 2]})

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, rows in self.rows.items():
            (folder / f"{name}.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def pose_fields(pose: Array) -> dict[str, list[float]]:
    """``translation`` and ``rotation`` of a transform [4, 4] as nuScenes stores them."""
    return {"translation": pose[:3, 3].tolist(), "rotation": quaternion_from_rotation(pose[:3, :3]).tolist()}
