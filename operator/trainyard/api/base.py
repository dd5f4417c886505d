"""What all types share: camelCase names outside, snake_case inside, unknown fields refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """Base of every type of the API. Field docstrings become the CRD's descriptions (`kubectl explain`)."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    def dump(self) -> dict[str, Any]:
        """The object as the API server stores it: camelCase, without the fields that nobody set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Lenient(Model):
    """For objects that other versions of Trainyard write: unknown fields are ignored, not refused."""

    model_config = ConfigDict(extra="ignore")


def rules(*pairs: tuple[str, str], path: str | None = None) -> dict[str, Any]:
    """`json_schema_extra` that carries CEL rules: (expression that must hold, what is wrong when it does not)."""
    made = [{"rule": rule, "message": message} | ({"fieldPath": path} if path else {}) for rule, message in pairs]
    return {"x-kubernetes-validations": made}


def auto_or(low: int, high: int) -> dict[str, Any]:
    """Schema of `auto` or a whole number from `low` to `high`; a structural schema holds no other kind of union."""
    return {
        "x-kubernetes-int-or-string": True,
        **rules((f"type(self) == string ? self == 'auto' : (self >= {low} && self <= {high})",
                 f"must be 'auto' or a whole number from {low} to {high}")),
    }


Open = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
"""An object whose fields belong to somebody else (Kubernetes, Hugging Face) and are checked by them."""

Auto = Literal["auto"]
NumProc = Annotated[Annotated[int, Field(ge=1, le=256)] | Auto, WithJsonSchema(auto_or(1, 256))]
HangSeconds = Annotated[Annotated[int, Field(ge=1, le=86400)] | Auto, WithJsonSchema(auto_or(1, 86400))]

Name = Annotated[str, Field(min_length=1, max_length=253)]
Path = Annotated[str, Field(min_length=1, max_length=1024)]
Text = Annotated[str, Field(max_length=4096)]
Seconds = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Step = Annotated[int, Field(ge=0, le=2**53)]
Time = Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]
