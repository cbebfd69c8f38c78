"""Images of every kind come out as they are meant to be seen, or are rejected with a reason."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from data.containers import gif
from data.containers.truncation import why_cut
from data.curation.clips import CutOptions, cut_into_clips
from data.media import image, video
from data.planning.clip_sampling import Sampling
from data.streams.visual_lookup import frames_of
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry
from tests.support.films import calm, stamped, stamps, write

PICTURE = calm(1, 48, 64)[0]


def stored(picture, form="PNG", **options) -> bytes:
    out = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize(("form", "suffix", "off"), [("JPEG", "jpg", 2.0), ("PNG", "png", 0.0), ("WEBP", "webp", 3.0)])
def test_the_bytes_are_stored_as_they_came(tmp_path, form, suffix, off):
    data = stored(PICTURE, form, **({"quality": 95} if form != "PNG" else {}))
    path = tmp_path / "mislabelled.mp4"  # the content tells what it is
    path.write_bytes(data)
    cut = cut_into_clips(path)
    (clip,) = cut.kept
    assert (cut.shots, cut.rejected) == (1, ())
    assert (clip.data, clip.media, clip.slices) == (data, suffix, None)
    assert (clip.start, clip.stop, clip.frames, clip.fps, clip.height, clip.width) == (0, 1, 1, 1, 48, 64)
    assert clip.scores.motion == 0
    assert clip.scores.brightness > 50
    assert clip.preview[:3] == b"\xff\xd8\xff"
    (frame,) = image.decode(clip.data)
    assert np.abs(frame.astype(int) - PICTURE).mean() <= off
    assert image.decode(clip.data, (24, 32)).shape == (1, 24, 32, 3)
    assert image.decode(clip.data, (96, 128)).shape == (1, 96, 128, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    turn = {
        1: lambda f: f,
        2: lambda f: f[:, ::-1],
        3: lambda f: f[::-1, ::-1],
        4: lambda f: f[::-1],
        5: lambda f: f.transpose(1, 0, 2),
        6: lambda f: np.rot90(f, -1),
        7: lambda f: f.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda f: np.rot90(f, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(image.decode(stored(PICTURE, exif=exif))[0], turn(PICTURE))


def test_modes():
    grey = PICTURE.mean(2).astype(np.uint8)
    as_grey = np.repeat(grey[..., None], 3, 2)
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 77)
    for mode, expected, data in [
        ("L", as_grey, stored(grey)),
        ("I;16", as_grey, stored(deep)),
        ("1", np.full((48, 64, 3), 255), stored(Image.new("1", (64, 48), 1))),
        ("CMYK", PICTURE, stored(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=100, subsampling=0)),
        ("P", None, stored(Image.fromarray(PICTURE).quantize(200))),
    ]:
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.mode == mode
            expected = np.asarray(opened.convert("RGB")) if expected is None else expected
        assert np.abs(image.decode(data)[0].astype(int) - expected).max() <= 4, mode


def test_what_is_transparent_is_laid_over_black():
    alpha = np.full((48, 64, 1), 255, np.uint8)
    alpha[:, 32:48], alpha[:, 48:] = 128, 0
    expected = PICTURE * (alpha / 255)
    rgba = np.concatenate([PICTURE, alpha], 2)
    np.testing.assert_allclose(image.decode(stored(rgba))[0], expected, atol=1)
    np.testing.assert_allclose(image.decode(stored(rgba, "WEBP", lossless=True))[0], expected, atol=1)
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([9, 9, 9, 250, 100, 50])
    assert image.decode(stored(palette)).max() == 250
    assert image.decode(stored(palette, transparency=1)).max() == 0


def test_colour_profiles_are_applied():
    swapped = Image.fromarray(PICTURE)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.abs(image.decode(stored(swapped, icc_profile=srgb))[0].astype(int) - PICTURE).max() <= 1
    np.testing.assert_array_equal(image.decode(stored(swapped, icc_profile=lab))[0], PICTURE)  # of another kind
    for unreadable in (b"no profile", srgb[:200], bytes(4000)):
        np.testing.assert_array_equal(image.decode(stored(swapped, icc_profile=unreadable))[0], PICTURE)


@pytest.mark.parametrize("tags", [b"Exif\0\0words", b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff", b"Exif\0\0" + bytes(40)])
def test_tags_that_cannot_be_read_are_none(tags):
    np.testing.assert_array_equal(image.decode(stored(PICTURE, exif=tags))[0], PICTURE)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 32, bytes(32)])
@pytest.mark.parametrize("more", [[(12, 16)], [(96, 128)], [(12, 16), (24, 32), (48, 64)]])
def test_what_a_camera_adds_to_a_picture_is_not_the_picture(tmp_path, more, damage):
    """A preview, a second eye or a map of brightness (CIPA DC-007): one image, the first."""
    others = [Image.fromarray(PICTURE).resize(size[::-1]) for size in more]
    data = bytearray(stored(PICTURE, "MPO", save_all=True, append_images=others, quality=95))
    at = data.index(b"MPF\0") + 8
    data[at : at + len(damage)] = damage
    (tmp_path / "a.jpg").write_bytes(bytes(data) + b"and a film behind it, as telephones write")
    (clip,) = cut_into_clips(tmp_path / "a.jpg").kept
    assert (clip.media, clip.height, clip.width) == ("jpg", 48, 64)
    assert np.abs(image.decode(clip.data)[0].astype(int) - PICTURE).mean() < 2


def test_a_wide_gamut_comes_out_stronger():
    """A profile like sRGB but for its primaries, those of Display P3: reds are redder than sRGB's."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(profile[at : at + 4]): int.from_bytes(profile[at + 4 : at + 8]) for at in range(132, 132 + 12 * 20, 12)
    }
    wide = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for tag, xyz in wide.items():
        at = tags[tag] + 8
        profile[at : at + 12] = b"".join(round(v * 65536).to_bytes(4, signed=True) for v in xyz)
    colour = np.full((16, 16, 3), (200, 100, 100), np.uint8)
    red, green, blue = image.decode(stored(colour, icc_profile=bytes(profile)))[0, 8, 8].astype(int)
    assert red > 208
    assert 85 < green < 99
    assert 85 < blue < 99


