"""Tries every family and writes docs/models.md.

    python -m tests.families.run [--quantised] [--left] [--most N] [KIND ...]

About 20 s a family on two quiet cores. What was found is kept in `tests/families/outcomes.json`, and a run that is cut
short loses nothing: with names, only these are tried again; with `--left`, only those that were not tried with the
versions that are installed; with `--most`, no more than so many. `--quantised` tries those of `QUANTISED`, about a
minute each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vllm
from rich.console import Console

from tests.families.kinds import DENSE, DEVIATIONS, HYBRID, KINDS, LATENTS, MULTIMODAL, QUANTISED, SPARSE
from tests.families.try_quantised import SAID

ROOT = Path(__file__).parents[2]
OUTCOMES = Path(__file__).with_name("outcomes.json")
PAGE = ROOT / "docs" / "models.md"
GROUPS = {
    "Dense": DENSE,
    "Mixtures of experts": SPARSE,
    "Multi-head latent attention": LATENTS,
    "Attention beside state-space or convolution layers": HYBRID,
    "Multimodal, served as text": MULTIMODAL,
}
TEXT = """\
# Models

Which families of checkpoints have been served, and what came of it. Made by `python -m tests.families.run` with vLLM
{vllm}, Transformers {transformers} and PEFT {peft} on a CPU, in float32: tiny random checkpoints of each family in its
published format, as large model (three layers), base and fine-tuned expert (two) at once, and a LoRA adapter over the
base. *Works* means that every token of 16 random requests (all weightings, greedy and drawn by a seed, some with
logprobs and traces) is the one that Transformers' models and the float64 reference choose.

{works} of the {tried} families tried work. A family that is not here is not refused for that: `logit-fusion check`
says what vLLM and the engine can do with it.
{tables}
In these, vLLM computes something else than Transformers, whose models are made to do the same here:

{deviations}

## Quantised members

vLLM loads quantised members in any role; what a checkpoint leaves unquantised (`ignore`, `modules_to_not_convert`) is
found under the member's own name. Where a column above names a format, all three members were quantised in it, and each
role's greedy answers to four prompts, in bfloat16 on a CPU, are those of plain vLLM with the same checkpoint
(`python -m tests.families.run --quantised`): `int8` and `int4` are compressed-tensors (8 bits in weights and
activations; 4 in weights), `FP8 by row` is its FP8 with a scale a row. Adapters and merges need the base as it was
before quantisation.

On CPUs vLLM {vllm} cannot compute with FP8 that has a scale a block (DeepSeek's, Qwen's) without AMX, nor with FP8 that
has a scale a matrix (`quant_method: fp8`), and with AWQ, GPTQ and int4 not in float32; `logit-fusion check` says so.

## GGUF files

`model: ./model.gguf` is converted once, where Transformers reads its architecture (Llama, Mistral, Qwen 2 and 3, Gemma
2 to 4, Phi 3, GPT-OSS and others), to bfloat16 numbers in `~/.cache/logit-fusion/gguf`, and served from there
(`pip install gguf accelerate`). llama.cpp itself computes with the quantised numbers, so answers differ a little.

## What is refused, and why

- **Encoder-decoder models, and those that do not generate text token by token**: there is no next-token distribution to
  fuse.
- **State-space, convolution and linear-attention layers**: not built (below). Granite 4 with attention alone works.
- **Images and sound**: a multimodal checkpoint answers text; a request with an image is a 400.

What layers with a state of their own would take, by vLLM {vllm}'s source; nothing of it was run. Such a layer keeps one
block a request in the KV cache, which a member's own pass could read and write as it does keys and values. Missing are
the sizes of that state for the model that vLLM sees, the adapters' shared weights, and what vLLM does for the one model
of a step and no member's pass reaches: copying states at block boundaries, without which there is no prefix cache, and
taking them back for rejected drafts and for prompts of a member's own.

