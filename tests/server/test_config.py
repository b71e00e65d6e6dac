"""The configuration file: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from server.config import Config, load_config
from server.config.engine import OWNED
from server.config.reference import markdown, rows
from server.config.source import resolve_source
from server.errors import ConfigError

GOOD = """\
large: {model: ./large}
base: {model: base}
experts:
  red: {model: ./red}
  blue: {model: someone/blue, revision: v2}
  lora: {adapter: ./lora}
  mix: {merge: {red: 0.5, lora: -1}}
presets:
  giant: {weighting: none}
  giant-red: {experts: [red], weighting: kl}
  giant-4.1: {experts: [red, blue], weighting: static, alpha: {red: 1.0, blue: -0.5}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("large", "base", "red", "lora"):
        (tmp_path / name).mkdir()
    return tmp_path


def load(folder: Path, text: str = GOOD, *overrides: str) -> Config:
    path = folder / "fusion.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def fault(folder: Path, text: str, *overrides: str) -> str:
    """The one line that a faulty configuration gives, without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    message = str(caught.value).replace(f"{folder}/", "")
    assert "\n" not in message
    return message


def test_a_good_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    config = load(folder)
    assert config.large.model == str(folder / "large")
    assert config.base is not None
    assert config.base.model == str(folder / "base"), "a folder beside the file needs no ./"
    assert (config.experts["blue"].model, config.experts["blue"].revision) == ("someone/blue", "v2")
    assert [expert.kind for expert in config.experts.values()] == ["model", "model", "adapter", "merge"]
    assert config.experts["mix"].merge == {"red": 0.5, "lora": -1.0}
    assert next(iter(config.presets)) == "giant"
    preset = config.presets["giant-4.1"]
    assert [preset.alpha_of(name) for name in preset.experts] == [1.0, -0.5]
    assert config.presets["giant-red"].alpha_max == 2.0
    assert config.presets["giant-red"].alpha_of("red") is None
    assert config.engine == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("experts: [red],", "expertz: [red],", "unknown key 'expertz' in presets.giant-red; did you mean 'experts'?"),
        ("presets:", "preset:", "unknown key 'preset'; did you mean 'presets'?"),
        ("{model: ./red}", "{modle: ./red}", "unknown key 'modle' in experts.red; did you mean 'model'?"),
        ("large: {model: ./large}\n", "", "the file lacks the key 'large'"),
        ("{model: base}", "{}", "base lacks the key 'model'"),
        ("{model: ./large}", "./large", "large: a mapping is needed here, not './large'"),
        ("{model: ./large}", "{model: 3}", "large.model: text is needed here, not 3"),
        ("./red", "./rad", "experts.red.model: './rad' does not exist (looked for rad)"),
        ("./red", "red/v2", "experts.red.model: 'red/v2' does not exist (looked for red/v2)"),
        ("./red", "$HOM/red", "experts.red.model: '$HOM/red' names the environment variable HOM, which is not set"),
        ("./red", "'${A}/r'", "experts.red.model: '${A}/r' names the environment variable A, which is not set"),
        ("./red", "a/b/c", "experts.red.model: 'a/b/c' does not exist (looked for a/b/c)"),
        (
            "./lora",
            "./fusion.yaml",
            "experts.lora.adapter: './fusion.yaml' is a file, not a folder (looked for fusion.yaml)",
        ),
        (
            "{model: ./red}",
            "{}",
            "experts.red: an expert needs exactly one of model, adapter, merge and use; this one has none of them",
        ),
        (
            "{model: ./red}",
            "{model: ./red, adapter: ./lora}",
            "experts.red: an expert needs exactly one of model, adapter, merge and use; this one has model and adapter",
        ),
        (
            "{model: ./red}",
            "{model: ./red, revision: main}",
            "experts.red: revision is only for an id on the hub, not for a folder or a merge",
        ),
        ("{red: 0.5,", "{rad: 0.5,", "experts.mix.merge: there is no expert 'rad'; did you mean 'red'?"),
        (
            "{red: 0.5,",
            "{mix: 0.5,",
            "experts.mix.merge: 'mix' is a merge itself; name the experts that it is made of instead",
        ),
        ("{red: 0.5, lora: -1}", "{}", "experts.mix: merge is empty: it needs at least one {expert: weight}"),
        ("  mix:", "  large:", "experts.large: an expert cannot be called 'large': that is the name of another member"),
        (
            "  mix:",
            "  'm x':",
            "experts.m x: 'm x' is not an expert name: a letter, then letters, digits, '_' or '-', "
            "32 characters at most",
        ),
        (
            "{model: ./red}",
            "{use: rad}",
            "experts.red.use: 'rad' cannot stand here; valid names: large, base, blue, lora, mix",
        ),
        ("{model: ./red}", "{use: red}", "experts.red.use: 'red' cannot stand here; it is this expert"),
        (
            "{model: ./red}",
            "{model: ./red, against: lorra}",
            "experts.red.against: 'lorra' cannot stand here; did you mean 'lora'?",
        ),
        (
            "{model: ./red}",
            "{use: large}",
            "experts.mix.merge: 'red' has no weights of its own; name the expert whose weights it uses",
        ),
        (
            "{model: ./red}",
            "{model: ./red, against: none, prompt: {against: {}}}",
            "experts.red.prompt.against: an expert that is compared with none has one prompt",
        ),
        (
            "{model: ./red}",
            "{model: ./red, prompt: {with: {text: a, system: b}}}",
            "experts.red.prompt.with: text is the whole prompt: leave out system, context, turns and template beside "
            "it",
        ),
        (
            "{model: ./red}",
            "{model: ./red, prompt: {without: {}}}",
            "unknown key 'without' in experts.red.prompt; did you mean 'with'?",
        ),
        (
            "experts: [red],",
            "experts: [red], prompts: {rad: {}},",
            "presets.giant-red.prompts: there is no expert 'rad'; did you mean 'red'?",
        ),
        ("  mix:", "  7:", "experts.7: a name must be text; write it in quotes: '7'"),
        (
            "  giant:",
            "  a/b:",
            "presets.a/b: 'a/b' is not a preset name: a letter or digit, then letters, digits, '.', '_' or '-', "
            "64 characters at most",
        ),
        ("[red],", "[rad],", "presets.giant-red.experts: there is no expert 'rad'; did you mean 'red'?"),
        ("[red],", "red,", "presets.giant-red.experts: a list is needed here, not 'red'"),
        ("[red],", "[red, red],", "presets.giant-red.experts: 'red' is named twice"),
        (
            "[red],",
            "[],",
            "presets.giant-red.experts: weighting 'kl' needs at least one expert; without experts it is 'none'",
        ),
        (
            "weighting: kl}",
            "weighting: kl_grid}",
            "presets.giant-red.weighting: 'kl_grid' is not one of none, static, kl, kl-grid, kl-safe, alone; "
            "did you mean 'kl-grid'?",
        ),
        (
            "weighting: none}",
            "weighting: none, experts: [red]}",
            "presets.giant.experts: weighting 'none' runs the large model only; leave experts out or choose another "
            "weighting",
        ),
        (
            "[red, blue], weighting: static, alpha: {red: 1.0, blue: -0.5}",
            "[red, blue], weighting: alone",
            "presets.giant-4.1.experts: weighting 'alone' needs exactly one expert, not 2",
        ),
        (
            ", alpha: {red: 1.0, blue: -0.5}",
            "",
            "presets.giant-4.1.alpha: weighting 'static' needs a number, or {expert: number}",
        ),
        ("kl}", "kl, alpha: 1}", "presets.giant-red.alpha: only weighting 'static' takes it; this one is 'kl'"),
        (
            "{red: 1.0, blue: -0.5}",
            "{red: 1.0, blu: -0.5}",
            "presets.giant-4.1.alpha.blu: 'blu' is none of the experts; did you mean 'blue'?",
        ),
        ("{red: 1.0, blue: -0.5}", "{red: 1.0}", "presets.giant-4.1.alpha: a number for expert 'blue' is missing"),
        ("blue: -0.5", "blue: x", "presets.giant-4.1.alpha.blue: a number is needed here, not 'x'"),
        (
            "{red: 1.0, blue: -0.5}",
            ".nan",
            "presets.giant-4.1.alpha: a finite number between -100 and 100 is needed here, not nan",
        ),
        ("{red: 1.0, blue: -0.5}", "true", "presets.giant-4.1.alpha: true is not a number"),
        (
            "kl}",
            "kl, alpha_max: 0}",
            "presets.giant-red.alpha_max: a number above 0 and up to 100 is needed here, not 0",
        ),
        (
            "kl}",
            "kl, alpha_max: .inf}",
            "presets.giant-red.alpha_max: a number above 0 and up to 100 is needed here, not inf",
        ),
    ],
)
def test_faults_are_one_line(folder: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert fault(folder, GOOD.replace(old, new, 1)) == f"fusion.yaml: {message}"


def test_no_presets(folder: Path) -> None:
    text = GOOD.partition("presets:")[0] + "presets: {}\n"
    assert fault(folder, text).startswith("fusion.yaml: presets: at least one preset is needed")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "fusion.yaml: a mapping with large, base, experts and presets is needed; it is empty"),
        ("- a\n", "fusion.yaml: a mapping with large, base, experts and presets is needed; it is a list"),
        ("large: [\n", "fusion.yaml:2:1: not valid YAML: "),
        (GOOD.replace("  mix:", "  red:"), "fusion.yaml:7:3: not valid YAML: key 'red' occurs twice"),
    ],
)
def test_unreadable_files(folder: Path, text: str, message: str) -> None:
    assert fault(folder, text).startswith(message)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml: there is no such configuration file"):
        load_config(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "binary.yaml")


def test_overrides(folder: Path) -> None:
    config = load(
        folder,
        GOOD,
        "presets.giant-red.alpha_max=3",
        "presets.giant-4.1.alpha=0.25",
        "presets.new={experts: [mix]}",
        "large.model=./base",
    )
    assert config.presets["giant-red"].alpha_max == 3.0
    assert config.presets["giant-4.1"].alpha == 0.25
    assert (config.presets["new"].experts, config.presets["new"].weighting) == (("mix",), "kl")
    assert config.large.model == str(folder / "base")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nonsense", "--set nonsense: write it as key.key=value, such as engine.max_num_seqs=64"),
        ("a..b=1", "--set a..b=1: write it as key.key=value, such as engine.max_num_seqs=64"),
        ("large.model=[", "--set large.model=[: the value is not valid YAML"),
        (
            "presets.giant-rad.alpha_max=3",
            "--set presets.giant-rad.alpha_max=3: there is no 'giant-rad' in presets; did you mean 'giant-red'?",
        ),
        (
            "presets.giant.weighting.x=3",
            "--set presets.giant.weighting.x=3: presets.giant.weighting is a value, not a section with keys",
        ),
        ("enginee.x=3", "fusion.yaml with --set enginee.x=3: unknown key 'enginee'; did you mean 'engine'?"),
        (
            "presets.giant-red.alpa_max=3",
            "fusion.yaml with --set presets.giant-red.alpa_max=3: unknown key 'alpa_max' in presets.giant-red; "
            "did you mean 'alpha_max'?",
        ),
        (
            "presets.giant-red.alpha_max=x",
            "fusion.yaml with --set presets.giant-red.alpha_max=x: presets.giant-red.alpha_max: a number is needed "
            "here, not 'x'",
        ),
    ],
)
def test_faulty_overrides(folder: Path, override: str, message: str) -> None:
    assert fault(folder, GOOD, override) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("allowed_hosts=[http://a]", "allowed_hosts.0: 'http://a' is not a host's name without scheme and port"),
        ("allowed_hosts=['a:80']", "allowed_hosts.0: 'a:80' is not a host's name without scheme and port"),
        ("allowed_hosts=['a.*']", "allowed_hosts.0: 'a.*' is not a host's name"),
        ("allowed_hosts=a", "allowed_hosts: a list is needed here, not 'a'"),
        ("cors_origins=[app.example.com]", "cors_origins.0: 'app.example.com' is not an origin as browsers send it"),
        ("cors_origins=['https://a/']", "cors_origins.0: 'https://a/' is not an origin as browsers send it"),
        ("cors_origins=['https://A']", "cors_origins.0: 'https://A' is not an origin as browsers send it"),
        ("root_path=fusion", "root_path: 'fusion' is not a path such as /fusion, without a slash at its end"),
        ("root_path=/", "root_path: '/' is not a path such as /fusion"),
        ("root_path=/a?b", "root_path: '/a?b' is not a path such as /fusion"),
        ("root_path=/a/..", "root_path: '/a/..' is not a path such as /fusion"),
        ("metrics_port=0", "metrics_port: 0 is not a port's number, from 1 to 65535"),
        ("metrics_port=true", "metrics_port: true is not a number"),
        ("metrics_host=127.0.0.1", "metrics_host needs metrics_port"),
    ],
)
def test_faults_of_the_network(folder: Path, override: str, message: str) -> None:
    assert f"http.{message}" in fault(folder, GOOD, f"http.{override}").replace("http: metrics", "http.metrics")


def test_names_of_the_network(folder: Path) -> None:
    names = "http.allowed_hosts=[Models.example.com, '*.svc.cluster.local', 'trailing.dot.', a_b, '*']"
    origins = "http.cors_origins=['https://app.example.com', 'http://localhost:3000', 'http://[::1]:3000', 'null', '*']"
    http = load(folder, GOOD, names, origins, "http.root_path=/a/b-c").http
    assert http.allowed_hosts == ("models.example.com", "*.svc.cluster.local", "trailing.dot", "a_b", "*")
    assert len(http.cors_origins) == 5
    assert http.root_path == "/a/b-c"


def test_sharing_the_prefix_cache_is_true_or_false(folder: Path) -> None:
    assert load(folder, GOOD).auth.share_prefix_cache is False
    assert load(folder, GOOD, "auth.share_prefix_cache=true").auth.share_prefix_cache is True
    assert "auth.share_prefix_cache: true or false is needed here, not 1" in fault(
        folder, GOOD, "auth.share_prefix_cache=1"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.max_num_seq=3", "unknown key 'max_num_seq' in engine; did you mean 'max_num_seqs'?"),
        (
            "engine.colour=3",
            "unknown key 'colour' in engine; it must be one of vLLM's engine arguments, by its Python name",
        ),
        ("engine.max_num_seqs=abc", "engine.max_num_seqs: 'abc' does not fit; it should be a valid integer"),
        ("engine.enforce_eager=maybe", "engine.enforce_eager: 'maybe' does not fit; it should be a valid boolean"),
        ("engine.dtype=float17", "engine.dtype: 'float17' does not fit; it should be 'auto', "),
        ("engine.tokenizer=x", "engine.tokenizer cannot be set: the tokenizer is the large model's"),
        (
            "engine.structured_outputs_config={backend: xgrammar}",
            "engine.structured_outputs_config.backend cannot be set: it is always guidance",
        ),
        (
            "engine.structured_outputs_config={disable_any_whitespac: true}",
            "unknown key 'disable_any_whitespac' in engine.structured_outputs_config; did you mean",
        ),
        (
            "engine.structured_outputs_config={disable_any_whitespace: maybe}",
            "engine.structured_outputs_config.disable_any_whitespace: input should be a valid boolean",
        ),
        (
            "engine.compilation_config={mode: 77}",
            "engine.compilation_config.mode: input should be 0, 1, 2 or 3, not 77",
        ),
        ("engine.enable_lora=true", "engine.enable_lora cannot be set: adapters are experts here"),
    ],
)
def test_faulty_engine_arguments(folder: Path, override: str, message: str) -> None:
    assert fault(folder, GOOD, override).startswith(f"fusion.yaml with --set {override}: {message}")


def test_engine_arguments_that_fit(folder: Path) -> None:
    config = load(
        folder,
        GOOD,
        "engine.max_num_seqs=64",
        "engine.gpu_memory_utilization=1",
        "engine.dtype=float32",
        "engine.compilation_config={mode: 0}",
        "engine.attention_backend=CPU_ATTN",
        "engine.structured_outputs_config={disable_any_whitespace: true}",
        "engine.seed=null",
    )
    assert config.engine["max_num_seqs"] == 64


def test_arguments_that_the_server_owns_exist_in_vllm() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    assert set(OWNED) <= {field.name for field in dataclasses.fields(AsyncEngineArgs)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpt2", "gpt2"),
        ("owner/name-1.5_b", "owner/name-1.5_b"),
        ("models", "/models"),
        ("models/a", "/models/a"),
        ("./models/a", "/models/a"),
        ("models/../models/a", "/models/a"),
    ],
)
def test_folders_and_hub_ids(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    found = resolve_source(text, tmp_path)
    assert found == (f"{tmp_path}{expected}" if expected.startswith("/") else expected)


@pytest.mark.parametrize("text", ["./a", "/a/b", "models/b", "a/b/c", "owner/", "", " ", "a b", "a\nb"])
def test_folders_that_do_not_exist(tmp_path: Path, text: str) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(ValueError, match=r"does not exist|is needed here"):
        resolve_source(text, tmp_path)


def test_every_key_is_described() -> None:
    assert all(row.description.endswith(".") for row in rows())


def test_the_committed_reference_is_the_generated_one() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == markdown(), "run: python -m server.config.reference > docs/configuration.md"


def test_the_configuration_imports_no_engine() -> None:
    code = "import sys, server.config; sys.exit('vllm' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_large_model_alone_needs_no_base(folder: Path) -> None:
    alone = "large: {model: ./large}\npresets: {giant: {weighting: none}}\n"
    assert load(folder, alone).base is None
    assert fault(folder, alone + "base: {model: ./base}\n").startswith(
        "fusion.yaml: base: without experts nothing uses"
    )
    guide = "experts: {guide: {use: large, against: large%s}}\n"
    assert load(folder, alone + guide % ", prompt: {against: {}}").base is None
    assert fault(folder, alone + guide % "").startswith("fusion.yaml: experts.guide: large against itself is nothing")
    speculates = "speculation: {draft: guide}\n"
    assert "no member that could draft" in fault(folder, alone + guide % ", prompt: {against: {}}" + speculates)
    with_experts = alone + "experts: {red: {model: ./red}}\n"
    assert fault(folder, with_experts).startswith("fusion.yaml: experts: expert 'red' needs a base")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("admission.max_running=0", "admission.max_running: 0 is not a whole number of 1 or more"),
        ("admission.max_queued=-1", "admission.max_queued: -1 is not a whole number of 0 or more"),
        ("admission.max_running=1.5", "admission.max_running: a whole number is needed here, not 1.5"),
        ("admission.queue_timeout_s=true", "admission.queue_timeout_s: true is not a number"),
        ("admission.queue_timeout=3", "unknown key 'queue_timeout' in admission; did you mean 'queue_timeout_s'?"),
        (
            "limits.request_timeout_s=0",
            "limits.request_timeout_s: 0 is not a number of seconds above 0 and up to a day",
        ),
        ("auth.keys_file=./none.yaml", "auth.keys_file: there is no file"),
    ],
)
def test_faults_of_traffic_settings(folder: Path, setting: str, message: str) -> None:
    assert message in fault(folder, GOOD, setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("{}", "adapters lacks the key 'folder'"),
        ("{folder: nowhere}", "adapters.folder: there is no folder"),
        ("{folder: ., max: 0}", "adapters.max: 0 is not a whole number of 1 or more"),
        ("{folder: ., max: 65}", "adapters.max: "),
        ("{folder: ., max_rank: 1.5}", "adapters.max_rank: a whole number is needed here, not 1.5"),
        ("{folder: ., admin: true}", "adapters.admin: "),
        ("{folder: ., loaded: large}", "large cannot be a file: it is a folder"),
        ("{folder: ., loaded: a/b.yaml}", "b.yaml cannot be a file: its folder is missing"),
        ("{folder: ., ranks: 3}", "unknown key 'ranks' in adapters; did you mean 'max_rank'?"),
    ],
)
def test_faults_of_adapters(folder: Path, setting: str, message: str) -> None:
    assert message in fault(folder, GOOD, f"adapters={setting}")


def test_adapters_need_a_base(folder: Path) -> None:
    alone = "large: {model: ./large}\npresets: {giant: {weighting: none}}\nadapters: {folder: .}\n"
    assert fault(folder, alone).startswith("fusion.yaml: adapters: adapters need a base")
    config = load(folder, alone + "base: {model: ./base}\n")
    assert config.named_experts == config.with_spares().named_experts == ()
    assert len(config.with_spares().experts) == 8
