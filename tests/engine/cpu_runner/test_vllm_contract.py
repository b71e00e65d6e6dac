"""What the functions rely on in vLLM: which kernels Model Runner V2 launches, and with which arguments."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import vllm

from server.engine.cpu_runner.registration import find_kernel, plain_names
from server.engine.cpu_runner.table import KERNELS, UNSUPPORTED

WORKER = Path(vllm.__file__).parent / "v1" / "worker"
# Modules outside v1/worker/gpu whose kernels the runner launches.
MORE_MODULES = ["mamba_utils.py"]
# vLLM itself has a function for it on CPUs, and V1 alone launches it.
THEIRS = {"mamba_utils.batch_memcpy_kernel"}


def sources() -> list[Path]:
    return [*sorted((WORKER / "gpu").rglob("*.py")), *(WORKER / name for name in MORE_MODULES)]


def kernels_in(path: Path) -> dict[str, ast.FunctionDef]:
    """The functions of a file that are decorated with `triton.jit`, by their names in the table."""
    module = ".".join(path.relative_to(WORKER).with_suffix("").parts)
    return {
        f"{module}.{node.name}": node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list)
    }


def kernel_of(name: str) -> tuple[Path, ast.FunctionDef]:
    """A kernel of the table: its file, and the function as it is written there, whatever stands in its place now."""
    path = WORKER.joinpath(*name.split(".")[:-1]).with_suffix(".py")
    return path, kernels_in(path)[name]


def launched_in(path: Path) -> set[str]:
    """What a file launches as `kernel[grid](...)`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            names.add(ast.unparse(node.func.value).rsplit(".", 1)[-1])
    return names


def test_every_kernel_that_is_launched_is_replaced_or_refused() -> None:
    launched = set().union(*map(launched_in, sources()))
    known = set(KERNELS) | set(UNSUPPORTED) | THEIRS
    found = {name for path in sources() for name in kernels_in(path) if name.rsplit(".", 1)[1] in launched}
    assert found - known == set(), "vLLM launches kernels that nothing stands for"
    assert known - found == set(), "vLLM launches these kernels no more"


def test_no_other_module_launches_kernels_for_the_runner() -> None:
    """What the runner launches from elsewhere would be missed by the test above."""
    here = {name.rsplit(".", 1)[1] for path in sources() for name in kernels_in(path)}
    elsewhere = {"do_bench", "fn"}
    for path in sources():
        for name in launched_in(path) - here - elsewhere:
            assert not name.endswith("kernel"), f"{path} launches {name} of another module"