def test_what_is_no_image_is_an_error(tmp_path):
    whole = stored(PICTURE, "JPEG", quality=95)
    film = [Image.fromarray(f) for f in calm(3, 32, 32)]
    animation = stored(film[0], "WEBP", save_all=True, append_images=film[1:])
    for data, reason in [
        (whole[: len(whole) // 2], "(?i)truncated"),
        (stored(PICTURE)[:-40], "(?i)truncated"),
        (whole[:3] + b"words " * 50, "not a picture that can be read"),
        (b"", "not a picture that can be read"),
        (b"words " * 50, "not a picture that can be read"),
        (animation, "animation of 3 frames"),
    ]:
        with pytest.raises(InputError, match=reason):
            image.decode(data)
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="whole JPEG"):
        cut_into_clips(tmp_path / "a.jpg")


def test_buckets_and_small_images(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(stored(PICTURE))
    (clip,) = cut_into_clips(path, CutOptions(sizes=((48, 48),))).kept
    assert (clip.media, clip.height, clip.width) == ("png", 48, 48)
    np.testing.assert_array_equal(image.decode(clip.data)[0], PICTURE[:, 8:56])
    (clip,) = cut_into_clips(path, CutOptions(short_side=24)).kept
    assert (clip.height, clip.width) == (24, 32)
    path.write_bytes(stored(PICTURE[:8]))
    assert cut_into_clips(path).rejected == ("8 x 64 pixels, smaller than 16",)


def test_moving_pictures_are_films(tmp_path):
    film = calm(12, 48, 64)
    path = write(tmp_path / "a.gif", film, "gif", "rgb8")
    assert image.suffix_of(path.read_bytes()) is None
    (clip,) = cut_into_clips(path).kept
    assert clip.media == "mp4"
    assert len(video.decode(clip.data)) == 12


def animated(form: str, delays, **options) -> bytes:
    pictures = [Image.fromarray(frame) for frame in stamped(len(delays))]
    return stored(pictures[0], form, save_all=True, append_images=pictures[1:], duration=delays, **options)


@pytest.mark.parametrize(
    ("form", "options"),
    [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("PNG", {"default_image": True})],
)
def test_animations_are_films_at_the_speed_of_browsers(tmp_path, form, options):
    """10 ms or less is shown for 100 ms; a still beside an animation of PNG is none of its frames."""
    first = int(bool(options.get("default_image")))
    delays = [50, 10, 50, 50, 0, 200, 40, 50, 50, 50, 50, 50][: 12 - first]
    if form == "GIF" or not first:
        data = animated(form, delays, **options)
    else:
        data = animated(form, [70] * 12, **options)
        delays = [70] * 11
    (tmp_path / "a.jpg").write_bytes(data)  # its content tells what it is
    found = video.probe(tmp_path / "a.jpg")
    seconds = (np.array(found.scan.pts) * float(found.time_base)).tolist()
    shown = [delay if delay > 10 else 100 for delay in delays]
    assert seconds == pytest.approx(np.cumsum([0, *shown[:-1]]) / 1000, abs=1e-3)
    assert stamps(video.decode(tmp_path / "a.jpg")) == list(range(first, 12))
    assert stamps(video.decode(data, 3, 9, 2)) == [first + row for row in (3, 5, 7)]
    (clip,) = cut_into_clips(tmp_path / "a.jpg").kept
    assert clip.media == "mp4"


@pytest.mark.parametrize("blend", [0, 1])
@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_pictures_of_an_animated_png_are_laid_over_each_other(disposal, blend):
    """Each is one square, of which the right half lets half of what is below through."""
    squares, colours = [], [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
    for number, colour in enumerate(colours):
        picture = np.zeros((40, 40, 4), np.uint8)
        picture[8 * number : 8 * number + 12, 4:20] = (*colour, 255)
        picture[8 * number : 8 * number + 12, 20:36] = (*colour, 128)
        squares.append(picture)
    squares[0][squares[0][..., 3] == 0] = (90, 90, 90, 255)
    squares[3][39] = squares[3][:, 39] = (1, 1, 1, 255)  # the last and the second fill all, so that none is cropped
    first, *rest = map(Image.fromarray, squares)
    data = stored(first, "PNG", save_all=True, append_images=rest, duration=50, disposal=disposal, blend=blend)

    canvas, wanted, state = np.zeros((40, 40, 4)), list[np.ndarray](), np.zeros((40, 40, 4))
    with Image.open(io.BytesIO(data)) as opened:
        for number, square in enumerate(squares):
            opened.seek(number)
            left, top, right, bottom = opened.dispose_extent
            inside = (slice(top, bottom), slice(left, right))
            state = canvas.copy()
            new, old = square[inside] / 255, canvas[inside]
            alpha = new[..., 3:] + old[..., 3:] * (1 - new[..., 3:])
            mixed = new[..., :3] * new[..., 3:] + old[..., :3] * old[..., 3:] * (1 - new[..., 3:])
            over = np.concatenate([mixed / np.maximum(alpha, 1e-9), alpha], -1)
            canvas[inside] = over if blend else new
            wanted.append(canvas[..., :3] * canvas[..., 3:] * 255)
            if disposal == 1 or (disposal == 2 and not number):
                canvas[inside] = 0
            elif disposal == 2:
                canvas = state
    found = video.decode(data).astype(float)
    assert np.abs(found - np.stack(wanted)).max() <= 3


def test_blocks_of_a_gif_may_end_anywhere(tmp_path):
    data = animated("GIF", [50] * 3)
    for end in range(len(data) - 1):
        gif.has_picture(data[:end])
        assert gif.end(io.BytesIO(data[:end]), end) >= end or data[end] == ord(";")
        assert why_cut(data[:end]) or end < 12 or data[: end + 1].endswith((b"\0;", b"\0\x21", b"\0\x2c"))


def test_an_animation_that_is_cut_is_rejected(tmp_path):
    for form in ("WEBP", "PNG", "GIF"):
        data = animated(form, [50] * 12)
        (tmp_path / "a.webp").write_bytes(data[: int(0.7 * len(data))])
        with pytest.raises(InputError, match=r"a\.webp|in memory"):
            cut_into_clips(tmp_path / "a.webp")


COMMENT, PROGRAM = b"\x21\xfe\x05words\x00", b"\x21\xff\x0bXMP DataXMP\x04abcd\x00"
CONTROL = b"\x21\xf9\x04\x00\x05\x00\x00\x00"


@pytest.mark.parametrize(
    "behind",
    [
        COMMENT + b";",
        PROGRAM + b";",
        CONTROL + b";",
        COMMENT + PROGRAM + COMMENT + b";",
        b"",
        b";" + bytes(300),
        b";,!",
    ],
)
def test_what_stands_behind_the_last_picture_of_a_gif_is_no_frame(tmp_path, behind):
    data = animated("GIF", [40] * 12)
    (tmp_path / "a.gif").write_bytes(data[:-1] + behind)
    found = video.probe(tmp_path / "a.gif")
    assert (found.frames, found.fps) == (12, 25)
    assert stamps(video.decode(tmp_path / "a.gif")) == list(range(12))


def test_questions_about_an_animation_are_about_its_frames(tmp_path):
    (tmp_path / "a.webp").write_bytes(animated("WEBP", [50] * 12, lossless=True))
    (tmp_path / "b.webp").write_bytes(stored(PICTURE, "WEBP", lossless=True))
    sampling = Sampling(Geometry(), frames=12)
    assert stamps(frames_of(tmp_path / "a.webp", sampling)) == list(range(12))
    assert len(frames_of(tmp_path / "b.webp", sampling)) == 1
