"""A denoiser small enough for exact comparisons: random weights, float64, 8x8 images, h of 8x2x2.

`make test` runs two files of tests at a time, one file in one process. Those that kill processes and take machines away
stay together, one after the other, and so do those that look at the one finished sweep, from the command line and in a
browser.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from core import Denoiser
    from orchestrator.store.folder import SweepFolder

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)  # sweeps of tests stay out of the developer's own store

# By folder or file; they take long as well.
_TOGETHER = {
    "cluster": "kills",
    "faults": "kills",
    "browser": "sweep",
    "orchestrator/sweep/test_end_to_end.py": "sweep",
}

# Every real part at once: a method that trains in a DeepSpeed engine and three that do not, ASHA, paths relative to
# where the user is, a registered model. Each configuration has one trial, however many the budget holds.
SWEEP = """\
name: faces
model: toyfaces
method: {choice: [learned, pca, jacobian, random]}
sampler: {steps: 3}
train: {iterations: 4, batch: 4, micro_batch: 2, pool: 32}
search: {directions: 3, start: random, pca.samples: 32, jacobian.mask: mask.png}
objectives: [{identifiability: max}, {fidelity_kid: min}]
scheduler: {asha: {metric: identifiability, grace: 2, reduction: 2}}
evaluate: {every: 2, seeds: 6, strength: 0.5}
budget: {trials: 9}
deepspeed: {zero: 2, offload_optimizer: cpu}
gradient: {policy: full_graph}
export: {register: faces-directions}
"""

# What is left in an environment by clusters, launchers, schedulers and proxies that have nothing to do with a sweep.
FOREIGN = {
    "RAY_ADDRESS": "127.0.0.1:1",
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    "MASTER_ADDR": "192.0.2.1",
    "MASTER_PORT": "1",
    "RANK": "3",
    "LOCAL_RANK": "3",
    "WORLD_SIZE": "8",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "8",
    "OMPI_COMM_WORLD_RANK": "2",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "TERM": "dumb",
    "COLUMNS": "20",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONWARNINGS": "error",
    "TZ": "Pacific/Auckland",
}


def _group(path: Path) -> str:
    """What a file of tests shares a process of xdist's with."""
    file = path.relative_to(Path(__file__).parent)
    return _TOGETHER.get(file.as_posix()) or _TOGETHER.get(file.parts[0]) or path.as_posix()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that no process has to wait for another at the end."""
    items.sort(key=lambda item: _group(item.path) not in _TOGETHER.values())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(config.rootpath / nodeid.split("::")[0])

    return ByGroup(config, log)


@pytest.fixture(autouse=True)
def _rays_environment_is_left_as_it_was() -> Iterator[None]:
    """A sweep in this process names a token that is gone after it; a Ray that is started later would look for it."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    yield
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_denoiser() -> "Denoiser":
    import torch
    from diffusers import DDIMScheduler, UNet2DModel

    from core.model.denoiser import Denoiser

    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(4, 8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=8,
        )
    return Denoiser(unet.double(), DDIMScheduler(clip_sample=False), "tiny")


@pytest.fixture(scope="session")
def single_denoiser(tiny_denoiser: "Denoiser") -> "Denoiser":
    """The tiny model in the precision that is trained in."""
    from core.model.denoiser import Denoiser

    unet = tiny_denoiser.network.__class__.from_config(tiny_denoiser.network.config)
    unet.load_state_dict(tiny_denoiser.network.state_dict())
    return Denoiser(unet, tiny_denoiser.scheduler, "tiny")


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer of random weights, 16 features, in the layout of `transformers`."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("vision")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    shape = {"image_size": 16, "patch_size": 8, "initializer_range": 0.5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.ViTModel(transformers.ViTConfig(**small, **shape)).save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def shadow(folder: Path, name: str) -> None:
    """A package of the user's that has a name of ours; importing it is an error."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise RuntimeError('the package of the working folder was imported')\n")


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> "SweepFolder":
    """The one real sweep that many tests read, by `orchestrate sweep faces.yaml` in a folder of its own.

    Its environment is one that users report from other tools (tests/reported.md), and beside its file are packages of
    the user's named as ours are.

    $HSO_FINISHED_SWEEP, the folder of a finished one, saves making it.
    """
    from PIL import Image

    from orchestrator.store.folder import SweepFolder

    if made := os.environ.get("HSO_FINISHED_SWEEP"):
        return SweepFolder(Path(made).parent, Path(made).name)
    home = tmp_path_factory.mktemp("finished")
    Image.new("L", (32, 32), 255).save(home / "mask.png")
    (home / "faces.yaml").write_text(SWEEP)
    for name in ("core", "orchestrator"):
        shadow(home, name)
    command = [str(Path(sys.executable).parent / "orchestrate"), "sweep", "faces.yaml"]
    done = subprocess.run(command, cwd=home, env=os.environ | FOREIGN, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    (home / "said").write_text(done.stdout)
    return SweepFolder(home / "runs", "faces")
