"""`orchestrate edit`: what is written is what was asked for, can be made again, and is whole or not there at all."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from core.metrics import draw_traversals
from core.pictures.traversal_grid import grid, to_picture
from core.progress import listening
from core.samples.draw import Sampling
from orchestrator.cli import main as cli
from orchestrator.edit.edit import edit
from orchestrator.edit.files import picture_name, sample_names
from orchestrator.edit.request import EditRequest, ModelOptions
from orchestrator.edit.session import Edit, EditSession
from orchestrator.edit.settings import Frames, round_frames
from tests.orchestrator.bundles import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tiny_model, tmp_path_factory.mktemp("bundles") / "tiny set")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The verb on the bundle: (exit code, stdout, stderr); its working folder is `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def verb(*arguments: object, bundle: Path = bundle) -> tuple[int, str, str]:
        try:
            code = cli.main(["edit", str(bundle), *map(str, arguments)])
        except SystemExit as done:
            code = int(str(done.code))
        told = capsys.readouterr()
        return code, told.out, told.err

    return verb


def pixels(picture: Path) -> np.ndarray:  # type: ignore[type-arg]
    with Image.open(picture) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


@pytest.mark.slow
def test_a_picture_of_each_seed_that_says_what_it_is(run: Run, bundle: Path) -> None:
    code, out, err = run("--seeds", "3-5", "--direction", "yaw=1.5", "--direction", "hair colour=-0.5", "--to", "out")
    assert (code, out) == (0, "out\n") and err == "yaw +1.5, hair colour -0.5 (symmetric)\n"
    names = [f"seed_{seed}__yaw+1.5_hair_colour-0.5.png" for seed in (3, 4, 5)]
    assert sorted(path.name for path in Path("out").iterdir()) == [*names, "settings.json"]
    session = EditSession.open(bundle, ModelOptions(device="cpu"))
    drawn = session.draw(session.from_seeds([4]), Edit({"yaw": 1.5, "hair colour": -0.5}))[0, 0]
    assert np.abs(pixels(Path("out") / names[1]) - np.asarray(to_picture(drawn)).astype(int)).max() <= 1
    with Image.open(Path("out") / names[1]) as picture:
        text = dict(picture.text)  # type: ignore[attr-defined]
    assert (text["Bundle"], text["Sample"], text["Edit"]) == ("tiny set", "seed_4", "yaw +1.5, hair colour -0.5")
    assert json.loads(text["Settings"])["seeds"] == [4]


@pytest.mark.slow
def test_settings_make_the_same_pictures_again(run: Run) -> None:
    first = ("--seeds", "0-2", "--direction", "yaw=1.5", "--injection", "asymmetric", "--window", "700", "0")
    assert run(*first, "--to", "out")[0] == 0
    assert run("--settings", "out/settings.json", "--to", "again", "--batch", "1")[0] == 0
    for path in Path("out").iterdir():
        if path.suffix == ".png":
            assert np.abs(pixels(path) - pixels(Path("again") / path.name)).max() <= 1  # batches differ by rounding
    assert Path("out/settings.json").read_text() == Path("again/settings.json").read_text()
    code, _, err = run("--settings", "out/settings.json", "--seed", "9", "--direction", "smile", "--to", "other")
    assert code == 0 and "smile +1 (asymmetric, timesteps (700, 0))" in err
    assert Path("other/seed_9__smile+1.png").is_file()


@pytest.mark.slow
def test_settings_of_no_edit_draw_the_sample_itself(run: Run, bundle: Path) -> None:
    """As the explore page writes them before a slider is moved."""
    assert run("--seed", "2", "--direction", "yaw", "--to", "a.png", "--save-settings", "s.json")[0] == 0
    saved = json.loads(Path("s.json").read_text())
    Path("s.json").write_text(json.dumps({**saved, "directions": {}}))
    assert run("--settings", "s.json", "--to", "b.png")[0] == 0
    session = EditSession.open(bundle, ModelOptions(device="cpu"))
    assert np.abs(pixels(Path("b.png")) - np.asarray(to_picture(session.from_seeds([2]).plain[0]))).max() <= 1


@pytest.mark.slow
def test_settings_of_another_set_are_told_of(run: Run) -> None:
    run("--direction", "yaw", "--to", "a.png", "--save-settings", "s.json")
    saved = json.loads(Path("s.json").read_text())
    Path("s.json").write_text(json.dumps({**saved, "set_digest": "f" * 64}))
    code, _, err = run("--settings", "s.json", "--to", "b.png")
    assert code == 0 and "Note: the settings were written with another direction set ('ffffffffffff', here '" in err


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_swings_back_and_forth_for_ever(run: Run, suffix: str) -> None:
    to = Path("out") / f"a{suffix}"
    assert run("--seeds", "0-2", "--direction", "yaw", "--frames", "4", "--animate", "--to", to)[0] == 0
    with Image.open(to) as animation:
        assert animation.n_frames == 6 and animation.info["loop"] == 0  # type: ignore[attr-defined]
        frames = []
        for i in range(6):
            animation.seek(i)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    for there, back in ((1, 5), (2, 4)):
        assert np.abs(frames[there] - frames[back]).mean() < 2
    assert np.abs(frames[0] - frames[3]).mean() > 5


@pytest.mark.slow
def test_a_grid_has_samples_down_and_scales_across(run: Run, bundle: Path) -> None:
    more = ("--frames", "3", "--from", "-2", "--until", "2", "--grid")
    assert run("--seeds", "0-1", "--direction", "yaw", *more, "--to", "grid.png")[0] == 0
    whole, session = pixels(Path("grid.png")), EditSession.open(bundle, ModelOptions(device="cpu"))
    drawn = session.draw(session.from_seeds([0, 1]), Edit({"yaw": 1.0}), (-2.0, 0.0, 2.0))
    cell, gap = 96, 2
    left, top = whole.shape[1] - 3 * (cell + gap), whole.shape[0] - 2 * (cell + gap)
    for r in range(2):
        for c in range(3):
            y, x = top + r * (cell + gap), left + c * (cell + gap)
            shown = whole[y + 6 : y + cell : 12, x + 6 : x + cell : 12]
            assert np.abs(shown - np.asarray(to_picture(drawn[r, c]))).max() <= 1


@pytest.mark.parametrize(
    ("low", "high", "count", "scale", "scales"),
    [
        (-2.71, 1.95, 7, 1.0, [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5]),
        (-0.5, 0.3, 5, -2.0, [0.5, 0.25, 0.0, -0.25, -0.5]),  # multiples of a scale of -2: up to 0.6
        (-3.0, 3.0, 4, 1.0, [-2.0, -1.0, 0.0, 1.0, 2.0]),
        (-0.5, 0.0, 3, 1.0, [-0.5, 0.0, 0.5]),
    ],
)
def test_a_grid_has_round_scales_around_the_original(
    low: float, high: float, count: int, scale: float, scales: list[float]
) -> None:
    factors = round_frames(low, high, count, scale).factors()
    assert [factor * scale for factor in factors] == pytest.approx(scales)


@pytest.mark.slow
def test_a_grid_is_labelled_and_has_the_original_whatever_was_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[str], list[str], str]] = []

    def spied(images: torch.Tensor, rows: list[str], columns: list[str], cell: int, title: str) -> Image.Image:
        assert images.shape[:2] == (len(rows), len(columns))
        drawn.append((rows, columns, title))
        return grid(images, rows, columns, cell, title)

    monkeypatch.setattr("orchestrator.edit.files.grid", spied)
    asked = (
        ("--direction", "yaw"),  # faithful from -1.5 to 2.5
        ("--direction", "yaw=-2", "--frames", "3"),
        ("--direction", "yaw", "--from", "0.5", "--until", "1.5", "--frames", "3"),
        ("--direction", "yaw=2", "--direction", "smile=-1", "--frames", "3"),
    )
    for number, arguments in enumerate(asked):
        assert run(*arguments, "--grid", "--to", f"{number}.png")[0] == 0
    assert drawn == [
        (["seed_0"], ["-1.5", "-1", "-0.5", "original", "+0.5", "+1", "+1.5"], "yaw"),
        (["seed_0"], ["+1", "original", "-1"], "yaw"),
        (["seed_0"], ["original", "+0.5", "+1", "+1.5"], "yaw"),
        (["seed_0"], ["× -0.5", "original", "× 0.5"], "yaw +2, smile -1"),
    ]


def test_frames_are_evenly_spaced_and_reach_as_far_as_images_stay_faithful(run: Run) -> None:
    assert Frames(count=5, first=-1.0, last=1.0).factors() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    run("--direction", "yaw=2", "--frames", "2", "--to", "a.gif", "--save-settings", "s.json")
    assert json.loads(Path("s.json").read_text())["frames"] == {"count": 2, "first": -0.75, "last": 1.25}


@pytest.mark.slow
def test_images_are_inverted_and_edited(run: Run) -> None:
    run("--seeds", "0-1", "--direction", "yaw=0", "--to", "faces")
    Path("more").mkdir()
    Image.new("RGB", (20, 10), "red").save("more/wide one.jpg")
    code, _, err = run("--image", "faces/seed_0__yaw+0.png", "more", "--direction", "yaw=1", "--to", "out")
    assert code == 0 and sorted(path.name for path in Path("out").glob("*.png")) == [
        "seed_0__yaw+0__yaw+1.png",
        "wide_one__yaw+1.png",
    ]
    assert re.search(
        r"^seed_0__yaw\+0.png is redrawn, .* with a mean error of \d+\.\d of 255 levels.$", err, re.MULTILINE
    )
    assert "\nfaces/seed_0__yaw+0.png -> out/seed_0__yaw+0__yaw+1.png\n" in err
    assert "\nmore/wide one.jpg -> out/wide_one__yaw+1.png\n" in err
    assert "wide one.jpg is 20 x 10 pixels; the model draws 8 x 8: cropped around its centre and made smaller" in err
    assert json.loads(Path("out/settings.json").read_text())["images"] == [
        "faces/seed_0__yaw+0.png",
        "more/wide one.jpg",
    ]
    with Image.open("out/wide_one__yaw+1.png") as picture:
        assert json.loads(picture.text["Settings"])["images"] == ["wide one.jpg"]  # type: ignore[attr-defined]


def test_beyond_its_range_a_direction_is_drawn_and_told_of(run: Run) -> None:
    code, _, err = run("--direction", "yaw=4", "--to", "a.png")
    assert code == 0 and err.startswith("Note: yaw +4 is outside -1.5 to +2.5, where its images were measured to")


@pytest.mark.parametrize("verb", ["edit", "explore"])
def test_help_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main([verb, "--help"])
    assert done.value.code == 0 and f"examples:\n  orchestrate {verb} out/ " in capsys.readouterr().out


def test_names_of_files_are_plain_and_different() -> None:
    assert sample_names([7, Path("a/me.png"), Path("b/me.jpg"), Path("../.x/<b>.png")]) == [
        "seed_7",
        "me",
        "me_2",
        "_b_",
    ]
    assert picture_name("me", {"../x": 1.0, "a=b": -0.25}) == "me___x+1_a_b-0.25.png"
    for letter in ("d", "ö", "微"):
        assert 100 < len(picture_name("me", {f"{letter * 9} {k}": 1.0 for k in range(99)}).encode()) < 200
        assert len(sample_names([Path(f"{letter * 80}.png")])[0].encode()) < 100  # file systems stop at 255 bytes


@pytest.mark.parametrize(
    ("stems", "names"),
    [
        (["a", "a", "a_2"], ["a", "a_3", "a_2"]),
        (["a_2", "a", "a"], ["a_2", "a", "a_3"]),
        (["a", "a", "a", "a_2_2", "a_2"], ["a", "a_3", "a_4", "a_2_2", "a_2"]),
        (["a b", "a_b", "A_B"], ["a_b", "a_b_2", "A_B_3"]),  # some file systems know no case
        (["é", "e\u0301"], ["é", "é_2"]),  # one letter, or two
    ],
)
def test_no_two_samples_share_a_file(stems: list[str], names: list[str]) -> None:
    assert sample_names([Path(f"{number}/{stem}.png") for number, stem in enumerate(stems)]) == names


def test_every_image_of_a_traversal_is_counted(bundle: Path) -> None:
    session, told = EditSession.open(bundle, ModelOptions(device="cpu")), list[tuple[str, int, int]]()
    with listening(lambda *each: told.append(each)):
        draw_traversals(session.denoiser, session.schedule, session.directions, [0], (-1.0, 1.0), Sampling(batch=3))
    of_images = [each for each in told if each[0] == "images"]
    assert of_images == [("images", 3, 8), ("images", 6, 8), ("images", 8, 8)]  # one seed, four directions, two scales


@pytest.mark.slow
def test_a_bar_is_drawn_in_a_terminal_alone(bundle: Path, tmp_path: Path) -> None:
    for terminal in (True, False):
        seen = io.StringIO()
        console = Console(file=seen, force_terminal=terminal, markup=False, width=100)
        edit(bundle, tmp_path / f"{terminal}", EditRequest(directions=["yaw"], seeds=range(3)), console)
        assert ("drawing" in seen.getvalue()) == terminal


DIRECTION = ("--direction", "yaw")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "out"), "name a direction with --direction; the set has: smile, yaw, hair colour, a=b"),
        (("--direction", "smlie", "--to", "out"), "the set has no direction named 'smlie'; did you mean 'smile'?"),
        (("--direction", "smlie=2", "--to", "out"), "the set has no direction named 'smlie'; did you mean 'smile'?"),
        (
            ("--direction", "yaw=x", "--to", "out"),
            "--direction: the scale of 'yaw' is 'x'; allowed: a finite number, as in yaw=1.5",
        ),
        (
            ("--direction", "yaw=nan", "--to", "out"),
            "--direction: the scale of 'yaw' is 'nan'; allowed: a finite number, as in yaw=1.5",
        ),
        (("--direction", "yaw", "--direction", "yaw=2", "--to", "out"), "--direction: 'yaw' is given twice"),
        ((*DIRECTION, "--scale", "inf", "--to", "out"), "--scale: got inf; allowed: a finite number"),
        (
            ("--scale", "2", "--to", "out"),
            "--scale is that of directions without one of their own: name them with --direction",
        ),
        ((*DIRECTION, "--image", "none.png", "--to", "out"), "images: none.png is not there"),
        (
            (*DIRECTION, "--image", "text.png", "--to", "out"),
            "images: text.png cannot be read as a picture (it is no BMP, JPEG, PNG, TIFF or WEBP)",
        ),
        ((*DIRECTION, "--to", "there"), "--to: there exists; name one that does not"),
        ((*DIRECTION, "--to", "text.png"), "--to: text.png exists; name one that does not"),
        (
            (*DIRECTION, "--to", "out", "--save-settings", "text.png"),
            "--save-settings: text.png exists; name one that does not",
        ),
        ((*DIRECTION, "--window", "3", "1", "--to", "out"), "window [3, 1] holds none of the chain's timesteps ["),
        ((*DIRECTION, "--frames", "1", "--to", "a.gif"), "--frames: got 1; allowed: 2 or more"),
        (
            (*DIRECTION, "--from", "1", "--until", "1", "--to", "a.gif"),
            "--from and --until: both are 1; an animation or a grid goes from one to another",
        ),
        (
            (*DIRECTION, "--frames", "3", "--to", "out"),
            "--frames, --from and --until are of an animation (--to x.gif, x.webp) or a --grid",
        ),
        ((*DIRECTION, "--animate", "--to", "a.png"), "--to: a.png; an animation is written as .gif or .webp"),
        ((*DIRECTION, "--grid", "--to", "a.gif"), "--to: a.gif; a grid is written as one .png"),
        (
            (*DIRECTION, "--to", "a.jpg"),
            "--to: a.jpg is of no kind that is written; allowed: a new folder, .png, .gif or .webp",
        ),
        (
            (*DIRECTION, "--seeds", "0-1", "--to", "a.png"),
            "--to: a.png is one picture, and 2 are asked for: a folder, or --grid",
        ),
        (
            (*DIRECTION, "--seeds", "0-999", "--grid", "--to", "a.png"),
            "--to: 1000 samples make a picture of 96000 pixels, more than 16383: ask for fewer, or for a folder",
        ),
        ((*DIRECTION, "--batch", "0", "--to", "out"), "--batch: got 0; allowed: 1 or more"),
        ((*DIRECTION, "--steps", "0", "--to", "out"), "steps: got 0; a chain has 1 to 1000 steps with model "),
        (("--settings", "none.json", "--to", "out"), "--settings: none.json cannot be read: No such file or directory"),
        (("--settings", "text.png", "--to", "out"), "--settings: text.png is not of an edit: Invalid JSON: "),
        ((*DIRECTION, "--model", "./gone", "--to", "out"), "model './gone' is not there: "),
        ((*DIRECTION, "--model", "toyfaces", "--to", "out"), "the set is for h of shape [8, 2, 2]; model 'toyfaces' "),
    ],
)
def test_each_mistake_gets_one_sentence_and_leaves_nothing(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "there").mkdir()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message) and len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.png", "there"]


@pytest.mark.parametrize("seeds", ["7-3", "-3", "x", "0-", "0-100000", "99999999999999999999"])
def test_seeds_that_are_none_are_refused(run: Run, seeds: str) -> None:
    code, _, err = run(*DIRECTION, f"--seeds={seeds}", "--to", "out")
    assert code == 2 and f"got '{seeds}'; allowed: a " in err.splitlines()[-1]


def test_a_bundle_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, _, err = run(*DIRECTION, "--to", "out", bundle=Path("none"))
    assert code == 2 and err == "none is not a direction set: directions.json is missing\n"


@pytest.mark.slow
def test_another_model_is_refused_with_both_digests(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    other = tiny_bundle(tiny_model, tmp_path / "other", weight_digest="0123456789abcdef")
    code, _, err = run(*DIRECTION, "--to", "out", bundle=other)
    assert code == 2 and "the set was made for weights '0123456789ab', model '" in err and "--any-model" in err
    code, _, err = run(*DIRECTION, "--any-model", "--to", "out", bundle=other)
    assert code == 0 and err.startswith("Note: the set was made for weights '0123456789ab', model '")


@pytest.mark.slow
def test_an_image_needs_a_chain_without_noise(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    noisy = tiny_bundle(tiny_model, tmp_path / "noisy", eta=0.5)
    code, _, err = run(*DIRECTION, "--image", "a.png", "--to", "out", bundle=noisy)
    assert code == 2 and err == (
        "images need a chain without noise (eta 0) to be inverted; this set was made with eta 0.5: use seeds\n"
    )
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directions": {"yaw": "1"}}, "directions.yaw: Input should be a valid number"),
        ({"window": [1]}, "window.1: Field required"),
        ({"seeds": [], "images": []}, "Value error, seeds or images are needed, and not both"),
        ({"seeds": [-1]}, "seeds.0: Input should be greater than or equal to 0"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
        ({"version": 2}, "version: Input should be 1"),
        ({"precision": "half"}, "precision: String should match pattern '^(fp32|tf32|bf16|fp16)$'"),
    ],
)
def test_settings_that_are_none_are_refused(run: Run, change: dict[str, object], message: str) -> None:
    run("--direction", "yaw", "--to", "a.png", "--save-settings", "s.json")
    Path("s.json").write_text(json.dumps({**json.loads(Path("s.json").read_text()), **change}))
    code, _, err = run("--settings", "s.json", "--to", "b.png")
    assert code == 2 and err == f"--settings: s.json is not of an edit: {message}\n"


@pytest.mark.slow
def test_settings_say_what_the_model_was_run_in(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    """Those of an older version do not: float32, as it drew."""
    half = tiny_bundle(tiny_model, tmp_path / "half", precision="bf16")
    assert run(*DIRECTION, "--to", "a.png", "--save-settings", "a.json", bundle=half)[0] == 0
    saved = json.loads(Path("a.json").read_text())
    assert saved.pop("precision") == "bf16"
    Path("old.json").write_text(json.dumps(saved))
    told = [("a.json", (), "bf16"), ("old.json", (), "fp32"), ("a.json", ("--precision", "tf32"), "tf32")]
    for number, (settings, given, precision) in enumerate(told):
        out = Path(f"{number}.png")
        assert (
            run("--settings", settings, *given, "--to", out, "--save-settings", f"{number}.json", bundle=half)[0] == 0
        )
        assert json.loads(Path(f"{number}.json").read_text())["precision"] == precision
        assert (pixels(out) == pixels(Path("a.png"))).all() == (precision == "bf16")


@pytest.mark.slow
def test_weights_may_be_in_the_cpus_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        "orchestrator.trial.loading.offloaded", lambda denoiser, device: opened.append(str(denoiser.device)) or denoiser
    )
    assert run(*DIRECTION, "--weights", "cpu", "--to", "a.png")[0] == 0 and opened == ["cpu"]
    assert run(*DIRECTION, "--to", "b.png")[0] == 0 and opened == ["cpu"]
    assert (pixels(Path("a.png")) == pixels(Path("b.png"))).all()


def test_where_memory_runs_out_the_options_that_help_are_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity")

    for where in ("orchestrator.edit.session.sample", "core.model.denoiser.Denoiser.from_pretrained"):
        monkeypatch.setattr(where, no_memory)
        code, out, err = run(*DIRECTION, "--to", "a.png")
        assert (code, out) == (2, "") and err == (
            "memory ran out; these take less of it: a smaller --batch, --weights cpu, --precision bf16\n"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_is_interrupted_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.edit.edit.write_picture", interrupted)
    for to in ("out", "a.png"):
        assert run(*DIRECTION, "--to", to)[0] == 130
        assert list(tmp_path.iterdir()) == []
