"""Operators, with versions, that a TFLite file requires of its runtime."""

from __future__ import annotations


def read_operators(model: bytes) -> dict[str, int]:
    """Return the highest version of each builtin operator, e.g. {"CONV_2D": 3}.

    Source: TFLite schema, Model.operator_codes; the builtin code is the larger of the old
    (8 bit) and the new field.
    """
    from ai_edge_litert import schema_py_generated as schema  # noqa: PLC0415 - only where a file is made

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    found: dict[str, int] = {}
    for code in schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0)).operatorCodes:
        name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        found[name] = max(found.get(name, 0), code.version)
    return dict(sorted(found.items()))
