"""The commands `longreel data ...`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from parallel.errors import InputError

if TYPE_CHECKING:
    from data.sampling import Sampling

app = typer.Typer(help="Datasets: make, look into, check and repair them.", no_args_is_help=True)


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    clips: Annotated[int, typer.Option(help="How many clips.")] = 256,
    seed: Annotated[int, typer.Option(help="Of everything random: the same seed gives the same bytes.")] = 0,
    frames: Annotated[int, typer.Option(help="Of each clip.")] = 8,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 32,
) -> None:
    """Make captioned H.264 clips of moving coloured shapes ("a red square moving right").

    Example: longreel data synth --out clips --clips 256 --seed 0
    """
    from data.synth import synth as run
    from launcher.bars import Bar

    console = Console()
    with Bar(console, "clips") as bar:
        run(out, clips, seed, frames, size, lambda done, total: bar.update(done, total, ""))
    console.print(f"{clips} clips with captions.json in {out}", highlight=False, soft_wrap=True)
    console.print(f"next: longreel prepare {out} --out DATASET", highlight=False, soft_wrap=True)


@app.command()
def stats(
    dataset: Annotated[Path, typer.Argument(help="A folder that longreel prepare or import wrote.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="With --run: key=value, such as data.frames=16")] = None,
    run: Annotated[Path | None, typer.Option(help="A run, whose codec and patches make the tokens.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of tables.")] = False,
) -> None:
    """Tell what is in a dataset: lengths, sizes, scores, sources, tokens. Reads the index alone.

    Example: longreel data stats datasets/mine --run recipes/quickstart.yaml data.stride=2
    """
    from data.index import Index
    from data.stats import as_dict
    from data.stats import stats as figures
    from launcher.stats_tables import render

    index = Index.open(dataset)
    sampling, words = _sampling(run, overrides or [])
    found = figures(index, sampling)
    if json_:
        print(json.dumps({"dataset": str(dataset), "tokens": words, **as_dict(found)}))
    else:
        Console().print(render(str(dataset), found, words), highlight=False)


@app.command()
def show(
    dataset: Annotated[Path, typer.Argument(help="A folder that longreel prepare or import wrote.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="With --run: key=value, such as data.frames=16")] = None,
    out: Annotated[Path | None, typer.Option(help="The page; DATASET/show.html if not given.")] = None,
    limit: Annotated[int, typer.Option(help="Samples on the page; of more, as many are taken evenly.")] = 50_000,
    run: Annotated[Path | None, typer.Option(help="A run, whose codec and patches make the tokens.")] = None,
) -> None:
    """Write one HTML page to look through a dataset: frames, captions, scores, to search, filter and sort.

    It needs no network and no server: open it in a browser. A hash filters: show.html#q=red&frames=16-64&sort=-motion

    Example: longreel data show datasets/mine
    """
    from launcher.gallery import Tokens, write_gallery

    page = write_gallery(dataset, out, limit, Tokens(*_sampling(run, overrides or [])))
    console = Console()
    console.print(f"{page.path}", highlight=False, markup=False, soft_wrap=True)
    thinned = f" of {page.samples:,}, evenly spread" if page.shown < page.samples else ""
    console.print(f"{page.shown:,} samples{thinned}; open it in a browser", highlight=False, soft_wrap=True)


def _sampling(run: Path | None, overrides: list[str]) -> tuple[Sampling, str]:
    """How clips become tokens, and in words: as in a run, or as in the usual codecs."""
    from data.sampling import Sampling
    from parallel.geometry import Geometry

    if run is None:
        if overrides:
            raise InputError("settings are those of a run", overrides[0], "name it too: --run RUN.yaml")
        geometry = Geometry(channels=16, stride=(4, 8, 8), patch=(1, 2, 2), causal=True)
        return Sampling(geometry), "codec 4 x 8 x 8, patch 1 x 2 x 2 (yours: --run RUN.yaml)"
    from launcher.config import load
    from models.latents import open_codec

    config = load(run, overrides)
    data = config.data.merged()[0]
    sampling = Sampling(open_codec(config.codec, config.model.patch).geometry, data.frames, data.size, data.stride)
    sampling.check()
    size = f"size {data.size[0]} x {data.size[1]}" if data.size else "sizes as stored"
    return sampling, f"as in {run}: {size}, stride {data.stride}"


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    step: Annotated[int | None, typer.Option(help="Show what this step saw, sample by sample.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Prove that a run saw every sample of each epoch once, and each step what its plan says.

    Exit code 1 if anything was lost, seen twice, or is not what was planned.

    Example: longreel data audit runs/quickstart --step 12
    """
    from launcher.audit import audit as run_audit
    from launcher.audit import step_of
    from launcher.audit_tables import as_json, found_table, step_table
    from launcher.bars import Bar

    console = Console(stderr=json_)
    if step is not None:
        seen = step_of(run, step)
        print(json.dumps([asdict(s) for s in seen])) if json_ else console.print(step_table(step, seen))
        return
    with Bar(console, "steps") as bar:
        found = run_audit(run, lambda done, total: bar.update(done, total, ""))
    print(as_json(found)) if json_ else console.print(*found_table(found), sep="\n")
    raise typer.Exit(0 if found.clean else 1)


@app.command()
def simulate(
    run: Annotated[Path | None, typer.Argument(help="A run, whose dataset and model count; or give --samples.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as for longreel train")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="In all.")] = 64,
    sequence: Annotated[int, typer.Option(min=1, help="Ranks that share one sequence (ring x ulysses).")] = 8,
    packs: Annotated[int, typer.Option(min=1, help="Packs of each replica in a step.")] = 4,
    samples: Annotated[int, typer.Option(min=1, help="Synthetic ones, of log-normal lengths.")] = 10_000_000,
    mean: Annotated[float, typer.Option(min=1, help="Tokens of a synthetic sample.")] = 8192,
    sigma: Annotated[float, typer.Option(min=0, help="Spread of the logarithm of their lengths.")] = 1.0,
    pack_tokens: Annotated[int, typer.Option(min=1, help="Of a packed sequence.")] = 262_144,
    dim: Annotated[int, typer.Option(min=1, help="Of the model: attention against all else in the cost.")] = 3072,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Show how an epoch packs and balances on many ranks, with no GPU and without reading a clip.

    Example: longreel data simulate --ranks 4096 --samples 10000000 --pack-tokens 1048576
    """
    from launcher.bars import Bar
    from launcher.simulating import simulated, table_of

    if ranks % sequence:
        raise InputError(
            "ranks are replicas of --sequence ranks each", f"{ranks} ranks, {sequence} each", f"--sequence {ranks}"
        )
    synthetic = (samples, mean, sigma, pack_tokens, dim)
    console = Console(stderr=json_)
    with Bar(console, "windows") as bar:
        found = simulated(
            run, overrides or [], ranks // sequence, sequence, packs, synthetic, lambda d, t: bar.update(d, t, "")
        )
    print(json.dumps(found)) if json_ else console.print(table_of(found))
