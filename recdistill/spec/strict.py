"""Models that refuse unknown keys and name the nearest known one."""

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that ends an error message: the most similar known word, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


def nearest_of(words: Iterable[str], known: Iterable[str]) -> str:
    """Several unknown words, each with the most similar known one; all of these at the end if a word resembles none."""
    known = list(known)
    hints = {word: nearest(word, known) for word in words}
    close = {word: hint if hint.startswith("did you mean") else "" for word, hint in hints.items()}
    named = ", ".join(f"{word!r} ({hint})" if hint else repr(word) for word, hint in close.items())
    return named if all(close.values()) else f"{named}; known: {', '.join(known) or 'none'}"


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


OneOrMany = Annotated[list[str], BeforeValidator(_listed)]  # a word, or several


class Strict(BaseModel):
    """A frozen model whose unknown keys are errors that carry the nearest known key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_nearest_key(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            details = [_with_hint(e, cls.model_fields) for e in error.errors()]
            raise ValidationError.from_exception_data(cls.__name__, details) from None


def refusal(message: str) -> PydanticCustomError:
    """An error of ours, kept as it is while it travels up through the models around it."""
    return PydanticCustomError("recdistill", "{message}", {"message": message})


def _with_hint(error: Any, known: Iterable[str]) -> InitErrorDetails:
    details = InitErrorDetails(type=error["type"], loc=error["loc"], input=error["input"])
    if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
        details["type"] = refusal(f"unknown key; {nearest(error['loc'][0], known)}")
    elif error["type"] == "recdistill":
        details["type"] = refusal(error["msg"])
    elif "ctx" in error:
        details["ctx"] = error["ctx"]
    return details
