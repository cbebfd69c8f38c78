"""The commands `longreel data ...`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from launcher.cli.chat_data import chat
from launcher.cli.options import DATASET_HELP, Json, frame_size, with_options
from launcher.cli.synthetic import needles, questions, synth
from launcher.config.overrides import RunCommand
from launcher.core.terminal import Console
from parallel.errors import InputError

if TYPE_CHECKING:
    from data.planning.clip_sampling import Sampling

OTHER_NAMES = {  # what people type -> the command
    **dict.fromkeys(("talks", "conversations", "tokenize"), "chat"),
    **dict.fromkeys(("verify", "validate", "repair"), "check"),
    **dict.fromkeys(("view", "browse", "gallery"), "show"),
    **dict.fromkeys(("convert", "webdataset"), "import"),
}
MAKE, LOOK, CHECK, SYNTHETIC = "Make datasets", "Look at them", "Check them", "Make synthetic data"


class DataCommands(TyperGroup):
    """The commands; one of another name is refused with the name that it has here."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As of typer; raises InputError for a name of OTHER_NAMES."""
        meant = OTHER_NAMES.get(args[0]) if args else None
        if meant is not None:
            raise InputError("a command of longreel data must exist", args[0], f"did you mean longreel data {meant}?")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=DataCommands, help="Make, inspect, check and repair datasets.", no_args_is_help=True, rich_markup_mode="rich"
)
app.command(rich_help_panel=MAKE)(chat)


@app.command(cls=RunCommand, rich_help_panel=LOOK)
def stats(
    dataset: Annotated[Path, typer.Argument(help=DATASET_HELP)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="With --run: settings as key=value, such as data.frames=16.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run, a YAML file, whose codec and patch size turn clips into tokens.")
    ] = None,
    json_: Json = False,
) -> None:
    """Print statistics of a dataset: lengths, sizes, scores, sources, tokens. Reads only the index.

    Example: longreel data stats datasets/mine --run recipes/quickstart.yaml data.stride=2
    """
    from data.dataset.index import Index
    from data.statistics.stats import as_dict
    from data.statistics.stats import stats as figures
    from launcher.tables.stats_tables import render

    index = Index.open(dataset)
    sampling, words = _sampling(run, overrides or [])
    found = figures(index, sampling)
    if json_:
        print(json.dumps({"dataset": str(dataset), "tokens": words, **as_dict(found)}))
    else:
        Console().print(render(str(dataset), found, words), highlight=False)


@app.command(cls=RunCommand, rich_help_panel=LOOK)
def show(
    dataset: Annotated[Path, typer.Argument(help=DATASET_HELP)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="With --run: settings as key=value, such as data.frames=16.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file to write; DATASET/show.html if not given.")] = None,
    limit: Annotated[int, typer.Option(help="Maximum samples on the page, evenly spaced.")] = 50_000,
    run: Annotated[
        Path | None, typer.Option(help="Run, a YAML file, whose codec and patch size turn clips into tokens.")
    ] = None,
) -> None:
    """Write an HTML page of a dataset: frames, captions and scores to search, filter and sort.

    The page needs no network and no server: open it in a browser. Its URL may hold a filter:
    show.html#q=red&frames=16-64&sort=-motion

    Example: longreel data show datasets/mine
    """
    from launcher.reports.dataset_gallery import Tokens, write_gallery

    page = write_gallery(dataset, out, limit, Tokens(*_sampling(run, overrides or [])))
    console = Console()
    console.print(f"{page.path}", highlight=False, markup=False, soft_wrap=True)
    spread = f" of {page.samples:,}, evenly spread" if page.shown < page.samples else ""
    console.print(
        f"{page.shown:,} samples{spread}; open it in a browser", markup=False, highlight=False, soft_wrap=True
    )


def _sampling(run: Path | None, overrides: list[str]) -> tuple[Sampling, str]:
    """How clips become tokens, and in words: as in a run, or as in the usual codecs."""
    from data.planning.clip_sampling import Sampling
    from parallel.sequence.geometry import Geometry

    if run is None:
        if overrides:
            raise InputError("settings are those of a run", overrides[0], "name it too: --run RUN.yaml")
        geometry = Geometry(channels=16, stride=(4, 8, 8), patch=(1, 2, 2), causal=True)
        return Sampling(geometry), "codec 4 x 8 x 8, patch 1 x 2 x 2 (yours: --run RUN.yaml)"
    from launcher.batches.datasets import geometry_of, with_own_codec
    from launcher.config.loading import load

    config = with_own_codec(load(run, overrides))
    data = config.data.merged()[0]
    sampling = Sampling(geometry_of(config), data.frames, data.size, data.stride)
    sampling.check()
    size = f"size {data.size[0]} x {data.size[1]}" if data.size else "sizes as stored"
    return sampling, f"as in {run}: {size}, stride {data.stride}"


