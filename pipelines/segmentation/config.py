"""Options of `ray-fed segment`."""

from dataclasses import dataclass

from ray_fed.config import PathText, require


@dataclass(frozen=True)
class SegmentConfig:
    """How micrographs are segmented and what is written."""

    out: PathText = "segmented"
    """Folder for masks, overlays and tables; made if it is not there, never written into if it holds something."""
    model: str = ""
    """Which model of the run; may be left out if the run has one, or one named fedtransfer."""
    pixel_size_um: float | None = None
    """Edge of a pixel of the images, micrometres; with it, areas and ASTM grain-size numbers are told."""
    min_grain_pixels: int = 16
    """Islands of fewer pixels are taken for noise and given to their neighbours."""
    overlap: int | None = None
    """Pixels that neighbouring windows share; none: a quarter of the tile the model was trained on."""
    bits: int | None = None
    """Bits of the camera where they are fewer than the file's, e.g. 12."""

    def __post_init__(self) -> None:
        require(self.out != "", "out= must name a folder")
        size = self.pixel_size_um
        require(size is None or size > 0, f"pixel_size_um={size} must be positive")
        require(self.min_grain_pixels >= 1, f"min_grain_pixels={self.min_grain_pixels} must be at least 1")
        require(self.overlap is None or self.overlap >= 0, f"overlap={self.overlap} must not be negative")
