"""A comparison of modules for maps as one HTML page that holds all it needs."""

from sparse_tx.profiler.maps import MapProfile
from sparse_tx.profiler.report.map_exchange import maps_to_csv, maps_to_json
from sparse_tx.profiler.report.map_plots import channels_of, colour_of, map_plots
from sparse_tx.profiler.report.map_words import map_sentences, map_sheet
from sparse_tx.profiler.report.render import data_address, flattened, line, render

_SECTIONS = (
    ("short", "In short"),
    ("costs", "Cost against positions"),
    ("all", "All modules"),
    ("words", "Words"),
    ("provenance", "Origin"),
)


def map_page(profile: MapProfile) -> str:
    """Write the page; it is opened from a file and asks for nothing from the network."""
    groups = [(channels, map_plots(profile, channels)) for channels in channels_of(profile)]
    return render(
        "maps.html",
        [plot for _, plots in groups for plot in plots],
        title=profile.title,
        files="maps",
        sections=_SECTIONS,
        sentences=map_sentences(profile),
        lines=[line(module, colour_of(profile, module)) for module in profile.modules],
        groups=groups,
        rows=map_sheet(profile),
        provenance=flattened(profile.provenance),
        csv_address=data_address("text/csv", maps_to_csv(profile)),
        json_address=data_address("application/json", maps_to_json(profile)),
    )
