"""The options of a request, named as on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from patchscaler.batch import CallOptions
from patchscaler.errors import InputError
from patchscaler.imaging.io import OutputOptions
from patchscaler.imaging.size import SCALES, TargetSize, parse_box


class Options(BaseModel):
    """How to upscale and how to write; what is left out is as on the command line."""

    model_config = ConfigDict(extra="forbid")

    quality: Literal["fast", "balanced", "best"] = Field("balanced", description="How many steps to spend.")
    budget: float | None = Field(
        None, ge=0, le=1000, description="Mean steps a patch may take, on the hardest first; for `quality`."
    )
    fidelity: float = Field(
        0.0, ge=0, le=1, description="0: most detail; 1: only what the restoration is sure of."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Fixes the noise, and with it the result.")
    scale: float | None = Field(None, ge=SCALES[0], le=SCALES[1], description="4 if nothing is said.")
    width: int | None = Field(None, ge=1, le=2**20, description="Width of the output, pixels.")
    height: int | None = Field(None, ge=1, le=2**20, description="Height of the output, pixels.")
    fit: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]{0,5}x[1-9][0-9]{0,5}$",
        description="The largest size within this box.",
        examples=["3840x2160"],
    )
    texture: bool = Field(True, description="Use texture prompts.")
    deterministic: bool = Field(False, description="The same bits whatever else is in the batch; slower.")
    format: Literal["png", "jpg", "webp", "tif", "avif"] | None = Field(
        None, description="Format of the output; else the input's."
    )
    jpeg_quality: int = Field(95, ge=1, le=100, description="Quality of JPEG outputs.")
    strip: bool = Field(False, description="Write no metadata and no profile; colours become sRGB.")
    map: bool = Field(False, description="Keep the difficulty map, at `/v1/jobs/{id}/map`.")

    @property
    def size(self) -> TargetSize:
        """The size of the output; InputError if it is given in several ways."""
        return TargetSize(self.scale, self.width, self.height, parse_box(self.fit) if self.fit else None)

    @property
    def call(self) -> CallOptions:
        """Arguments of the pipeline."""
        return CallOptions(
            self.quality,
            self.seed,
            self.texture,
            self.deterministic,
            budget=self.budget,
            fidelity=self.fidelity,
        )

    @property
    def output(self) -> OutputOptions:
        """How to write."""
        return OutputOptions(self.strip, self.jpeg_quality)


class RequestOptions(Options):
    """Options as query parameters, with the way to be answered."""

    # `async` is a word of the language, so the field needs a name of its own.
    wants_job: bool = Field(False, alias="async", description="Answer with a job instead of the image.")

    def merged(self, fields: dict[str, str]) -> Options:
        """These options with those of a form.

        Raises:
            InputError: one is given twice, or not as it must be.
        """
        given = self.model_dump(include=self.model_fields_set - {"wants_job"})
        if both := sorted(given.keys() & fields.keys()):
            raise InputError(f"{both[0]} is in the query and in the form")
        try:
            return Options.model_validate({**given, **fields})
        except ValidationError as error:
            raise InputError(first_line(error.errors())) from None


def first_line(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors in one line."""
    place = ".".join(str(part) for part in errors[0]["loc"] if part not in ("query", "path"))
    return f"{place}: {errors[0]['msg']}"
