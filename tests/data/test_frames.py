import pytest

from oneround.data.frames import chosen_frames
from oneround.errors import OneRoundError
from oneround.study import ImageSpec


@pytest.mark.parametrize(
    ("choice", "count", "indices"),
    [("single", 1, [0]), ("middle", 1, [0]), ("middle", 5, [2]), ("middle", 4, [2]),
     ("each", 3, [0, 1, 2])],
)  # fmt: skip
def test_frames_that_the_study_chooses(choice, count, indices):
    assert list(chosen_frames(count, ImageSpec(frames=choice))) == indices


def test_several_frames_are_refused_where_the_study_chooses_none():
    with pytest.raises(OneRoundError, match=r"several frames \(2\)") as caught:
        chosen_frames(2, ImageSpec())
    assert "`frames`" in caught.value.remedy