| layers | families | on CPUs |
|---|---|---|
| Mamba 2 | Granite 4's hybrids, Falcon-H1, Nemotron-H, Zamba 2 | kernels are there |
| gated delta nets | Qwen3-Next, Qwen3.5, OLMo Hybrid | kernels are there |
| short convolutions | LFM2 | kernels are there |
| Mamba 1 | Jamba, Falcon Mamba | no kernel (`selective_scan_fwd`) |
| Kimi's delta and Ling's linear attention | Kimi Linear, Ling 2.5 | Triton alone |
| Mamba 2, others | Bamba, Plamo 2, MiniMax-Text-01 | vLLM has dropped them |
"""


def main() -> None:
    """Try the families and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"one of {', '.join(KINDS)}")
    parser.add_argument("--left", action="store_true", help="only what was not tried with the versions installed")
    parser.add_argument("--most", type=int, help="try so many at most")
    parser.add_argument("--quantised", action="store_true", help="quantised, instead of as they are")
    options = parser.parse_args()
    outcomes: dict[str, Any] = json.loads(OUTCOMES.read_text()) if OUTCOMES.exists() else {}
    (_try_quantised if options.quantised else _try_families)(outcomes, options)
    _store(outcomes)


def _try_families(outcomes: dict[str, Any], options: argparse.Namespace) -> None:
    console, versions = Console(stderr=True), _versions()
    left = [
        kind
        for kind in options.kinds or KINDS
        if not options.left or outcomes.get(kind, {}).get("versions") != versions
    ][: options.most]

    def keep(found: dict[str, Any]) -> None:
        kept = {key: outcomes.get(found["kind"], {}).get(key) for key in ("quantised",)}
        outcomes[left.pop(0)] = found | {"versions": versions} | {key: value for key, value in kept.items() if value}
        _store(outcomes)
        console.print(f"{found['kind']}: {found['models'][:80]}, adapter: {found['adapter'][:80]}")

    with tempfile.TemporaryDirectory(prefix="families-") as folder:
        while left:
            command = [sys.executable, "-m", "tests.families.try_family", folder, *left]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"kind"'):
                    keep(json.loads(line))
            if process.wait() and left:
                keep({"kind": left[0], "models": "ends the process", "adapter": "-", "tokens": 0, "ties": 0})


def _try_quantised(outcomes: dict[str, Any], options: argparse.Namespace) -> None:
    console, versions = Console(stderr=True), _versions()
    left = [
        (kind, name)
        for kind in options.kinds or QUANTISED
        for name in QUANTISED[kind]
        if not options.left or outcomes[kind].get("quantised", {}).get(name, {}).get("versions") != versions
    ][: options.most]
    for kind, name in left:
        with tempfile.TemporaryDirectory(prefix="families-") as folder:
            command = [sys.executable, "-m", "tests.families.try_quantised", folder, kind, name]
            output = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
        said = [line.removeprefix(SAID) for line in output.splitlines() if line.startswith(SAID)]
        found = said[0] if said else "ends the process"
        outcomes[kind].setdefault("quantised", {})[name] = {"found": found, "versions": versions}
        _store(outcomes)
        console.print(f"{kind} in {name}: {found}")


def _store(outcomes: dict[str, Any]) -> None:
    """Keep what was found, and write the page; a run that is cut short loses nothing."""
    in_order = {kind: outcomes[kind] for kind in KINDS if kind in outcomes}
    OUTCOMES.write_text(json.dumps(in_order, indent=1) + "\n")
    PAGE.write_text(page(in_order))


def _versions() -> dict[str, str]:
    # On CPUs vLLM's package has another name.
    return {"vllm": vllm.__version__, "transformers": version("transformers"), "peft": version("peft")}


def page(outcomes: dict[str, Any]) -> str:
    """docs/models.md over these outcomes."""
    tables = ""
    for title, kinds in GROUPS.items():
        tables += f"\n## {title}\n\n| family | large, base, expert | adapter | quantised | tokens compared |\n"
        tables += "|---|---|---|---|---|\n"
        for kind in kinds:
            if kind in outcomes:
                found = outcomes[kind]
                tokens = f"{found['tokens']}" if found["tokens"] else "-"
                quantised = ", ".join(
                    name if each["found"] == "works" else f"{name} {each['found']}"
                    for name, each in found.get("quantised", {}).items()
                )
                tables += f"| `{kind}` | {found['models']} | {found['adapter']} | {quantised or '-'} | {tokens} |\n"
    works = sum(found["models"] == "works" for found in outcomes.values())
    deviations = "\n".join(f"- `{kind}`: {what}" for kind, what in DEVIATIONS.items() if kind in outcomes)
    return TEXT.format(**_versions(), works=works, tried=len(outcomes), tables=tables, deviations=deviations)


if __name__ == "__main__":
    main()
