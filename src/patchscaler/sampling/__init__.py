"""Patches, groups, noise schedule and the packed sampling engine."""
