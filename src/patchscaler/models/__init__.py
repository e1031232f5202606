"""The networks of PatchScaler, one class a file."""
