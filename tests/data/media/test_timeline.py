"""Seconds come from time stamps: what is seen before a moment was shown before it, prepared or imported."""

import io
import tarfile
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from random import Random

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from data.chat.chat_builder import write as write_chats
from data.chat.chat_index import ChatIndex
from data.chat.tokenizers import byte_tokenizer
from data.curation.clips import cut_into_clips
from data.dataset.index import ADDED, FACTS, OLDER, Index
from data.integrity.check import check
from data.integrity.repair import repair
from data.media import video
from data.media.timeline import STILL, Timeline, Timelines, timeline_of
from data.planning.clip_sampling import Sampling
from data.prepare.import_webdataset import import_tars
from data.prepare.pipeline import PrepareOptions, prepare
from data.statistics.stats import stats
from data.streams.chat_source import ChatOptions, ChatSource
from data.streams.clip_reader import ClipReader
from data.streams.visual_lookup import FrameIndexer
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry
from parallel.sequence.visual_tokens import Views
from tests.support import datasets
from tests.support.films import stamps, write
from tests.support.strange_films import pictures

STEPS = [100] * 40 + [33, 33, 34] * 20  # 10 frames a second for 4 s, then 30 for 2 s
BEGAN = np.cumsum([0, *STEPS[:-1]]) / 1000
PAUSED = [40] * 20 + [30_000] + [40] * 19  # half a minute of nothing
WIDE = Sampling(Geometry(stride=(1, 16, 16), patch=(1, 1, 1)), None, (32, 64))


def film(path: Path, steps: list[int]) -> Path:
    return write(path, pictures(len(steps), Random(path.name)), steps=steps, rate=1000, options={"bf": "2"})


