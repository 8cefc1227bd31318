"""Names that depend on nothing but a seed and a place in the data: tokens, and the seeds of appearance and noise."""

from __future__ import annotations

import hashlib

APPEARANCE_RULE = "first 8 hex digits of the instance token"


def make_token(seed: int, kind: str, *parts: int | str) -> str:
    """32 hex digits, the same for the same arguments."""
    return hashlib.sha256("/".join(["roadreel", str(seed), kind, *map(str, parts)]).encode()).hexdigest()[:32]


def appearance_seed(instance_token: str) -> int:
    """What an agent looks like wherever it is drawn: APPEARANCE_RULE; tokens that are not hex are hashed first."""
    try:
        return int(instance_token[:8], 16)
    except ValueError:
        return int(hashlib.sha256(instance_token.encode()).hexdigest()[:8], 16)


def noise_seed(scene_token: str, timestamp_us: int) -> int:
    """Seed of rain and sensor noise at one moment of a scene."""
    return int(hashlib.sha256(f"{scene_token}/{timestamp_us}".encode()).hexdigest()[:8], 16)
