"""What a comparison of modules for maps says: a few sentences, and one table."""

from sparse_tx.accounting.map_crossovers import (
    largest_square_below,
    numbers_of_spatial_gate,
    positions_of_convolution,
)
from sparse_tx.accounting.maps import FLOAT32_BYTES, MapShape
from sparse_tx.patterns import parse_pattern
from sparse_tx.profiler.maps import (
    CONVOLUTION,
    NON_LOCAL,
    SPATIAL_GATE,
    MapProfile,
    MapRow,
    at_width,
)
from sparse_tx.profiler.report.sheets import Cell, Column, Sheet
from sparse_tx.profiler.report.words import (
    UNKNOWN,
    bytes_text,
    count_text,
    flops_text,
    macs_text,
    share_text,
)


def map_sentences(profile: MapProfile) -> list[str]:
    """What a newcomer should know of the comparison, the most important first."""
    found = []
    for shape in profile.shapes:
        found.append(_dearest(profile, shape))
        found += _sparse(profile, shape)
    found += [_against_convolution(channels, profile) for channels in _channels(profile)]
    found.append(_against_gate(profile))
    found.append(
        "A MAC, a multiplication with its addition, is 2 FLOPs; the papers on SE and CBAM print"
        " MACs and call them FLOPs, CCNet prints FLOPs."
    )
    return found


def _dearest(profile: MapProfile, shape: MapShape) -> str:
    """Which module costs most and which least, against the yardstick."""
    yardstick = profile.cost(shape, CONVOLUTION).macs
    rows = sorted(
        (row for row in profile.rows if row.shape == shape and row.module != CONVOLUTION),
        key=lambda row: row.cost.macs,
    )
    least, most = rows[0], rows[-1]
    return (
        f"On a map of {shape}, {most.module} costs most, {macs_text(most.cost.macs)} or"
        f" {_times(most.cost.macs, yardstick)} a 3x3 convolution; {least.module} costs least,"
        f" {macs_text(least.cost.macs)} or {_times(least.cost.macs, yardstick)} it."
    )


def _sparse(profile: MapProfile, shape: MapShape) -> list[str]:
    """How much of all pairs each pattern leaves; steps may take more than all pairs do."""
    found = []
    for row in profile.rows:
        name, _, label = row.module.partition(", ")
        every = shape.positions**2
        if row.shape != shape or name != "position attention":
            continue
        steps = len(parse_pattern(at_width(label, shape.width)).layers)
        if steps == 1 and row.cost.attention_map == every:
            continue
        share = f"{share_text(row.cost.attention_map / every)} of all pairs of positions"
        if steps == 1:
            said = f"{share} meet: an attention map held whole takes"
        else:
            said = f"{steps} steps take as many products as {share}: attention maps held whole take"
        found.append(
            f"Along {label} there, {said} {bytes_text(row.cost.attention_map_bytes)} in place of"
            f" {bytes_text(every * FLOAT32_BYTES)}."
        )
    return found


def _against_convolution(channels: int, profile: MapProfile) -> str:
    limit = positions_of_convolution(channels)
    side = largest_square_below(limit)
    told = [
        f"{shape} has {count_text(shape.positions)}, and there they cost"
        f" {_times(pairs, profile.cost(shape, CONVOLUTION).macs)} the convolution"
        for shape in profile.shapes
        if shape.channels == channels
        for pairs in [profile.cost(shape, NON_LOCAL).pair_macs]
    ]
    return (
        f"With {count_text(channels)} channels, the pairs of a non-local block (N²C MACs) cost"
        f" less than a 3x3 convolution (9NC²) below {count_text(limit)} positions, 9 for each"
        f" channel: on squares up to {side}x{side}; {'; '.join(told)}."
    )


def _against_gate(profile: MapProfile) -> str:
    limit = numbers_of_spatial_gate()
    told = [
        f"{shape} has {count_text(shape.positions * shape.channels)}, and there it costs"
        f" {_times(profile.cost(shape, SPATIAL_GATE).macs, pairs)} them"
        for shape in profile.shapes
        for pairs in [profile.cost(shape, NON_LOCAL).pair_macs]
    ]
    return (
        f"CBAM's spatial gate ({limit}N MACs) costs less than those pairs on maps of more than"
        f" {limit} numbers, positions times channels: {'; '.join(told)}."
    )


def _times(value: int, other: int) -> str:
    """``2.04 times``, or ``1/49 of`` where there is less; exact ones are ``as much as``."""
    if value == other:
        return "as much as"
    if value > other:
        ratio = value / other
        return f"{ratio:,.0f} times" if ratio >= 100 else f"{ratio:.3g} times"
    ratio = other / value
    return f"1/{ratio:,.0f} of" if ratio >= 9.5 else f"{share_text(value / other)} of"


def _channels(profile: MapProfile) -> list[int]:
    return list(dict.fromkeys(shape.channels for shape in profile.shapes))


def map_sheet(profile: MapProfile) -> Sheet:
    """A line for every module on every map."""
    several = len(profile.shapes) > 1
    columns = [
        *([Column("map", is_text=True, is_key=True)] if several else []),
        Column("module", is_text=True, is_key=True),
        Column("parameters", meaning="weights, biases, and scales and shifts of norms"),
        Column("MACs", meaning="multiply-accumulates of one map, forward"),
        Column("FLOPs", meaning="two for every MAC"),
        Column("of 3x3 conv", "MACs", meaning="as a share of the 3x3 convolution's"),
        Column("of pairs", "MACs", meaning="in products between positions or between channels"),
        Column("attention map", meaning="if it is held whole, in float32"),
    ]
    return Sheet(
        key="maps",
        title=f"Cost on {', '.join(map(str, profile.shapes))}",
        explanation=(
            "One line for each module; a map is height x width x channels, and costs are of one"
            " map, forward. Attention map: the weights of all pairs that meet, if they are held"
            " whole, in float32."
        ),
        columns=tuple(columns),
        rows=tuple(
            (*([Cell(str(row.shape))] if several else []), *_cells(row, profile))
            for row in profile.rows
        ),
        is_grouped=several,
    )


def _cells(row: MapRow, profile: MapProfile) -> list[Cell]:
    cost = row.cost
    share = cost.macs / profile.cost(row.shape, CONVOLUTION).macs
    return [
        Cell(row.module),
        Cell(count_text(cost.parameters), cost.parameters),
        Cell(macs_text(cost.macs), cost.macs),
        Cell(flops_text(cost.flops), cost.flops),
        Cell(share_text(share), share),
        Cell(macs_text(cost.pair_macs) if cost.pair_macs else UNKNOWN, cost.pair_macs or None),
        Cell(
            bytes_text(cost.attention_map_bytes) if cost.attention_map else UNKNOWN,
            cost.attention_map_bytes or None,
        ),
    ]
