"""Types of a recipe's fields, and the base of its sections."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from hpdm_core.names import plain_name

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Size = tuple[Positive, Positive, Positive]
Name = Annotated[str, AfterValidator(plain_name)]
AboveZero = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
# A value for every level, or a list of one per level, coarsest first.
BY_LEVEL = BeforeValidator(
    lambda value: value if value is None or isinstance(value, tuple) else (value,)
)
Solver = Literal["heun", "euler", "dpmpp_2m", "dpmpp_3m"]


class Section(BaseModel):
    """A part of a recipe: frozen, and strict about names and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def is_section(kind: object) -> bool:
    """Say whether a field's type is a section with fields of its own."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)