@app.command(rich_help_panel=CHECK)
def check(
    dataset: Annotated[Path, typer.Argument(help=DATASET_HELP)],
    repair: Annotated[bool, typer.Option("--repair", help="Repair what its own bytes allow; drop the rest.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Check sizes and structure only, no hashes.")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every sample too.")] = False,
    json_: Json = False,
) -> None:
    """Verify every byte of a dataset; print what is damaged. Exit code 1 if anything is.

    With --repair, shards, index and records are rebuilt from each other where that is possible; lost samples are listed
    in quarantine/ and dropped from a new generation of the dataset. Runs that have begun keep their generation.

    Example: longreel data check datasets/mine --repair
    """
    from time import monotonic

    from data.integrity.check import CheckProgress
    from data.integrity.check import check as look
    from data.integrity.repair import repair as run_repair
    from launcher.core.progress_bar import Bar
    from launcher.tables.check_tables import as_json, closing_line, findings_table, long_captions, plain, repaired_table

    if quick and (repair or decode):
        other = "--repair" if repair else "--decode"
        raise InputError("a quick check reads no samples", f"--quick {other}", "leave out --quick")
    console, began, seen = Console(stderr=json_), monotonic(), [0, 0]

    def show(progress: CheckProgress) -> None:
        seen[:] = [seen[0] + 1, progress.total]
        note = f"{progress.findings:,} findings" if progress.findings else ""
        bar.update(progress.done >> 20, progress.total >> 20, note)

    with Bar(console, "MiB") as bar:
        repaired = run_repair(dataset, decode, None, show) if repair else None
        findings = repaired.findings if repaired else look(dataset, not quick, decode, None, show)
    seconds = monotonic() - began
    left = look(dataset, True, decode) if repaired and findings else findings
    if json_:
        print(as_json(findings, repaired, left))
        raise typer.Exit(1 if left else 0)
    if findings:
        console.print(*findings_table(findings), sep="\n", highlight=False)
    if repaired and findings:
        console.print(*repaired_table(dataset, repaired), sep="\n", highlight=False)
    line = closing_line(dataset, seen[0], seen[1], seconds, not quick, not left)
    console.print(line, highlight=False, soft_wrap=True)
    if note := long_captions(dataset):
        console.print(plain(note), highlight=False, soft_wrap=True)
    raise typer.Exit(1 if left else 0)


@app.command("import", rich_help_panel=MAKE)
def import_(
    sources: Annotated[
        list[str], typer.Argument(help="Tars, folders of tars, or patterns such as 'shards/{000..123}.tar'.")
    ],
    out: Annotated[Path, typer.Option(help="Dataset folder to write; run again with more tars to add them.")],
    allow_missing_captions: Annotated[bool, typer.Option(help="Keep videos and images without a caption.")] = False,
    workers: Annotated[int | None, typer.Option(help="Worker processes; chosen by the work if not given.")] = None,
    json_: Json = False,
) -> None:
    """Import WebDataset tars of others as a dataset. The tars stay as they are: linked, not unpacked.

    Reads videos, images and text with captions in .txt, .json or .cls. A bad sample is reported and skipped, never
    fatal. Finished tars are skipped.

    Example: longreel data import 'webvid/{000000..000999}.tar' --out datasets/webvid
    """
    from data.prepare.import_webdataset import ImportOptions, ImportProgress, import_tars
    from launcher.core.progress_bar import Bar
    from launcher.tables.import_tables import as_json, print_summary

    console = Console(stderr=json_)
    with Bar(console, "MiB") as bar:

        def show(progress: ImportProgress) -> None:
            bar.update(progress.done >> 20, progress.total >> 20, f"{progress.kept:,} samples  {progress.tar}")

        summary = import_tars(sources, out, ImportOptions(allow_missing_captions, workers), show)
    print(as_json(summary)) if json_ else print_summary(console, summary, out)


@app.command(rich_help_panel=CHECK)
def audit(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    step: Annotated[int | None, typer.Option(help="Print the samples of this step instead.")] = None,
    json_: Json = False,
) -> None:
    """Prove that a run read every sample of each epoch exactly once, in the planned order.

    Exit code 1 if a sample was lost, read twice, or read out of plan.

    Example: longreel data audit runs/quickstart --step 12
    """
    from launcher.analysis.data_audit import audit as run_audit
    from launcher.analysis.data_audit import step_of
    from launcher.core.progress_bar import Bar
    from launcher.tables.audit_tables import as_json, found_table, step_table

    console = Console(stderr=json_)
    if step is not None:
        seen = step_of(run, step)
        print(json.dumps([asdict(s) for s in seen])) if json_ else console.print(step_table(step, seen))
        return
    with Bar(console, "steps") as bar:
        found = run_audit(run, lambda done, total: bar.update(done, total, ""))
    print(as_json(found)) if json_ else console.print(*found_table(found), sep="\n")
    raise typer.Exit(0 if found.clean else 1)


@dataclass(frozen=True)
class CountOptions:
    """Ranks and packs that are asked for in place of the run's."""

    ranks: Annotated[int | None, typer.Option(min=1, help="Total ranks; the run's own, or 64.")] = None
    sequence: Annotated[
        int | None, typer.Option(min=1, help="Ranks per sequence (ring x ulysses); the run's own, or 8.")
    ] = None
    packs: Annotated[int | None, typer.Option(min=1, help="Packs per replica and step; the run's own, or 4.")] = None


@dataclass(frozen=True)
class SyntheticOptions:
    """Samples and a model to count with where no run is given."""

    samples: Annotated[int, typer.Option(min=1, help="Synthetic samples, of log-normal lengths.")] = 10_000_000
    mean: Annotated[float, typer.Option(min=1, help="Mean tokens of a synthetic sample.")] = 8192
    sigma: Annotated[float, typer.Option(min=0, help="Standard deviation of the logarithm of their lengths.")] = 1.0
    pack_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a packed sequence.")] = 262_144
    dim: Annotated[int, typer.Option(min=1, help="Model width, for the cost of attention against all else.")] = 3072


@app.command(cls=RunCommand, rich_help_panel=LOOK)
@with_options
def simulate(
    run: Annotated[
        Path | None, typer.Argument(help="Run, a YAML file, whose dataset and model count; or give --samples.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value, as for longreel train.")] = None,
    asked: CountOptions = CountOptions(),
    synthetic: SyntheticOptions = SyntheticOptions(),
    json_: Json = False,
) -> None:
    """Simulate how an epoch packs and balances on many ranks, without a GPU and without reading a clip.

    Example: longreel data simulate --ranks 4096 --samples 10000000 --pack-tokens 1048576
    """
    from launcher.analysis.packing_simulation import RankCounts, idle_in, simulated, table_of
    from launcher.core.progress_bar import Bar

    console = Console(stderr=json_)
    with Bar(console, "windows") as bar:
        counts = RankCounts(asked.ranks, asked.sequence, asked.packs)
        found = simulated(run, overrides or [], counts, astuple(synthetic), lambda d, t: bar.update(d, t, ""))
    for note in idle_in(found):
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    print(json.dumps(found)) if json_ else console.print(table_of(found))


@dataclass(frozen=True)
class EncodeArguments:
    """What is encoded of each clip, and how it is computed."""

    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH to scale and crop to; the stored size if not given.")
    ] = None
    frames: Annotated[int | None, typer.Option(help="Maximum frames per clip, from its first.")] = None
    dtype: Annotated[str, typer.Option(help="Type of computation and storage: float32 or bf16.")] = "float32"
    device: Annotated[str | None, typer.Option(help="Device: cpu, cuda, cuda:1 ...; a GPU if there is one.")] = None
    tiling: Annotated[bool, typer.Option(help="Encode in tiles: less memory, slightly different values.")] = False


