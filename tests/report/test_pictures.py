import base64
import io
import json

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from oneround.report.pictures import Picture, read_gallery


def pixels(picture: Picture) -> np.ndarray:
    content = base64.b64decode(picture.uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)))


def write(path, channels=3, side=28, count=6, **more):
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, side, side)
    bank = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    save_file(
        {"bank": bank, "bank_targets": torch.arange(count) % 3, **more},
        path,
        metadata={"about": json.dumps({"noise_families": ["leaves"]})},
    )
    return bank


def test_small_images_are_whole_and_in_the_row_of_their_class(tmp_path):
    path = tmp_path / "gallery.safetensors"
    for channels in (1, 3):
        bank = write(path, channels)
        gallery = read_gallery(path, ["a", "b", "c", "absent"])
        assert list(gallery.bank) == ["a", "b", "c"]
        first, second = gallery.bank["b"]
        assert (pixels(first) == bank[1].movedim(0, -1).squeeze(-1).numpy()).all()
        assert (pixels(second) == bank[4].movedim(0, -1).squeeze(-1).numpy()).all()
        assert (first.width, first.height) == (56, 56)
        assert first.alt == "synthesized image, b"


def test_large_images_are_reduced(tmp_path):
    write(tmp_path / "g", side=224)
    (picture, *_) = read_gallery(tmp_path / "g", ["a", "b", "c"]).bank["a"]
    assert pixels(picture).shape == (96, 96, 3)
    assert picture.width == 96


def test_many_classes_share_the_room(tmp_path):
    save_file(
        {
            "bank": torch.zeros(200, 3, 64, 64, dtype=torch.uint8),
            "bank_targets": torch.arange(200),
        },
        tmp_path / "g",
    )
    bank = read_gallery(tmp_path / "g", [str(i) for i in range(200)]).bank
    assert len(bank) == 200
    assert sum(pixels(p).size for pictures in bank.values() for p in pictures) <= 700_000


def test_mixed_samples_are_in_the_order_of_lambda(tmp_path):
    mixed = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 1, 8, 8).contiguous()
    write(tmp_path / "g", mixed=mixed, mixed_lambda=torch.tensor([0.2, 0.9, 0.5, 0.0]))
    pictures = read_gallery(tmp_path / "g", ["a", "b", "c"]).mixed
    assert [p.caption for p in pictures] == ["λ 0.90", "λ 0.50", "λ 0.20", "λ 0.00"]
    assert [int(pixels(p)[0, 0]) for p in pictures] == [1, 2, 0, 3]


def test_no_gallery(tmp_path):
    assert read_gallery(tmp_path / "gallery.safetensors", []) is None
