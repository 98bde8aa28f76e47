"""What a user wrote, as a tree of settings -> a checked model, or one sentence that names the first mistake."""

from __future__ import annotations

from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from data_shards.errors import UserError, nearest_of
from launch.plain_values import check_values, short

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], tree: dict[str, Any], where: str) -> Model:
    """Return the model that `tree` describes; `where` it was read.

    Raises:
        UserError: anything wrong with it.
    """
    try:
        check_values(tree)
        return model.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {_sentence(error, model)}") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    name = short(".".join(str(part) for part in first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown key '{name}'{nearest_of(str(first['loc'][-1]), _keys_beside(first['loc'], model))}"
    if first["type"] == "missing":
        return f"'{name}' is missing"
    if first["type"] == "value_error":
        return (f"{name}: " if name else "") + str(first["ctx"]["error"])
    return f"'{name}': {first['msg'][0].lower() + first['msg'][1:]}, got {short(repr(first['input']))}"


def _keys_beside(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Return the keys that are known where an unknown one was found."""
    kind: Any = model
    for part in location[:-1]:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            named = {field.alias or name: field for name, field in getattr(kind, "model_fields", {}).items()}
            kind = named[str(part)].annotation if str(part) in named else None
    return [field.alias or name for name, field in getattr(kind, "model_fields", {}).items()]
