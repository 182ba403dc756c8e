"""The mask builder: a pattern made visible, or handed to others as a mask."""

from sparse_tx.masks.dense import dense_mask
from sparse_tx.masks.flex import block_mask
from sparse_tx.masks.map_picture import check_map, fits_text, save_map_png, text_map
from sparse_tx.masks.picture import save_png, text_picture
from sparse_tx.masks.tiles import TileCounts, TileLayout, pairs_of_queries, tile_layout

__all__ = [
    "TileCounts",
    "TileLayout",
    "block_mask",
    "check_map",
    "dense_mask",
    "fits_text",
    "pairs_of_queries",
    "save_map_png",
    "save_png",
    "text_map",
    "text_picture",
    "tile_layout",
]
