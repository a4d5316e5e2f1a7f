"""Options of `ray-fed segment`."""

from dataclasses import dataclass

from ray_fed.config import PathText, require


@dataclass(frozen=True)
class SegmentConfig:
    """How micrographs are segmented and what is written."""

    out: PathText = "segmented"
    """Folder for masks, overlays and tables; made if it is not there. An interrupted segmentation there, with the same
    options, goes on; a folder that holds anything else is never written into."""
    model: str = ""
    """Which model of the run; may be left out if the run has one, or one named fedtransfer."""
    pixel_size_um: float | None = None
    """Edge of a pixel of the images, micrometres; if not given, what each TIFF file states (ImageJ, FEI, Zeiss, OME).
    With it the images are brought to the model's scale, and areas and ASTM grain-size numbers are told."""
    model_pixel_size_um: float | None = None
    """Edge of a pixel the model has learnt from, micrometres, for models that do not say it themselves."""
    min_grain_pixels: int | None = None
    """Islands of fewer pixels are taken for noise and given to their neighbours; if not given, 2 % of the usual grain,
    at most 16."""
    overlap: int | None = None
    """Pixels that neighbouring windows share; none: a quarter of the tile the model was trained on."""
    bits: int | None = None
    """Bits of the camera where they are fewer than the file's, e.g. 12."""
    page: int | None = None
    """Which page of files of several images, from 1."""
    data_bar: int | None = None
    """Rows of a data bar at the bottom, cut off before anything is measured; 0: there is none; if not given, a bar is
    looked for and what was cut is said."""
    rois: bool = True
    """Write the grains' outlines for ImageJ's ROI manager, one .zip per image."""

    def __post_init__(self) -> None:
        require(self.out != "", "out= must name a folder")
        for name in ("pixel_size_um", "model_pixel_size_um"):
            size = getattr(self, name)
            require(size is None or size > 0, f"{name}={size} must be positive")
        least = self.min_grain_pixels
        require(least is None or least >= 1, f"min_grain_pixels={least} must be at least 1")
        require(self.overlap is None or self.overlap >= 0, f"overlap={self.overlap} must not be negative")
        require(self.data_bar is None or self.data_bar >= 0, f"data_bar={self.data_bar} must not be negative")
        require(self.page is None or self.page >= 1, f"page={self.page} must be at least 1")
