"""Logged scenes in nuScenes format, real or from the proving ground."""
