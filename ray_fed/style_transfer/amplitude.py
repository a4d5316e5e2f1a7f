"""Exchange of styles without a network: low frequencies of amplitude spectra (Liu et al. 2021, FedDG, Sec. 3.2).

A silo sends the centre of the amplitude spectra of its images, without phases, hence without any structure that a
pixel position could be read from; a receiver paints its own images with it. Costs no training at all.

    FedDG   code                 shape
    A(x)    |fft2(x)|            [h, w]
    C       bank.amplitudes      float32 [k, b, b], b odd, zero frequency in the middle
    lambda  interpolation        drawn from U(0, 1) per image
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ray_fed.errors import DataError, Trouble

BAND_SHARE = 0.05
"""Half of the band's width as a share of the image's side."""
MOST_SPECTRA = 64


@dataclass(frozen=True)
class AmplitudeBank:
    """Low-frequency amplitudes of some of a silo's images."""

    silo: str
    amplitudes: np.ndarray
    """float32 [k, b, b]."""
    image_size: tuple[int, int]

    @property
    def num_bytes(self) -> int:
        return self.amplitudes.nbytes


def band_of(height: int, width: int, share: float = BAND_SHARE) -> int:
    """Return the odd width of the band for images of this size."""
    return 2 * max(1, int(share * min(height, width))) + 1


def amplitude_bank(silo: str, images: np.ndarray) -> AmplitudeBank:
    """Return the bank of uint8 images [n, h, w], the first MOST_SPECTRA of them."""
    height, width = images.shape[1:]
    spectrum = np.fft.fftshift(np.fft.fft2(images[:MOST_SPECTRA].astype(np.float64)), axes=(1, 2))
    rows, columns = _band(height, width, band_of(height, width))
    return AmplitudeBank(silo, np.abs(spectrum[:, rows, columns]).astype(np.float32), (height, width))


def checked_bank(bank: object, sender: str, image_size: tuple[int, int]) -> AmplitudeBank:
    """Return a received bank; DataError names the sender and what is wrong with it."""

    def refuse(reason: str) -> DataError:
        return DataError(f"amplitudes received from silo '{sender}' refused: {reason}", failure=Trouble.MESSAGE_DAMAGED)

    if not isinstance(bank, AmplitudeBank) or bank.silo != sender:
        raise refuse("they are not a bank of that silo")
    if tuple(bank.image_size) != image_size:
        raise refuse(f"they are of images of size {bank.image_size}, ours are {image_size}; tile to one size")
    amplitudes, side = bank.amplitudes, band_of(*image_size)
    if type(amplitudes) is not np.ndarray or amplitudes.dtype != np.float32 or amplitudes.shape[1:] != (side, side):
        raise refuse(f"they are no float32 array [k, {side}, {side}]")
    if not 1 <= len(amplitudes) <= MOST_SPECTRA:
        raise refuse(f"there are {len(amplitudes)} spectra, 1 to {MOST_SPECTRA} are allowed")
    if not np.isfinite(amplitudes).all() or amplitudes.min() < 0:
        raise refuse("amplitudes must be finite and not negative")
    return bank


def painted_with(images: np.ndarray, bank: AmplitudeBank, draws: np.random.Generator) -> np.ndarray:
    """Return uint8 images [n, h, w] whose low-frequency amplitudes are moved towards those of the bank."""
    count, height, width = images.shape
    rows, columns = _band(height, width, bank.amplitudes.shape[1])
    spectrum = np.fft.fftshift(np.fft.fft2(images.astype(np.float64)), axes=(1, 2))
    own = spectrum[:, rows, columns]
    theirs = bank.amplitudes[draws.integers(len(bank.amplitudes), size=count)]
    interpolation = draws.uniform(0, 1, size=(count, 1, 1))
    amplitude = (1 - interpolation) * np.abs(own) + interpolation * theirs
    spectrum[:, rows, columns] = amplitude * np.exp(1j * np.angle(own))
    painted = np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(1, 2))).real
    return np.clip(np.rint(painted), 0, 255).astype(np.uint8)


def _band(height: int, width: int, side: int) -> tuple[slice, slice]:
    """Return the slices of the band around the zero frequency of a shifted spectrum."""
    half = side // 2
    return slice(height // 2 - half, height // 2 + half + 1), slice(width // 2 - half, width // 2 + half + 1)


def bank_bytes(bank: AmplitudeBank) -> np.ndarray:
    """Return the amplitudes as uint8 [n], little-endian float32."""
    return bank.amplitudes.astype("<f4").reshape(-1).view(np.uint8)


def bank_of(sender: str, data: np.ndarray, facts: Mapping[str, float]) -> AmplitudeBank:
    """Return the bank behind a message; DataError when its bytes do not fit its facts."""
    try:
        spectra, height, width = (int(facts[name]) for name in ("spectra", "height", "width"))
        side = band_of(height, width)
        amplitudes = data.copy().view("<f4").astype(np.float32).reshape(spectra, side, side)
    except (KeyError, ValueError) as error:
        raise DataError(
            f"amplitudes received from silo '{sender}' refused: {error}", failure=Trouble.MESSAGE_DAMAGED
        ) from error
    return AmplitudeBank(sender, amplitudes, (height, width))
