"""Roadreel's world: scenes, scenarios, conditioning, the world model and its roll-outs. No Ray in here."""
