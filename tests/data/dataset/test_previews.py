"""Strips show a clip from its first frame to its last, and sheets hold them where arithmetic says."""

import cv2
import numpy as np
import pytest

from data.dataset import previews
from data.dataset.previews import CELL_HEIGHT, CELL_WIDTH, CELLS, STRIP_WIDTH, STRIPS, Strip, place, sheets
from data.media.reservoir import Reservoir


def picture(data):
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def strip_of(frames):
    strip = Strip()
    for frame in frames:
        strip.add(frame)
    return strip.jpeg()


def flat(value, height=54, width=96):
    return np.full((height, width, 3), value, np.uint8)


def test_a_reservoir_as_drawn():
    reservoir = Reservoir(4)
    kept = []
    for row in range(13):
        reservoir.add(lambda row=row: row)
        kept.append(list(reservoir.items))
    assert kept[3] == [0, 1, 2, 3]
    assert kept[4] == [0, 2, 4]
    assert kept[6] == [0, 2, 4, 6]
    assert kept[8] == [0, 4, 8]
    assert kept[12] == [0, 4, 8, 12]
    assert reservoir.step == 4
    third = Reservoir(3)  # odd numbers stay evenly spaced too
    for row in range(100):
        third.add(lambda row=row: row)
    assert third.items == [0, 32, 64, 96][:3] or np.ptp(np.diff(third.items)) == 0


def test_a_reservoir_makes_few():
    made = []
    reservoir = Reservoir(16, 2)
    for row in range(10_000):
        reservoir.add(lambda row=row: made.append(row) or row)
    assert 8 < len(reservoir.items) <= 16
    assert np.ptp(np.diff(reservoir.items)) == 0
    assert reservoir.items[0] == 0
    assert reservoir.items[-1] > 10_000 - 2 * reservoir.step
    assert len(made) < 16 + 8 * 12


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 9, 30, 200, 1000])
def test_a_strip_shows_evenly_spaced_frames(frames):
    values = np.linspace(40, 250, frames)
    shown = picture(strip_of(flat(round(v)) for v in values))
    assert shown.shape == (CELL_HEIGHT, STRIP_WIDTH, 3)
    seen = shown.reshape(CELL_HEIGHT, CELLS, CELL_WIDTH, 3)[20:30, :, 30:60].mean((0, 2, 3))
    cells = min(CELLS, frames)
    assert np.all(abs(seen[cells:] - previews.PAPER) < 3)  # what is not there stays empty
    assert seen[0] == pytest.approx(40, abs=3)
    expected = np.linspace(40, values[-1], cells)
    tolerance = 210 / (2 * CELLS) + 3  # half a cell's stretch, and JPEG
    assert np.all(np.abs(seen[:cells] - expected) < tolerance)
    if 1 < frames <= CELLS:
        assert seen[cells - 1] == pytest.approx(250, abs=3)


def test_frames_are_fitted_and_bytes_repeat():
    rng = np.random.default_rng(0)
    for height, width in ((144, 256), (256, 144), (16, 300), (20, 20), (1080, 1920)):
        frames = [rng.integers(0, 255, (height, width, 3)).astype(np.uint8) for _ in range(3)]
        assert strip_of(frames) == strip_of(frames)
    white = picture(strip_of([flat(255, 256, 144)]))[:, :CELL_WIDTH].mean(2) > 200
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    assert (rows[0], rows[-1]) == (0, CELL_HEIGHT - 1)
    assert len(columns) == pytest.approx(30, abs=2)  # 54 * 144 / 256
    assert columns[0] + columns[-1] == pytest.approx(CELL_WIDTH - 1, abs=2)


def test_a_kept_frame_is_a_copy():
    strip, frame = Strip(), flat(200)
    strip.add(frame)
    frame[:] = 0
    assert picture(strip.jpeg())[30, 40].mean() > 190


def test_sheets_hold_strips_where_place_says():
    levels = [40 + 3 * (n % 64) for n in range(STRIPS + 6)]
    strips = [None if n == 3 else strip_of([flat(v)] * CELLS) for n, v in enumerate(levels)]
    found = [picture(sheet) for sheet in sheets(iter(strips))]
    assert [sheet.shape[0] for sheet in found] == [STRIPS * CELL_HEIGHT, 6 * CELL_HEIGHT]
    assert list(sheets([])) == []
    for ordinal, level in enumerate(levels):
        sheet, row = place(ordinal)
        strip = found[sheet][row * CELL_HEIGHT : (row + 1) * CELL_HEIGHT, :STRIP_WIDTH]
        expected = previews.PAPER if ordinal == 3 else level
        assert strip[8:-8].mean() == pytest.approx(expected, abs=3)
    assert previews.sheet_name("ab12", 3) == "ab12-0003.jpg"


def test_size_of_a_sheet(real_clips):
    from data.media import video

    strips = []
    for name, frames in (("bikes.mp4", 60), ("bigbuckbunny.mp4", 30)):
        strips.append(strip_of(video.stream_frames(real_clips / name, 0, frames, size=(144, 256))))
    (sheet,) = sheets(strips * 8)
    assert 2000 < len(sheet) / 16 < 8000  # bytes of a strip; these two are rich in detail
