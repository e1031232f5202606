"""Exceptions a user of the package may catch; every message is one line that says what to do."""


class PatchScalerError(Exception):
    """Base of all errors raised on purpose by patchscaler."""


class InputError(PatchScalerError):
    """An image, folder or option given by the user cannot be used."""


class ModelError(PatchScalerError):
    """A model folder, weights file or texture memory is missing, broken or of another kind."""


class DeviceError(PatchScalerError):
    """The requested device is not present or cannot hold the work."""
