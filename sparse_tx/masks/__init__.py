"""The mask builder: a pattern made visible, or handed to others as a mask."""

from sparse_tx.masks.dense import dense_mask
from sparse_tx.masks.flex import block_mask
from sparse_tx.masks.map_picture import fits_text, save_map_png, text_map
from sparse_tx.masks.picture import length_that_shows, save_png, text_picture
from sparse_tx.masks.tiles import TileCounts, TileLayout, pairs_of_queries, tile_layout

__all__ = [
    "TileCounts",
    "TileLayout",
    "block_mask",
    "dense_mask",
    "fits_text",
    "length_that_shows",
    "pairs_of_queries",
    "save_map_png",
    "save_png",
    "text_map",
    "text_picture",
    "tile_layout",
]
