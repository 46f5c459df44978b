"""Reading images: what a hospital has, as labeled images of the size that the study asks for.

:func:`read_splits` reads MedMNIST files, class folders and CSV lists; the partition functions
divide a data set among the sites of a simulation.
"""

from oneround.data.image_set import ImageSet, Splits, as_image_set, batches
from oneround.data.partition import by_site
from oneround.data.reading import DataDescription, describe, read_splits

__all__ = [
    "DataDescription",
    "ImageSet",
    "Splits",
    "as_image_set",
    "batches",
    "by_site",
    "describe",
    "read_splits",
]
