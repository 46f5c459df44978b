import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut

from oneround.data.dicom_lut import read_lut, read_palette
from tests.data.files import lut


def test_words_bytes_and_numbers_are_the_same_table():
    values = np.arange(100, 356)  # 8 bits in words would be [100, 1, 101, 1, ...] as bytes
    for vr in ("OW", "OB", "US"):
        assert read_lut(lut(0, 16, values, vr)).entries.tolist() == values.tolist()
    signed = lut(0, 16, [40000 - 65536, 7], "SS")
    assert read_lut(signed).entries.tolist() == [40000, 7]


def test_entries_of_8_bits_packed_into_words():
    values = np.arange(5, dtype=np.uint8)
    packed = values.tobytes() + b"\0"  # padded to an even number
    for vr, data in (("OW", packed), ("OB", packed[:5]), ("US", [0x0100, 0x0302, 0x0004])):
        item = lut(3, 8, np.zeros(5), vr, LUTData=data)
        assert read_lut(item).entries.tolist() == [0, 1, 2, 3, 4], vr
    swapped = np.frombuffer(packed, "<u2").astype(">u2").tobytes()
    item = lut(3, 8, np.zeros(5), "OW", LUTData=swapped)
    assert read_lut(item, little_endian=False).entries.tolist() == [0, 1, 2, 3, 4]


def test_0_entries_mean_65536():
    table = read_lut(lut(0, 16, np.arange(65536)))
    assert len(table.entries) == 65536
    assert table.look_up(np.array([0, 65535])).tolist() == [0, 65535]


def test_inputs_beyond_an_end_get_its_entry():
    table = read_lut(lut(10, 8, [1, 2, 3]))
    assert table.look_up(np.array([-5, 10, 11.4, 11.6, 99])).tolist() == [1, 1, 2, 3, 3]


def test_a_negative_first_input_written_as_an_unsigned_number():
    table = read_lut(lut(65536 - 1024, 16, np.arange(4096)))
    assert table.look_up(np.array([-1024, 0, 100])).tolist() == [0, 1024, 1124]
    assert table.look_up(np.array([0, 100])).tolist() == [1024, 1124], "none below 0 here"
    high = read_lut(lut(40000, 8, [5, 6]))
    assert high.look_up(np.array([0, 40001])).tolist() == [5, 6]


def test_empty_and_damaged_tables():
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", None)
    item.add_new("LUTData", "OW", None)
    assert read_lut(item) is None
    assert read_lut(Dataset()) is None
    with pytest.raises(ValueError, match="fewer entries"):
        read_lut(lut(0, 16, [1, 2, 3], LUTDescriptor=[9, 0, 16]))
    with pytest.raises(ValueError, match="how many"):
        read_lut(lut(0, 16, [1, 2, 3], LUTDescriptor=[3, 16]))


@pytest.mark.parametrize("bits", [8, 16])
def test_segments_as_in_the_standard(bits):
    """Discrete, linear and indirect segments (PS3.3, C.7.9.2), and what they stand for."""
    offset = 2 * 4 if bits == 16 else 4  # in bytes, of the linear segment
    words = [0, 2, 10, 20, 1, 4, 60, 0, 1, 5, 2, 2, offset]
    words += [0] if bits == 16 else [0, 0, 0]
    expected = [10, 20, 30, 40, 50, 60, 5, 19, 32, 46, 60, 5]
    dataset = Dataset()
    for color in ("Red", "Green", "Blue"):
        setattr(dataset, f"{color}PaletteColorLookupTableDescriptor", [len(expected), 0, bits])
        data = np.asarray(words, f"<u{bits // 8}").tobytes()
        setattr(dataset, f"Segmented{color}PaletteColorLookupTableData", data)
    red, _, blue = read_palette(dataset, little_endian=True)
    assert red.entries.tolist() == blue.entries.tolist() == expected


def test_segments_of_an_ultrasound_device_as_pydicom():
    dataset = pydicom.dcmread(get_testdata_file("gdcm-US-ALOKA-16.dcm", download=False))
    values = dataset.pixel_array
    tables = read_palette(dataset, little_endian=True)
    colors = np.stack([table.look_up(values) for table in tables], axis=-1)
    assert np.array_equal(colors, apply_color_lut(values, dataset))
