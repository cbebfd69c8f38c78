"""Training on stored latents: the values are those of frames encoded on the fly, bit for bit, however they are cut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from data.dataset.index import Index
from data.planning.clip_sampling import Sampling
from data.planning.data_plan import Cursor
from data.prepare.encode_stage import EncodeOptions, encode
from data.prepare.pipeline import PrepareOptions, prepare
from data.streams.clip_source import ClipSource
from data.streams.pack_stream import Pack, PackStream
from data.streams.shard_reader import ShardReader
from data.synthetic.shapes import synth
from launcher.batches.loader import BatchLoader
from launcher.cli.app import app
from launcher.generation.latent_encoding import open_encoder
from launcher.training.loop import build_loader
from launcher.training.rendezvous import RankPlace
from models.codecs.diffusers_vae import identity_of
from models.layers.patches import patchify
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry
from parallel.sequence.packed import Ranges
from parallel.sequence.sharding import contiguous, zigzag
from tests.support.encoders import Means
from tests.support.runs import MODEL, config, train

PER_FRAME, CAUSAL = "kl", "wan"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """6 clips of 9 frames of 16 x 16, in 2 shards."""
    folder = tmp_path_factory.mktemp("source")
    synth(folder / "in", 6, seed=0, frames=9, size=16)
    prepare(folder / "in", folder / "out", PrepareOptions(workers=0, shard_files=3))
    return folder / "out"


@pytest.fixture(scope="module")
def vaes(tmp_path_factory) -> dict[str, Path]:
    """Tiny random autoencoders, saved as `diffusers` saves them."""
    import diffusers

    torch.manual_seed(0)
    made = {
        PER_FRAME: diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8), latent_channels=4, norm_num_groups=2, scaling_factor=0.5, shift_factor=0.1,
        ),
        CAUSAL: diffusers.AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
            latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 0.5, 1.5],
        ),
    }  # fmt: skip
    root = tmp_path_factory.mktemp("vaes")
    for name, vae in made.items():
        vae.save_pretrained(root / name)
    return {name: root / name for name in made}


@pytest.fixture(scope="module")
def encoded(source, vaes, tmp_path_factory) -> dict[str, Path]:
    """The latents of each, and of bf16."""
    root = tmp_path_factory.mktemp("encoded")
    for name, folder in vaes.items():
        encode(source, root / name, open_encoder(folder, device="cpu"))
    encode(source, root / "bf16", open_encoder(vaes[CAUSAL], "bf16", "cpu"))
    return {name: root / name for name in (*vaes, "bf16")}


def loader_of(dataset: Path, vae: Path | None, patch: tuple[int, ...] = (1, 2, 2), **changes) -> BatchLoader:
    codec = {"kind": "diffusers", "path": str(vae)} if vae else {"kind": "pixel"}
    data = {"dataset": str(dataset), "pack_tokens": 4000, "frames": None, "size": None, **changes.pop("data", {})}
    settings = config(
        Path("unused"), dataset, **{"dtype": "float32", "codec": codec, "model": {**MODEL, "patch": patch}, **changes}
    )
    settings = settings.model_copy(update={"data": type(settings.data).model_validate(data)})
    return build_loader(settings, RankPlace(0, 1, 0, 1, ""), torch.device("cpu"))


def stream_of(loader: BatchLoader) -> PackStream[ClipSource]:
    return loader.curriculum.streams[0]


def source_of(loader: BatchLoader) -> ClipSource:
    return stream_of(loader).source


def values(loader: BatchLoader, pack: Pack, ranges: Ranges) -> torch.Tensor:
    """As the loader lays them out."""
    pieces = source_of(loader).read(pack, ranges)
    return torch.cat([loader.builder.values(0), *(loader.builder._values(pack, piece) for piece in pieces)])


@pytest.mark.parametrize("patch", [(1, 2, 2), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("name", [PER_FRAME, CAUSAL])
def test_whole_clips_are_those_on_the_fly_on_every_cut(source, vaes, encoded, name, patch):
    now = loader_of(source, vaes[name], patch=patch)
    stored = loader_of(encoded[name], vaes[name], patch=patch)
    assert source_of(stored).lengths.tolist() == source_of(now).lengths.tolist()
    (pack,), _ = stream_of(stored).packs(Cursor(), 1)
    (twin,), _ = stream_of(now).packs(Cursor(), 1)
    seen, wanted = source_of(stored).clips(pack), source_of(now).clips(twin)
    assert [(clip.row, clip.start) for clip in seen] == [(clip.row, clip.start) for clip in wanted]
    whole = values(now, twin, ((0, twin.tokens),))
    assert whole.std() > 0.05
    for ranks in (1, 2, 5):
        for split in (contiguous(pack.tokens, ranks), zigzag(pack.tokens, ranks)):
            for ranges in split.ranges:
                expected = torch.cat([whole[:0], *(whole[a:b] for a, b in ranges)])
                assert torch.equal(values(stored, pack, ranges), expected)


def test_bf16_latents_are_those_of_a_bf16_run(source, vaes, encoded):
    now = loader_of(source, vaes[CAUSAL], dtype="bf16")
    stored = loader_of(encoded["bf16"], vaes[CAUSAL], dtype="bf16")
    (pack,), _ = stream_of(stored).packs(Cursor(), 1)
    (twin,), _ = stream_of(now).packs(Cursor(), 1)
    whole = values(now, twin, ((0, twin.tokens),))
    assert whole.dtype == torch.bfloat16
    assert torch.equal(values(stored, pack, ((0, pack.tokens),)), whole)
    half = [Index.open(encoded[name]).part(0).size for name in ("bf16", CAUSAL)]
    assert half[0] - 128 == (half[1] - 128) // 2


def test_windows_in_time(source, vaes, encoded):
    """A per-frame codec's start anywhere, a causal one's where the clip does."""
    for name, few in ((PER_FRAME, 4), (CAUSAL, 5)):
        now = loader_of(source, vaes[name])
        stored = loader_of(encoded[name], vaes[name], data={"frames": few})
        packs, _ = stream_of(stored).packs(Cursor(), 12)
        starts = {clip.start for pack in packs for clip in source_of(stored).clips(pack)}
        assert starts == ({0} if name == CAUSAL else starts | {1, 5})
        assert max(starts) <= 9 - few
        for pack in packs[:2]:
            whole = values(stored, pack, ((0, pack.tokens),)).split([d.tokens for d in pack.documents])
            for clip, found in zip(source_of(stored).clips(pack), whole, strict=True):
                frames = source_of(now).reader.shard_reader.frames(clip.row, clip.start, clip.start + few)
                latents = now.builder.codec.encode(torch.from_numpy(frames))
                # not bit for bit: convolutions of other numbers of frames are summed in another order on some CPUs
                torch.testing.assert_close(found, patchify(latents, (1, 2, 2)), rtol=1e-5, atol=1e-5)


def test_cells_that_fill_no_token_are_cut_off_evenly(source, vaes, encoded):
    now, stored = (loader_of(dataset, vaes[PER_FRAME], patch=(1, 3, 2)) for dataset in (source, encoded[PER_FRAME]))
    (pack,), _ = stream_of(stored).packs(Cursor(), 1)
    assert {document.grid for document in pack.documents} == {(9, 2, 4)}
    whole = values(stored, pack, ((0, pack.tokens),)).split([d.tokens for d in pack.documents])
    frames = ShardReader(source_of(now).index, Sampling(Geometry())).frames(pack.rows[0], 0, 9)
    latents = now.builder.codec.encode(torch.from_numpy(frames))[:, :, 1:7]
    assert torch.equal(whole[0], patchify(latents, (1, 3, 2)))


def test_a_rank_reads_only_its_latents_and_checks_them(vaes, encoded, tmp_path):
    stream = stream_of(loader_of(encoded[PER_FRAME], vaes[PER_FRAME]))
    (pack,), _ = stream.packs(Cursor(), 1)
    stored, shards = stream.source, stream.source.reader.shard_reader
    index, each = stored.index, 4 * 8 * 8 * 4
    tokens = pack.documents[0].tokens // 9  # of a frame
    assert stored.bytes_of(pack, ((0, pack.documents[0].tokens),)) == 128 + 9 * each
    assert index.part(pack.rows[0]).size == 128 + 18 * each
    before = shards.bytes_read
    (piece,) = stored.read(pack, ((2 * tokens, 4 * tokens),))
    assert shards.bytes_read - before == stored.bytes_of(pack, ((2 * tokens, 4 * tokens),)) == 128 + 2 * each
    assert (piece.first_frame, piece.latents.shape, piece.frames) == (2, (2, 4, 8, 8), None)

    ill = Path(shutil.copytree(encoded[PER_FRAME], tmp_path / "ill"))
    loader = loader_of(ill, vaes[PER_FRAME])
    found = source_of(loader)
    part, shard = found.index.part(pack.rows[0]), found.index.shard(pack.rows[0])
    data = bytearray(shard.read_bytes())
    data[part.offset + 128 + 5 * each] ^= 1
    shard.write_bytes(data)
    assert found.read(pack, ((0, 5 * tokens),))
    with pytest.raises(InputError, match=f"sample {pack.documents[0].uid}, part npy: bytes .*BLAKE3"):
        found.read(pack, ((4 * tokens, 6 * tokens),))
    told = []
    (piece,) = found.read(pack, ((4 * tokens, 6 * tokens),), lambda document, error: told.append(document))
    assert told == [0]
    assert not piece.latents.any()
    assert loader.builder._values(pack, piece).shape == (2 * tokens, 16)


def test_latents_and_frames_may_be_mixed(source, vaes, encoded):
    mix = {"dataset": {str(source): 1, str(encoded[CAUSAL]): 1}}
    stream = stream_of(loader_of(source, vaes[CAUSAL], data=mix))
    assert stream.source.reader.latents.tolist() == [False] * 6 + [True] * 6
    packs, _ = stream.packs(Cursor(), 1)
    pieces = stream.source.read(packs[0], ((0, packs[0].tokens),))
    kinds = {
        (piece.frames is None, bool(stream.source.reader.latents[packs[0].rows[piece.document]])) for piece in pieces
    }
    assert kinds == {(True, True), (False, False)}


def test_what_does_not_fit_the_latents_is_refused(source, vaes, encoded, monkeypatch, tmp_path):
    def refused(words, dataset=CAUSAL, vae=CAUSAL, **changes):
        with pytest.raises(InputError, match=words) as error:
            loader_of(encoded[dataset], vaes.get(vae), **changes)
        return error.value.remedy

    assert "codec.path=FOLDER" in refused(
        "made by AutoencoderKLWan [0-9a-f]{32}, the run has AutoencoderKL ", vae=PER_FRAME
    )
    refused("the run has the pixel codec", vae="", patch=(1, 4, 4))
    refused(r"stride 1\n.*data.stride=2", data={"stride": 2})
    assert "--size 32x32" in refused(r"6 clips in .* do not, one is 16 x 16", data={"size": [32, 32]})
    assert source_of(loader_of(encoded[CAUSAL], vaes[CAUSAL], data={"size": [16, 16]})).lengths.min() > 0
    other = tmp_path / "vae"
    shutil.copytree(vaes[CAUSAL], other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "_diffusers_version": "0"}))
    assert identity_of(other) == identity_of(vaes[CAUSAL])
    (other / "config.json").write_text(json.dumps({**settings, "latents_std": [1.0] * 4}))
    assert identity_of(other) != identity_of(vaes[CAUSAL])
    monkeypatch.setattr("models.codecs.diffusers_vae.NORMED_OVER_TIME", ("AutoencoderKLWan",))
    assert "--frames 5" in refused("norms over time.*\n.*data.frames=5, the longest has 9", data={"frames": 5})
    assert loader_of(encoded[CAUSAL], vaes[CAUSAL], data={"frames": 9})


def test_latents_of_another_shape_are_no_values(source, tmp_path, vaes):
    """Should a commit lie: what is read is compared with what the codec gives."""
    liar = Means(stride=(4, 8, 8), identity=identity_of(vaes[CAUSAL]))
    encode(source, tmp_path / "out", liar, EncodeOptions())
    loader = loader_of(tmp_path / "out", vaes[CAUSAL])
    (pack,), _ = stream_of(loader).packs(Cursor(), 1)
    with pytest.raises(InputError, match=r"latents \[3, 2, 2\], this codec gives \[4, 2, 2\]"):
        source_of(loader).read(pack, ((0, pack.tokens),))


def test_the_command(source, vaes, encoded, tmp_path):
    def called(*more: str):
        line = ["data", "encode", str(source), "--codec", str(vaes[PER_FRAME]), "--out", str(tmp_path / "out"), *more]
        return CliRunner().invoke(app, line)

    done = called("--part", "1/2", "--device", "cpu")
    assert (done.exit_code, "1 shards are still to do" in done.output) == (0, True)
    done = called("--part", "2/2", "--json")
    said = json.loads(done.output)
    assert (said["clips"], said["frames"], said["generation"], said["rejected"]) == (3, 27, 1, [])
    assert Index.open(tmp_path / "out").digest == Index.open(encoded[PER_FRAME]).digest
    for words, more in (
        ("i/n", ("--part", "3")),
        ("float32 or bf16", ("--dtype", "fp8")),
        ("torch has", ("--device", "q")),
    ):
        assert words in str(called(*more).exception)


@pytest.mark.slow
def test_a_run_on_latents(vaes, encoded, tmp_path):
    codec = {"kind": "diffusers", "path": str(vaes[CAUSAL])}
    settings = config(
        tmp_path, encoded[CAUSAL], mesh={"ring": 2}, codec=codec, model={**MODEL, "patch": [1, 2, 2]}, steps=3
    )
    data = settings.data.model_copy(update={"frames": None, "size": None})
    lines = train(settings.model_copy(update={"data": data}))
    assert len(lines) == 3
    assert all(np.isfinite(line["loss"]) for line in lines)
