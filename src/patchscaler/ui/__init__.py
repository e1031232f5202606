"""A page to try PatchScaler on, in a browser on the same machine."""
