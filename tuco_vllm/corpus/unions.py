"""One Arrow type for a column that several sources hold, if each of their values can go into it unchanged.

pyarrow says which type that would be (`unify_schemas`, "permissive"): of two widths or two time units the
finer one, of structs all fields, and so on into lists. It does not ask what that loses; this is asked here:
integers may not fit a double, times not a finer unit, and decimals never do become floats.
"""

from collections.abc import Iterable

import pyarrow as pa


def union(types: Iterable[pa.DataType]) -> pa.DataType | None:
    """The type that values of all ``types`` can be cast to; None where there is none.

    Whether they can be without loss may depend on the values: see ``holds_all``.
    """
    types = [each for each in dict.fromkeys(types) if each != pa.null()]
    if len(types) < 2:
        return types[0] if types else pa.null()
    try:
        fields = [pa.schema([pa.field("", each)]) for each in types]
        united = pa.unify_schemas(fields, promote_options="permissive").field(0).type
        for each in types:
            pa.nulls(0, each).cast(united)  # not all that can be united can also be cast
    except pa.ArrowException:
        return None
    return None if any(_misfits(each, united) for each in types) else united


def holds_all(target: pa.DataType, source: pa.DataType) -> bool:
    """Whether every value of ``source`` is one of ``target``, their union. If not, its values decide."""
    if source in (target, pa.null()):
        return True
    if pa.types.is_integer(source):
        least = -(2 ** (source.bit_width - 1)) if pa.types.is_signed_integer(source) else 0
        return fits(pa.array([least, least + 2**source.bit_width - 1], source), target)
    if pa.types.is_timestamp(source) or pa.types.is_duration(source):
        return False
    return all(holds_all(united, each) for each, united in _inner(source, target))


def fits(values: pa.Array, target: pa.DataType) -> bool:
    """Whether these values can be cast to ``target`` unchanged."""
    try:
        values.cast(target)
    except pa.ArrowInvalid:
        return False
    return True


def _misfits(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether Arrow would round values of ``source``, or not cast them at all."""
    if source == target:
        return False
    if pa.types.is_decimal(source) and pa.types.is_floating(target):
        return True
    if pa.types.is_struct(source):
        names = [each.name for each in target]
        added = [each for each in target if each.name not in {own.name for own in source}]
        if len({*names}) < len(names) or not all(each.nullable for each in added):
            return True
    return any(_misfits(each, united) for each, united in _inner(source, target))


def _inner(source: pa.DataType, target: pa.DataType) -> list[tuple[pa.DataType, pa.DataType]]:
    """The types inside of a type, each with the one in its place in the union."""
    if pa.types.is_dictionary(source) and pa.types.is_dictionary(target):
        return [(source.value_type, target.value_type)]
    fields = [source.field(number) for number in range(source.num_fields)]
    if pa.types.is_struct(source):
        return [(each.type, target.field(each.name).type) for each in fields]
    return [(each.type, target.field(number).type) for number, each in enumerate(fields)]