@app.command(rich_help_panel=MAKE)
@with_options
def encode(
    dataset: Annotated[Path, typer.Argument(help=DATASET_HELP)],
    codec: Annotated[Path, typer.Option(help="Autoencoder folder, as diffusers saves it (often MODEL/vae).")],
    out: Annotated[Path, typer.Option(help="Latent dataset folder to write; run again to continue.")],
    what: EncodeArguments = EncodeArguments(),
    part: Annotated[str, typer.Option(help="i/n: encode only the i-th of n parts of the shards.")] = "1/1",
    json_: Json = False,
) -> None:
    """Encode every clip into latents (mean and log-variance) once, so that training need not.

    Finished shards are skipped. Several processes may share the work: run the same command on each GPU, or give each a
    --part; the last one to finish publishes the dataset.

    Example: longreel data encode datasets/mine --codec models/wan/vae --out datasets/mine-wan --dtype bf16
    """
    from data.prepare.encode_stage import EncodeOptions, EncodeProgress
    from data.prepare.encode_stage import encode as run
    from launcher.batches.dataset_codec import note
    from launcher.core.progress_bar import Bar
    from launcher.generation.latent_encoding import open_encoder, part_of, tables

    pixels = None if what.size is None else frame_size(what.size, dataset)
    options = EncodeOptions(pixels, what.frames, *part_of(part))
    encoder = open_encoder(codec, what.dtype, what.device, what.tiling)
    console = Console(stderr=json_)
    with Bar(console, "clips") as bar:

        def show(progress: EncodeProgress) -> None:
            bar.update(progress.done, progress.total, progress.shard)

        summary = run(dataset, out, encoder, options, show)
    note(out, codec, encoder.identity, what.tiling)
    if json_:
        print(json.dumps({**asdict(summary), "rejected": [one.as_json() for one in summary.rejected]}))
        return
    for said in tables(summary, out, codec):
        console.print(said, highlight=False, markup=False, soft_wrap=isinstance(said, str))


for command in (synth, questions, needles):
    app.command(rich_help_panel=SYNTHETIC)(command)