# SHA-256 of each kernel's source, shortened; a change wants a look at the function that stands for it.
BODIES = {
    "gpu.buffer_utils._apply_write_kernel": "edffb7c0f61e",
    "gpu.block_table._gather_block_tables_kernel": "b1bf0d16ec77",
    "gpu.block_table._compute_slot_mappings_kernel": "1298f907ba2a",
    "gpu.input_batch._prepare_prefill_inputs_kernel": "f5a1f618eb97",
    "gpu.input_batch._prepare_pos_seq_lens_kernel": "0ace2567b640",
    "gpu.input_batch._combine_sampled_and_draft_tokens_kernel": "fb3184471c24",
    "gpu.input_batch._expand_idx_mapping_kernel": "0c454adac027",
    "gpu.mm.rope._prepare_rope_positions_kernel": "288a6637d22b",
    "gpu.model_states.prompt_embeds._apply_prompt_embeds_kernel": "428f9d3e5cd6",
    "gpu.input_batch._get_num_sampled_and_rejected_kernel": "7606589a6d98",
    "gpu.input_batch._post_update_kernel": "fc8ec4ada595",
    "gpu.input_batch._post_update_num_computed_tokens_kernel": "d42e22eea232",
    "gpu.model_states.mamba_hybrid._scatter_num_accepted_kernel": "2064aed8abbb",
    "gpu.model_states.mamba_hybrid._fill_num_accepted_kernel": "dd8c92d49c3c",
    "gpu.sample.trace_replay._trace_replay_kernel": "f91c15538ac2",
    "gpu.sample.output._compact_sampling_mask_kernel": "6c864c146fc6",
    "gpu.sample.gumbel._gumbel_sample_kernel": "25bb647043c6",
    "gpu.sample.gumbel._temperature_kernel": "69d5e6fb9550",
    "gpu.sample.min_p._min_p_kernel": "49b881391668",
    "gpu.sample.penalties._penalties_kernel": "6a4ccc6e2b5f",
    "gpu.sample.penalties._bincount_kernel": "50e661bdaaea",
    "gpu.sample.logit_bias._bias_kernel": "2be032cfe2d9",
    "gpu.sample.bad_words._bad_words_kernel": "b24314a689d7",
    "gpu.sample.thinking_budget._update_committed_marker_cache_kernel": "e8036bfe9fab",
    "gpu.sample.thinking_budget._thinking_budget_kernel": "00c31a4457a5",
    "gpu.structured_outputs._apply_grammar_bitmask_kernel": "ef24e990a2f1",
    "gpu.metrics.logits._num_nans_kernel": "6fc5c92ba581",
    "gpu.sample.logprob._topk_log_softmax_kernel": "1b98b58f886c",
    "gpu.sample.logprob._ranks_kernel": "8248ef7ecf2f",
    "gpu.sample.logprob._fill_logprob_token_ids_kernel": "587d1c4738b3",
    "gpu.sample.prompt_logprob._prompt_logprobs_token_ids_kernel": "8ab838dc2c13",
    "gpu.spec_decode.rejection_sampler._gather_draft_sampled_kernel": "cad10d49e137",
    "gpu.spec_decode.rejection_sampler._flatten_sampled_kernel": "33ed0651ca23",
    "gpu.spec_decode.standalone_ar.speculator._prepare_prefill_inputs_kernel": "99251c5aa666",
    "gpu.spec_decode.rejection_sampler_utils._compute_local_logits_stats_kernel": "261fe4b34aa5",
    "gpu.spec_decode.rejection_sampler_utils._rejection_kernel": "8608bf4a5824",
    "gpu.spec_decode.rejection_sampler_utils._resample_kernel": "5887d960adbf",
    "gpu.spec_decode.rejection_sampler_utils._insert_resampled_kernel": "04e08d4a4c0f",
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_the_one_that_was_read(name: str) -> None:
    path, kernel = kernel_of(name)
    source = ast.get_source_segment(path.read_text(), kernel)
    assert source is not None
    assert hashlib.sha256(source.encode()).hexdigest()[:12] == BODIES[name], source


@pytest.mark.parametrize(("name", "place"), KERNELS.items())
def test_a_function_takes_arguments_of_its_kernel(name: str, place: str) -> None:
    module, attribute = place.split(".")
    function = getattr(importlib.import_module(f"server.engine.cpu_runner.{module}"), attribute)
    assert find_kernel(name) is not None
    theirs = plain_names(argument.arg for argument in kernel_of(name)[1].args.args)
    assert len(set(theirs)) == len(theirs)
    assert set(inspect.signature(getattr(function, "py_func", function)).parameters) <= set(theirs)
    assert name.removeprefix("gpu.") in function.__doc__.splitlines()[0], "it says which kernel it stands for"


PROBE = """
import vllm.config.vllm as config
from vllm.plugins import load_general_plugins
load_general_plugins()
import sys
from vllm.triton_utils import HAS_TRITON
from vllm.triton_utils.dispatcher import KernelOverride
from server.engine.cpu_runner.registration import find_kernel
from server.engine.cpu_runner.table import KERNELS
replaced = [isinstance(find_kernel(name), KernelOverride) for name in KERNELS]
print(config.HAS_TRITON, HAS_TRITON, all(replaced), any(replaced), "numba" in sys.modules)
import numba
from vllm.platforms import current_platform
from server.engine.cpu_runner import warm_up
warm_up()
current_platform.register_triton_kernel_overrides()  # as every worker does; it looks into every module
print(find_kernel("gpu.input_batch._post_update_kernel").__module__)
"""


@pytest.mark.parametrize(
    ("runner", "expected"), [("1", "True False True True False"), ("0", "False False False False False")]
)
def test_functions_are_in_place_where_v2_is_asked_for(runner: str, expected: str) -> None:
    environment = {**os.environ, "VLLM_USE_V2_MODEL_RUNNER": runner, "VLLM_LOGGING_LEVEL": "ERROR"}
    run = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    first, module = run.stdout.splitlines()[-2:]
    assert first == expected
    assert module == "vllm.v1.worker.gpu.input_batch"


def test_v2_is_refused_by_the_one_name() -> None:
    """vLLM's configuration asks HAS_TRITON of its own module, and for nothing but the runner."""
    import vllm.config.vllm as config

    tree = ast.parse(inspect.getsource(config))
    asking = {
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(node, ast.Name) and node.id == "HAS_TRITON" for node in ast.walk(function))
    }
    assert asking == {"use_v2_model_runner", "_validate_v2_model_runner"}


def test_llvmlite_answers_as_the_workaround_expects() -> None:
    from llvmlite.binding import ffi

    assert isinstance(ffi.lib._fntab, dict)
