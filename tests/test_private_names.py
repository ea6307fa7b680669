"""Names of other libraries that are not part of their promises and that the code relies on: each is still there.

Their versions are capped in pyproject.toml at the minor version that was tested. Before a cap is raised, this test says
which name has moved.
"""

import importlib
import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# (library, module, name, the file that relies on it). A name after a dot is an attribute; one after a colon is set in
# the source of the class before it.
PRIVATE = [
    ("torch", "torch.utils._pytree", "tree_flatten", "core/model/cuts/base.py"),
    ("torch", "torch.utils._pytree", "tree_map_only", "core/chain/step_memory.py"),
    ("torch", "torch.utils._python_dispatch", "TorchDispatchMode", "core/chain/step_memory.py"),
    ("torch", "torch._subclasses.fake_tensor", "FakeTensorMode", "core/predictors/memory.py"),
    ("torch", "torch.distributed.distributed_c10d", "_world.pg_map", "orchestrator/trial/engine.py"),
    ("diffusers", "diffusers", "ModelMixin._fix_state_dict_keys_on_load", "core/model/pretrained.py"),
    ("optuna", "optuna.study", "Study:_storage", "orchestrator/search/ledger.py"),
    ("optuna", "optuna.trial", "FrozenTrial:_trial_id", "orchestrator/search/ledger.py"),
    ("optuna", "optuna.storages._rdb.models", "TrialModel.trial_id", "orchestrator/store/study.py"),
    ("optuna", "optuna.storages", "RDBStorage._create_new_trial", "orchestrator/store/study.py"),
    ("optuna", "optuna.storages", "RDBStorage._get_prepared_new_trial", "orchestrator/store/study.py"),
    ("optuna", "optuna.storages", "RDBStorage._set_trial_param", "orchestrator/store/study.py"),
    ("optuna", "optuna.storages", "RDBStorage._get_trials", "orchestrator/store/study.py"),
    ("ray", "ray.tune.schedulers", "ASHAScheduler:_brackets", "orchestrator/sweep/tune_search.py"),
    ("ray", "ray.tune.schedulers", "ASHAScheduler:_metric_op", "orchestrator/sweep/tune_search.py"),
    ("ray", "ray._private.accelerators", "get_accelerator_manager_for_resource", "orchestrator/sweep/refusals.py"),
    ("ray", "ray.job_config", "JobConfig:_py_driver_sys_path", "orchestrator/sweep/cluster.py"),
    ("ray", "ray._private.state", "state.get_draining_nodes", "orchestrator/workers/placement.py"),
    ("ray", "ray.train.torch", "TorchTrainer._create_default_callbacks", "orchestrator/workers/worker_group.py"),
    (
        "ray",
        "ray.train.v2._internal.callbacks.placement_group_callback",
        "PlacementGroupCleanerCallback",
        "orchestrator/workers/worker_group.py",
    ),
    ("deepspeed", "deepspeed.utils.groups", "_WORLD_GROUP", "orchestrator/trial/engine.py"),
    ("deepspeed", "deepspeed.utils.groups", "_release_process_group_references", "orchestrator/trial/engine.py"),
    ("deepspeed", "deepspeed.comm.comm", "cdb", "orchestrator/trial/engine.py"),
    (
        "deepspeed",
        "deepspeed.runtime.zero.parameter_offload",
        "FWD_MODULE_STACK",
        "orchestrator/trial/engine.py",
    ),
    ("deepspeed", "deepspeed.runtime.engine", "DeepSpeedEngine:basic_optimizer", "orchestrator/trial/engine_state.py"),
    ("deepspeed", "deepspeed.ops.adam", "DeepSpeedCPUAdam:ds_opt_adam", "orchestrator/trial/engine_state.py"),
    ("deepspeed", "deepspeed.ops.adam", "DeepSpeedCPUAdam:opt_id", "orchestrator/trial/engine_state.py"),
    (
        "deepspeed",
        "deepspeed.runtime.zero.stage_1_and_2",
        "DeepSpeedZeroOptimizer:single_partition_of_fp32_groups",
        "orchestrator/trial/engine_state.py",
    ),
    (
        "deepspeed",
        "deepspeed.runtime.zero.stage_1_and_2",
        "DeepSpeedZeroOptimizer:bit16_groups",
        "orchestrator/trial/engine_state.py",
    ),
    (
        "deepspeed",
        "deepspeed.runtime.fp16.unfused_optimizer",
        "FP16_UnfusedOptimizer:fp32_groups",
        "orchestrator/trial/engine_state.py",
    ),
]


def lacking(module: str, name: str) -> str | None:
    """What is not there of a name, or None."""
    try:
        owner = importlib.import_module(module)
    except ImportError:
        return module
    path, _, in_source = name.partition(":")
    for part in path.split("."):
        if not hasattr(owner, part):
            return f"{module}.{path}"
        owner = getattr(owner, part)
    if in_source and not any(in_source in inspect.getsource(each) for each in inspect.getmro(owner)[:-1]):
        return f"{module}.{path}.{in_source}"
    return None


@pytest.mark.slow  # imports DeepSpeed and Ray
@pytest.mark.parametrize(("library", "module", "name", "file"), PRIVATE, ids=lambda text: str(text).rpartition("/")[2])
def test_private_names_of_other_libraries_are_where_they_were(library: str, module: str, name: str, file: str) -> None:
    missing = lacking(module, name)
    assert missing is None, f"{library} {version(library)} has no {missing} any more; {file} relies on it"


def test_a_name_that_has_moved_is_told() -> None:
    assert lacking("torch.utils._nowhere", "x") == "torch.utils._nowhere"
    assert lacking("inspect", "Signature._moved") == "inspect.Signature._moved"
    assert lacking("inspect", "Signature:_moved") == "inspect.Signature._moved"
    assert lacking("inspect", "Signature:_parameters") is None


@pytest.mark.parametrize("library", sorted({row[0] for row in PRIVATE}))
def test_a_library_whose_private_names_are_used_is_capped_at_the_minor_version_that_was_tested(library: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [each for group in project["optional-dependencies"].values() for each in group]
    asked = [each for each in [*project["dependencies"], *extras] if re.match(rf"{library}\b", each)]
    major, minor = version(library).split(".")[:2]
    assert asked and all(each.endswith(f",<{major}.{int(minor) + 1}") for each in asked), asked


@pytest.mark.parametrize(("library", "module", "name", "file"), PRIVATE, ids=lambda text: str(text).rpartition("/")[2])
def test_the_file_that_is_said_to_rely_on_a_name_does(library: str, module: str, name: str, file: str) -> None:
    assert re.split(r"[.:]", name)[-1] in (ROOT / file).read_text(), f"{file} does not use {library}'s {name}"
