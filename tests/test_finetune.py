"""Fine-tuning on a user's own data: adapters, reports, exports; several processes, killed ones and sharded ones."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_data import BAD, bad, square  # noqa: F401
from test_data import line as line_of
from test_training import RECOMPUTED, fresh, processor, released_processor, samples, squares, two_processes  # noqa: F401
from tiny import IMAGE, random_request

import gar
from gar.cli import main
from gar.data.annotated import Annotation, annotated
from gar.data.folder import write_jsonl
from gar.data.formats import open_data, open_together
from gar.data.published import write_coco
from gar.data.sample import Sample, Turn, Unusable, write_shard
from gar.data.stream import Data, Rejects, Shard
from gar.inputs.processor import GARProcessor
from gar.model.released import save_released
from gar.train import finetune, recipes
from gar.train.feed import Packer
from gar.train.objective import part_of
from gar.train.recipes import Stage
from gar.train.trainer import train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(processor, tmp_path_factory) -> Path:  # noqa: F811
    """A random model with nano's shape in our layout (`model`), and 12 records of one's own (`data`)."""
    folder = tmp_path_factory.mktemp("own")
    fresh(processor).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    write_jsonl([squares(seed) for seed in range(12)], folder / "data" / "squares.jsonl")
    return folder


def line(folder: Path, out: Path, *more: str) -> list[str]:
    arguments = ["train", "finetune", "--model", folder / "model", "--out", out]
    arguments += [] if "--data" in more else ["--data", folder / "data"]
    return [*map(str, arguments), "--held-out", "0.25", "--workers", "0", *more]


def test_an_adapter_names_its_base_so_that_it_is_found_from_everywhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(line(folder, tmp_path / "run", "--lora", "--model", "model", "--epochs", "0.1", "--device", "cpu")) == 0
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((folder / "model").resolve())


@pytest.mark.parametrize("released", [False, True])
def test_an_export_has_the_dtype_of_its_source(released_processor, tmp_path, released):  # noqa: F811
    config = deepcopy(released_processor.config)  # saving notes the dtype in it
    own = GARProcessor(config, released_processor.tokenizer)
    fresh(own).bfloat16().save_pretrained(tmp_path / "base")
    own.save_pretrained(tmp_path / "base")
    finetune.export(str(tmp_path / "base"), tmp_path / "out", released)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    assert {value.dtype for value in theirs.values()} == {torch.bfloat16} and len(theirs) == len(ours)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_one_command_trains_an_adapter_that_loads_like_a_model(folder, processor, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "run"
    assert main(line(folder, out, "--lora", "--epochs", "4", "--rate", "0.003")) == 0
    said = capsys.readouterr()
    assert "memory of one process" in said.err and "activations" in said.err
    assert said.out.splitlines()[0].startswith("before  loss")
    report = json.loads((out / "report.json").read_text())
    assert report["before"]["answers"] == report["after"]["answers"] > 0
    assert report["after"]["loss"] < report["before"]["loss"]
    weights = load_file(out / "adapter_model.safetensors")
    layers = processor.config.text_config.num_hidden_layers
    assert len(weights) == layers * 7 * 2 and {w.shape[0] for n, w in weights.items() if "lora_A" in n} == {16}

    assert main(line(folder, out, "--recipe", "finetune")) == 2
    assert "holds a run with recipe lora, not finetune: name another --out" in capsys.readouterr().err
    assert main(line(folder, out, "--lora", "--epochs", "4", "--rate", "0.004")) == 2
    assert "holds a run with rate 0.003, not 0.004: name another --out" in capsys.readouterr().err
    assert not list(out.glob("*.tmp"))

    adapted, base = gar.load(out, device="cpu"), gar.load(folder / "model", device="cpu")
    assert not any("lora" in name for name, _ in adapted.model.named_parameters())
    stage = recipes.lora(9)[0]
    _, held_out = finetune.split(open_data(folder / "data"), 0.25, 0)
    packs = finetune.packs_of(held_out, processor, stage, 0)
    merged = finetune.measure(finetune.Objective(adapted.model, stage), packs)
    assert merged["loss"] == pytest.approx(report["after"]["loss"], abs=2e-4)
    same = [torch.equal(a, b) for a, b in zip(adapted.model.parameters(), base.model.parameters(), strict=True)]
    assert 0 < same.count(False) == len(weights) // 2  # every adapted layer, and no other

    assert main(["train", "export", str(out), "--out", str(tmp_path / "ours")]) == 0
    exported = gar.load(tmp_path / "ours", device="cpu").model.state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in adapted.model.state_dict().items())
    assert main(["train", "export", str(out), "--out", str(tmp_path / "theirs"), "--released"]) == 2
    assert "the released layout cannot express" in capsys.readouterr().err


def test_an_adapter_of_a_released_checkpoint_is_exported_in_the_released_layout(released_processor, tmp_path):  # noqa: F811
    base = str(tmp_path / "base")
    save_released(fresh(released_processor), base)
    released_processor.save_pretrained(base)
    stage = finetune.adapting(recipes.lora(9)[0], ["tower", "projector", "language"])
    model, processor = finetune.opened_model(base, stage, "cpu")  # noqa: F811
    finetune.add_adapter(model, stage, base, 0)
    adapted = {part_of(name) for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"tower", "projector", "language"}
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    (tmp_path / "run").mkdir()
    finetune.write_result(model, processor, finetune.whole_weights(model, adapter=True), tmp_path / "run", adapter=True)
    assert main(["train", "export", str(tmp_path / "run"), "--out", str(tmp_path / "merged"), "--released"]) == 0
    assert "mllm_config" in json.loads((tmp_path / "merged" / "config.json").read_text())
    merged = gar.load(tmp_path / "merged", device="cpu").model
    request = random_request(processor.config, (1, 1), {})
    request["input_ids"] = request["input_ids"].where(request["input_ids"] != IMAGE, processor.config.image_token_id)
    request["region_boxes"] = [{0: (0.1, 0.1, 0.6, 0.9)}]
    with torch.no_grad():
        logits = [one.eval()(**request).logits for one in (model, merged, fresh(released_processor))]
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)


def test_held_out_records_are_not_trained_on_and_are_the_same_every_time(folder):
    data = open_data(folder / "data")
    training, held_out = finetune.split(data, 0.25, seed=1)
    assert (training.num_records(), held_out.num_records()) == (9, 3)
    pictures = [sample.image for sample in (*training, *held_out)]
    assert len({*pictures}) == 12 and {*pictures} == {sample.image for sample in data}
    assert list(finetune.split(data, 0.25, seed=1)[1]) == list(held_out)
    with pytest.raises(ValueError, match="0 of 12 records held out"):
        finetune.split(data, 0.01, seed=1)


def test_several_data_sets_of_any_formats_train_together(folder, tmp_path):
    write_shard([squares(seed) for seed in range(12, 16)], tmp_path / "more" / "a.parquet")
    more = ["--data", str(folder / "data"), "--data", str(tmp_path / "more"), "--lora", "--epochs", "1"]
    assert main(line(folder, tmp_path / "run", *more, "--device", "cpu")) == 0
    settings = json.loads((tmp_path / "run" / "begun.json").read_text())["settings"]
    assert settings["data"] == [str(folder / "data"), str(tmp_path / "more")] and settings["records"] == 16
    stage = json.loads((tmp_path / "run" / "stage.json").read_text())
    assert stage["steps"] == 1  # 12 of 16 records are trained on
    together = open_together([folder / "data", tmp_path / "more"])
    training, held_out = finetune.split(together, 0.25, 0)
    seen = [sample.image for _, sample in islice(training.walk(0), 12)]
    assert {*seen} | {sample.image for sample in held_out} == {squares(seed).image for seed in range(16)}


def test_a_run_whose_data_has_grown_or_that_does_not_say_what_it_is_does_not_go_on(folder, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "run"
    more = ["--data", str(data), "--lora", "--epochs", "1", "--device", "cpu"]
    write_jsonl([squares(seed) for seed in range(4)], data / "squares.jsonl")
    assert main(line(folder, out, *more)) == 0
    write_jsonl([squares(seed) for seed in range(5)], data / "squares.jsonl")
    assert main(line(folder, out, *more)) == 2
    assert "holds a run with records 4, not 5: name another --out" in capsys.readouterr().err
    (out / "begun.json").write_text('{"settings"')
    assert main(line(folder, out, *more)) == 2
    assert "begun.json does not say what run this is" in capsys.readouterr().err


def test_a_run_goes_on_past_every_kind_of_bad_record_and_lists_each_where_it_stands(folder, bad, tmp_path, capsys):  # noqa: F811
    told = {"question": "How many squares are there?", "answer": "three"}
    rows = [line_of(turns=[told], regions=[{"rle": square(k)} for k in range(30)]), line_of(turns=[told], regions=[])]
    rows += [*BAD.values(), line_of(image="cut.jpg"), line_of(image="cut.jpg", turns=[told])]
    write_jsonl([squares(seed) for seed in range(10)], bad / "data.jsonl")
    with (bad / "data.jsonl").open("a") as file:
        file.write("\n".join(rows))
    more = ["--lora", "--data", str(bad), "--held-out", "0.5", "--epochs", "1", "--device", "cpu"]
    assert main(line(folder, tmp_path / "run", *more)) == 0
    rejects = [json.loads(text) for text in (tmp_path / "run" / "rejects.jsonl").read_text().splitlines()]
    found = sorted((int(reject["record"].rpartition("data.jsonl row ")[2]), reject["reason"]) for reject in rejects)
    assert found == [*enumerate([*BAD, "damaged picture", "damaged picture"], start=12)]
    assert "gar: rejected: 3 damaged picture, 1 missing file, " in capsys.readouterr().err


def test_the_memory_budget_counts_what_trains(folder, samples):  # noqa: F811
    def budget(stage: Stage) -> dict[str, int]:
        model, processor = finetune.opened_model(str(folder / "model"), stage, "cpu")  # noqa: F811
        if stage.lora_rank:
            finetune.add_adapter(model, stage, "", 0)
        (packed,) = finetune.packs_of(Data([Shard("a", lambda: samples[:1])], Rejects()), processor, stage, 0)
        objective = finetune.Objective(model, stage)
        alone, beside = (finetune.memory(objective, processes) for processes in (1, 2))
        assert beside == alone | {"gradients": 2 * alone["gradients"]}  # a copy, for their mean
        spread = finetune.memory(objective, 2, sharded=True)
        assert spread == {name: size // 2 for name, size in alone.items()}
        return alone | {"activations": finetune.activations(objective, packed, 1)}

    whole, lora = budget(recipes.finetune(9)[0]), budget(recipes.lora(9)[0])
    assert whole["gradients"] < whole["weights"] and whole["optimiser"] == 2 * whole["gradients"]
    assert lora["weights"] > whole["weights"] and lora["gradients"] < whole["gradients"] / 5
    assert 0 < lora["activations"] < whole["activations"]


def test_what_a_process_holds_is_told_before_a_pass_is_tried(folder, monkeypatch, capsys):
    def refuse(*_: Any) -> int:
        raise torch.cuda.OutOfMemoryError

    model, _ = finetune.opened_model(str(folder / "model"), recipes.finetune(9)[0], "cpu")
    monkeypatch.setattr(finetune, "activations", refuse)
    unused: Any = None
    capsys.readouterr()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        finetune.tell_memory(finetune.Objective(model, recipes.finetune(9)[0]), unused, 1)
    told = [line.split()[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["memory", "weights", "gradients", "optimiser"]


def test_the_published_recipes_have_the_published_settings():
    (stage,) = recipes.gar_1b(samples=64 * 1000)
    assert (stage.steps, stage.batch, stage.warmup, stage.rate, stage.clip) == (1000, 64, 30, 1e-5, 1.0)
    assert (stage.frozen, stage.tower_rate, stage.vision_rate, stage.weight_decay) == ((), 1.0, 1.0, 0.0)
    (larger,) = recipes.gar_8b(samples=64 * 1000)
    assert (stage.max_tiles, larger.max_tiles) == (16, 8)
    assert stage.chat and larger.chat and not recipes.finetune(9)[0].chat


def test_weights_train_also_where_nothing_decays(processor):  # noqa: F811
    objective = finetune.Objective(fresh(processor), recipes.finetune(9)[0])
    optimizer, _ = objective.optimizer()
    counted = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert counted == sum(p.numel() for p in objective.parameters())


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--recipe", "qlora", "--model", "nano"], "nano: weights become 4 bits as they are read from a whole"),
        (["--recipe", "qlora"], "4-bit weights need a CUDA GPU and bitsandbytes"),
        (["--recipe", "nonsense"], "no recipe 'nonsense': expected one of finetune, lora"),
        (["--lora", "--recipe", "nonsense"], "no recipe 'nonsense': expected one of finetune, lora"),
        (["--lora", "--recipe", "qlora"], "--lora is short for --recipe lora: leave it away for qlora"),
        (["--epochs", "inf"], "inf epochs: give a finite number"),
        (["--adapt", "tower"], "--adapt tower: of no use without adapters: give --lora"),
        (["--lora", "--adapt", "tower,mask"], "no part 'mask' to adapt: expected some of language, projector, tower"),
        (["--data", "/nowhere"], "/nowhere: no such file"),
        (["--shard"], "give --launch N too, or start with torchrun"),
    ],
)
def test_a_fine_tuning_that_cannot_be_is_one_line(folder, tmp_path, capsys, more, problem):
    assert main(line(folder, tmp_path, "--device", "cpu", *more)) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("gar: error:") and problem in said[-1]


def test_a_model_is_not_written_over_itself(folder, capsys):
    before = sorted((folder / "model").iterdir())
    for command in (line(folder, folder / "model"), ["train", "export", *2 * [str(folder / "model")]]):
        if command[1] == "export":
            command.insert(3, "--out")
        assert main(command) == 2
        assert "model is the model itself: name another --out" in capsys.readouterr().err
    assert sorted((folder / "model").iterdir()) == before


def test_a_text_that_the_model_cannot_read_is_a_reject(processor):  # noqa: F811
    most = processor.config.text_config.max_position_embeddings
    for stage, kind in ((recipes.finetune(9)[0], "detailed"), (recipes.gar_1b(9)[0], "")):
        packer = Packer(processor, stage)
        sample = Sample(squares(0).image, squares(0).masks, [Turn("What is <Prompt0>?", "a " * most, kind)])
        with pytest.raises(Unusable, match=f"text too long: .* tokens, the model reads {most}"):
            packer(sample, random.Random(0))


def test_a_coco_file_far_from_its_pictures_says_so_and_is_told_where_they_are(folder, tmp_path, capsys):
    named = (annotated(s.image, [Annotation(mask, "square") for mask in s.masks]) for s in map(squares, range(12)))
    write_coco(named, tmp_path / "coco" / "instances.json")
    (tmp_path / "there").mkdir()
    (tmp_path / "coco" / "pictures").rename(tmp_path / "there" / "pictures")
    more = ["--data", str(tmp_path / "coco" / "instances.json"), "--epochs", "1", "--device", "cpu"]
    assert main(line(folder, tmp_path / "run", *more)) == 2
    assert "missing file: pictures/" in (said := capsys.readouterr().err) and "--pictures DIR" in said
    assert main(line(folder, tmp_path / "run", *more, "--pictures", str(tmp_path / "there"))) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["after"]["answers"] > 0
    assert not (tmp_path / "run" / "rejects.jsonl").exists()  # those of the start that failed are no longer true


def descendants(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [d for child in map(int, children) for d in (child, *descendants(child))]


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
def test_a_run_killed_at_any_step_under_torchrun_ends_with_the_very_weights_of_one_that_was_not(folder, tmp_path):
    def start(out: Path, *launcher: str) -> subprocess.Popen:
        arguments = line(folder, out, "--epochs", "12", "--save-every", "1", *([] if launcher else ["--launch", "2"]))
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, *launcher, "-m", "gar.cli", *arguments], env=environment)

    assert start(tmp_path / "whole").wait() == 0
    steps = json.loads((tmp_path / "whole" / "stage.json").read_text())["steps"]
    killed = start(tmp_path / "killed", *TORCHRUN)
    when = random.randint(1, steps - 2)
    while not (tmp_path / "killed" / f"step-{when:08}").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    time.sleep(random.uniform(0, 2))
    for process in (*descendants(killed.pid), killed.pid):  # they would outlive it
        os.kill(process, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "report.json").exists()
    assert start(tmp_path / "killed", *TORCHRUN).wait() == 0
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def _sharded(rank: int, samples: list[Sample], processor: GARProcessor, stage: Stage, folder: str) -> None:  # noqa: F811
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    options: Any = {"workers": 0, "save_every": 1, "log_every": 1, "keep": 9, "sharded": True}
    for run in ("spread", "from-one"):
        model = fresh(processor)
        model.gradient_checkpointing_enable(RECOMPUTED)  # as on a GPU
        train(model, processor, samples, stage, Path(folder) / run, **options)
    torch.distributed.destroy_process_group()


def test_a_sharded_run_has_the_losses_of_one_process_and_either_reads_the_others_checkpoints(
    samples,  # noqa: F811
    processor,  # noqa: F811
    tmp_path,
):
    stage = Stage("a", steps=3, batch=2, at_once=1, turns=6, regions=3, warmup=2, heads=0.0)
    options: Any = {"workers": 0, "save_every": 1, "log_every": 1, "keep": 9}

    def losses(run: str) -> list[float]:
        return [json.loads(text)["language"] for text in (tmp_path / run / "log.jsonl").read_text().splitlines()]

    def begun(name: str, run: str) -> Path:
        shutil.copytree(tmp_path / run / "step-00000001", tmp_path / name / "step-00000001")
        return tmp_path / name

    alone = train(fresh(processor), processor, samples, stage, tmp_path / "alone", **options).model.state_dict()
    begun("from-one", "alone")
    two_processes(_sharded, samples, processor, stage, str(tmp_path))
    assert losses("spread") == pytest.approx(losses("alone"), abs=1e-5)
    assert losses("from-one") == pytest.approx(losses("alone")[1:], abs=1e-5)
    assert len(list((tmp_path / "spread" / "step-00000003").glob("model-*-of-00002.safetensors"))) == 2

    # A last step that is done already: the run only reads it. Begun anew, AdamW steps along noise too.
    spread, whole = (
        train(fresh(processor), processor, samples, stage, tmp_path / run, **options).model.state_dict()
        for run in ("spread", "from-one")
    )
    assert all(torch.allclose(whole[name], value, atol=1e-5) for name, value in alone.items())
    out = begun("from-two", "spread")
    rest = train(fresh(processor), processor, samples, stage, out, **options).model.state_dict()
    assert losses("from-two") == pytest.approx(losses("spread")[1:], abs=1e-5)
    assert all(torch.allclose(rest[name], value, atol=1e-5) for name, value in spread.items())


def _spread(rank: int, folder: Path, out: Path, recipe: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{out}.meet", rank=rank, world_size=2)
    options: Any = {"held_out": 0.25, "workers": 0, "sharded": True, "device": "cpu", "epochs": 1.5}
    finetune.run([folder / "data"], out, model=str(folder / "model"), recipe=recipe, **options)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("recipe", ["finetune", "lora"])
def test_a_model_spread_over_two_processes_is_written_whole(folder, tmp_path, recipe):
    two_processes(_spread, folder, tmp_path, recipe)
    report = json.loads((tmp_path / "report.json").read_text())
    loaded = gar.load(tmp_path, device="cpu")
    (stage,) = finetune.RECIPES[recipe](9)
    _, held_out = finetune.split(open_data(folder / "data"), 0.25, 0)
    packs = finetune.packs_of(held_out, loaded.processor, stage, 0)
    alone = finetune.measure(finetune.Objective(loaded.model, stage), packs)
    assert alone["loss"] == pytest.approx(report["after"]["loss"], abs=2e-4) != report["before"]["loss"]