@pytest.fixture(scope="module", params=["prepared", "imported"])
def dataset(request, tmp_path_factory) -> Path:
    """A film whose rate changes, and one that pauses."""
    folder = tmp_path_factory.mktemp("times")
    (folder / "films").mkdir()
    films = {"uneven.mkv": STEPS, "paused.mkv": PAUSED}
    paths = [film(folder / "films" / name, steps) for name, steps in films.items()]
    if request.param == "prepared":
        prepare(folder / "films", folder / "dataset", PrepareOptions(None, True, workers=0))
        return folder / "dataset"
    with tarfile.open(folder / "a.tar", "w") as tar:
        for path in paths:
            for name, data in ((f"{path.stem}.mp4", path.read_bytes()), (f"{path.stem}.txt", b"words")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    import_tars([str(folder / "a.tar")], folder / "dataset")
    return folder / "dataset"


def name_of(index: Index, stem: str) -> str:
    return next(index.file(row) for row in range(len(index)) if stem in index.file(row))


def chat_about(dataset: Path, tmp_path: Path, record: dict, stride: int = 1) -> tuple[ChatIndex, ChatSource]:
    index = Index.open(dataset)
    record = {**record, "video": name_of(index, record["video"])}
    write_chats([("a record", record)], byte_tokenizer(), tmp_path / "chats", dataset)
    chats = ChatIndex.open(tmp_path / "chats")
    sampling = Sampling(WIDE.geometry, None, WIDE.size, stride)
    return chats, ChatSource(chats, ClipReader(index, sampling, 0), ChatOptions(Views(16, 2)), 0)


def seen(source: ChatSource) -> list[list[int]]:
    """The numbers of the frames of each visual."""
    shown = []
    for spans in source.spans.by_visual(0):
        numbers: list[int] = []
        for span in spans:
            frames = source.clips.shard_reader.frames(span.row, 0, int(source.clips.index.frames[span.row]))
            numbers += stamps(frames)[span.first : span.last]
        shown.append(numbers)
    return shown


@pytest.mark.parametrize("second", [0.05, 1.0, 3.95, 4.01, 4.4, 5.5])
def test_what_is_seen_before_a_moment_was_shown_before_it(dataset, tmp_path, second):
    record = {"video": "uneven", "stream": [{"time": second, "text": "Now."}]}
    _, source = chat_about(dataset, tmp_path, record)
    first = seen(source)[0]
    assert sorted(set(first)) == np.flatnonzero(second + 1e-6 >= BEGAN).tolist()
    _, source = chat_about(dataset, tmp_path, record, stride=3)
    (span, *_) = source.spans.by_visual(0)[0]
    taken = [span.timeline.second(frame * 3) for frame in range(span.first, span.last)]
    assert max(taken) <= second + 0.01


@pytest.mark.parametrize(("begin", "end"), [(5, 20), (3, 28)])
def test_a_moment_that_shows_no_stored_frame_is_told_by_who_makes_a_chat_dataset(dataset, tmp_path, begin, end):
    record = {"video": "paused", "start": begin, "end": end, "text": "<video>Now."}
    found = rf"a visual shows a frame at least\n.*: {begin:g} to {end:g} s of .*paused.*, of which no frame is kept"
    with pytest.raises(InputError, match=found):
        chat_about(dataset, tmp_path, record)


def test_a_moment_after_a_pause_is_in_the_film(dataset, tmp_path):
    record = {"video": "paused", "stream": [{"time": 30.9, "text": "Now."}, {"time": 31.3, "text": "And now."}]}
    _, source = chat_about(dataset, tmp_path, record)
    visuals = seen(source)
    assert visuals == [[*range(24)], [*range(24, 34)], [*range(34, 40)]]
    with pytest.raises(InputError, match=r"a moment lies within its video\n.*which has 31\.6 s"):
        chat_about(dataset, tmp_path, {**record, "stream": [{"time": 40.0, "text": "Too late."}]})


def test_times_are_told_as_they_are(dataset):
    index = Index.open(dataset)
    clips = ClipReader(index, WIDE, 0)
    indexer = FrameIndexer(WIDE, clips)
    for stem, steps in (("uneven", STEPS), ("paused", PAUSED)):
        name, began = name_of(index, stem), np.cumsum([0, *steps[:-1]]) / 1000
        told: dict[int, float] = {}
        for timeline, frames in zip(indexer.timelines(name), indexer.frames(name), strict=True):
            for row, number in enumerate(stamps(frames)):
                told.setdefault(number, timeline.second(row))
        assert np.abs(np.array([told[n] for n in range(len(steps))]) - began).max() < 0.0167
    imported = len(index) == 2
    assert stats(index).seconds == pytest.approx(37.6 if imported else 7.6, abs=0.1), "of clips, the pause is in none"


def test_a_file_that_is_asked_about(tmp_path):
    path = film(tmp_path / "a.mkv", STEPS)
    indexer = FrameIndexer(WIDE, folder=tmp_path)
    (timeline,) = indexer.timelines("a.mkv")
    assert [round(timeline.second(row), 2) for row in (0, 39, 40, 70)] == [0.0, 3.9, 4.0, 5.0]
    few = FrameIndexer(Sampling(WIDE.geometry, 10, WIDE.size, 2), folder=tmp_path)
    (timeline,), (frames,) = few.timelines("a.mkv"), few.frames("a.mkv")
    assert timeline.second(0) == pytest.approx(BEGAN[stamps(frames)[0]], abs=0.005)
    assert len(video.decode(path)) == len(STEPS)


@pytest.mark.parametrize(("video", "sound", "begin"), [(0, 0, 0), (16, 16, 0), (16, None, 0), (2, 0, 2), (0, 2, 0)])
def test_seconds_begin_where_a_player_does(tmp_path, video, sound, begin):
    """With the first stream of the file, of whatever kind; all in seconds."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        pictured = container.add_stream("libx264", rate=25, options={"tune": "zerolatency"})
        pictured.height, pictured.width, pictured.pix_fmt = 32, 64, "yuv420p"
        heard = container.add_stream("pcm_s16le", rate=8000) if sound is not None else None
        for row, frame in enumerate(pictures(10, Random(0))):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts, image.time_base = 25 * video + row, Fraction(1, 25)
            container.mux(pictured.encode(image))
        if heard is not None:
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            noise.sample_rate, noise.pts, noise.time_base = 8000, 8000 * sound, Fraction(1, 8000)
            container.mux(heard.encode(noise))
        container.mux(pictured.encode(None))
    (clip,) = cut_into_clips(tmp_path / "a.mkv").kept
    assert clip.timeline.second(0) == pytest.approx(begin, abs=0.001)


LINES = {
    "even": (np.arange(50) / 25 + 3, 25, 1),
    "rounded": (np.round(np.arange(500) / 29.97, 3), 29.97, 1),
    "uneven": (BEGAN, 30, 2),
    "one": ([7.5], 25, 1),
}


@pytest.mark.parametrize(("seconds", "fps", "knots"), LINES.values(), ids=LINES)
def test_few_knots_tell_all_rows(seconds, fps, knots):
    line = timeline_of(seconds, fps)
    assert len(line.rows) <= knots + 1
    assert max(abs(line.second(row) - second) for row, second in enumerate(seconds)) < 0.36 / fps
    for row in range(len(seconds)):
        assert line.rows_until(line.second(row)) == pytest.approx(row, abs=1e-6)
    part = line.part(len(seconds) // 2, len(seconds))
    assert part.second(0) == line.second(len(seconds) // 2)
    assert part.second(len(seconds) - 1 - len(seconds) // 2) == pytest.approx(line.second(len(seconds) - 1))


def test_lines_of_a_whole_index():
    lines = [Timeline((0,), (2.0,), 25.0), Timeline((0, 10, 20), (0.0, 1.0, 5.0), 10.0), STILL]
    table = pa.table(
        {
            "time_rows": pa.array([[0], [0, 10, 20], [], None], pa.list_(pa.int32())),
            "time_seconds": pa.array([[2.0], [0.0, 1.0, 5.0], [], None], pa.list_(pa.float64())),
            "fps": [25.0, 10.0, 0.0, 8.0],
            "start": [0, 0, 0, 16],
        }
    )
    found = Timelines(table)
    assert found.begin.tolist() == [2.0, 0.0, 0.0, 2.0]
    assert found.ends(np.array([50, 30, 1, 8])).tolist() == [4.0, 6.0, 1.0, 3.0]
    samples, moments = np.array([0, 1, 1, 1, 3]), np.array([3.0, 0.5, 3.0, 5.5, 2.5])
    assert found.rows_until(samples, moments).tolist() == [25, 5, 15, 25, 4]
    assert [lines[s].rows_until(m) for s, m in zip(samples[:4], moments, strict=False)] == [25, 5, 15, 25]
    assert STILL.second(5) == 0


def test_datasets_without_times_are_read_as_before(tmp_path, monkeypatch):
    """As an older version wrote them: no columns of times, none in <uid>.json; nothing is wrong with them."""
    plain = datasets._row
    monkeypatch.setattr(datasets, "FACTS", [name for name in FACTS if name not in ADDED])
    monkeypatch.setattr(
        datasets, "_row", lambda n: {k: v for k, v in {**plain(n), "start": 4, "stop": 34}.items() if k not in ADDED}
    )
    dataset = datasets.make(tmp_path / "old", ((0, 1),))
    (part,) = (dataset / "index").glob("*.parquet")
    assert pa.parquet.read_table(part).schema.names == OLDER.names
    assert Index.open(dataset).timeline(0) == Timeline((0,), (4 / 8,), 8.0)
    assert check(dataset) == []
    written = part.read_bytes()
    part.write_bytes(written[:-9])
    repair(dataset)
    assert part.read_bytes() == written, "the index is made again as it was"


def test_what_is_written_is_what_the_shard_says(dataset):
    assert check(dataset) == []


CASES = Path(__file__).parents[4] / "shared" / "cases"
GIVEN = {
    "V1/gap_30s.mkv": [([*range(24)], 0.0), ([*range(24, 48)], 30.96)],
    "V1/first_frame_alone.mkv": [([*range(1, 48)], 60.0)],
    "T2/vfr.mkv": [([*range(50)], 0.0), ([*range(205, 55, -1)], 5.0)],  # the second part is a negative
    "V5/cont.ts": [([*range(24), *range(24)], 0.0)],
}


@pytest.mark.parametrize(("name", "expected"), GIVEN.items(), ids=GIVEN)
def test_given_films(name, expected):
    if not (CASES / name).exists():
        pytest.skip(f"{CASES / name} is not there")
    cut = cut_into_clips(CASES / name)
    shown = [(stamps(video.decode(clip.data)), round(clip.timeline.second(0), 2)) for clip in cut.kept]
    assert [([n for n, _ in groupby(numbers)], second) for numbers, second in shown] == expected
    if name == "V1/first_frame_alone.mkv":
        assert "0:1; the time stamps pause, which ends a shot: 60.0 s before frame 1" in cut.rejected[0]
