"""Proves that a configuration takes what is meant, refuses the rest with a hint, and decides ids by results only."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from gptpipe import config as config_module
from gptpipe.config import (
    PRESETS,
    ModelConfig,
    PipelineConfig,
    Section,
    TrainConfig,
    digest,
    field_roles,
    flatten,
    load_config,
    parse,
    preset_values,
)
from gptpipe.config.fields import operational, result
from gptpipe.config.reference import page
from gptpipe.config.text import read_yaml
from gptpipe.errors import UserError

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
SECTIONS = [
    value
    for value in vars(config_module).values()
    if inspect.isclass(value) and issubclass(value, Section) and value is not Section
]


def role_of(info: FieldInfo) -> str:
    extra = info.json_schema_extra
    return str(extra.get("role")) if isinstance(extra, dict) else "none"


def is_section(info: FieldInfo) -> bool:
    return inspect.isclass(info.annotation) and issubclass(info.annotation, Section)


def all_fields() -> list[Any]:
    return [
        pytest.param(kind, name, info, id=f"{kind.__name__}.{name}")
        for kind in SECTIONS
        for name, info in kind.model_fields.items()
    ]


def leaves(kind: type[Section] = PipelineConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field that holds a value, by dotted name."""
    for name, info in kind.model_fields.items():
        if is_section(info):
            yield from leaves(info.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name, info


QWEN3_ONLY = {f"model.{name}" for name in ("n_kv_head", "head_size", "n_inner", "rope_base")}


def another_value(dotted: str, info: FieldInfo) -> Any:
    """A valid value of the field that is not its default."""
    default = info.get_default(call_default_factory=True)
    candidates: list[Any] = ["another", [{"url": "another.txt"}], ["another"], {"another": 1.0}, not default]
    if get_origin(info.annotation) is Literal:
        candidates = list(get_args(info.annotation))
    elif isinstance(default, (int, float)) and not isinstance(default, bool):
        candidates = [default * 2, default + 1, default / 2, default + 0.5]
    candidates += [3, 2]
    for value in candidates:
        try:
            found = with_value(dotted, value)
        except UserError:
            continue
        if value_at(found, dotted) != default:
            return value
    raise AssertionError(f"no second value for {dotted}")


def with_value(dotted: str, value: Any) -> PipelineConfig:
    """Everything at its default but one value, whatever the preset says."""
    over: Any = {dotted.rsplit(".", 1)[-1]: value}
    for part in reversed(dotted.split(".")[:-1]):
        over = {part: over}
    plain = {name: {} for name, info in PipelineConfig.model_fields.items() if is_section(info)}
    for name, info in leaves():
        if "." in name:
            section, field = name.split(".")
            plain[section][field] = info.get_default(call_default_factory=True)
    if dotted in QWEN3_ONLY:
        plain["model"]["architecture"] = "qwen3"
    return parse(PipelineConfig, config_module.deep_merge(plain, over))


def value_at(config: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        config = getattr(config, part)
    return config


# --- every field ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name", "info"), all_fields())
def test_every_field_says_what_it_is_and_whether_it_decides_the_result(
    kind: type[Section], name: str, info: FieldInfo
) -> None:
    assert info.description
    assert len(info.description) > 8
    if not is_section(info):
        assert role_of(info) in ("result", "operational")


@pytest.mark.parametrize(("kind", "name", "info"), all_fields())
def test_every_number_has_a_bound(kind: type[Section], name: str, info: FieldInfo) -> None:
    if info.annotation in (int, float):
        bounds = [bound for item in info.metadata for bound in ("ge", "gt", "le", "lt") if hasattr(item, bound)]
        assert bounds


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_every_model_refuses_unknown_keys(kind: type[Section]) -> None:
    needed = {"url": "a.txt"} if kind.__name__ == "Corpus" else {}
    with pytest.raises(UserError, match="unknown key"):
        parse(kind, {**needed, "no_such_key_at_all": 1})


@pytest.mark.parametrize("name", ["data.workers", "train.nproc", "train.micro_batch", "train.max_hours", "force"])
def test_where_and_how_fast_is_operational(name: str) -> None:
    assert role_of(dict(leaves())[name]) == "operational"


# --- unknown keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"forc": True}, "force"),
        ({"presett": "nano"}, "preset"),
        ({"train": {"learning_rat": 1}}, "train.learning_rate"),
        ({"train": {"lerning_rate": 1}}, "train.learning_rate"),
        ({"train": {"lr": 1}}, "train.learning_rate"),
        ({"train": {"wd": 1}}, "train.weight_decay"),
        ({"train": {"warmup": 1}}, "train.warmup_steps"),
        ({"lr": 1}, "train.learning_rate"),
        ({"ctx": 1}, "model.context_length or evaluate.context_length"),
        ({"data": {"validaton": 0.1}}, "data.validation"),
        ({"sample": {"max_tokens_new": 3}}, "sample.max_new_tokens"),
        ({"steps": 3}, "train.steps"),  # in no section
        ({"model": {"learning_rate": 1}}, "train.learning_rate"),  # in another section
        ({"train": {"n_layer": 2}}, "model.n_layer"),
        ({"train": {"context_length": 2}}, "model.context_length or evaluate.context_length"),
        ({"evaluate": {"temperature": 1}}, "sample.temperature"),
    ],
    ids=str,
)
def test_an_unknown_key_is_refused_with_the_nearest_name(given: dict[str, Any], meant: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(PipelineConfig, given)
    assert caught.value.message.startswith("unknown key")
    assert caught.value.hint == f"did you mean {meant}?"


@pytest.mark.parametrize(("given", "meant"), [("modle", "model"), ("trian", "train"), ("samples", "sample")])
def test_an_unknown_section_is_refused_with_the_nearest_section(given: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(PipelineConfig, {given: {}})
    assert caught.value.where == given
    assert caught.value.hint == f"did you mean {meant}?"


def test_an_unknown_key_inside_a_list_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError) as caught:
        parse(PipelineConfig, {"data": {"corpus": [{"url": "a.txt", "nmae": "a"}]}})
    assert caught.value.where == "data.corpus.0.nmae"
    assert caught.value.hint.rstrip("?").endswith("name")


def test_a_key_that_is_like_nothing_gets_the_sections_in_one_short_line() -> None:
    with pytest.raises(UserError) as caught:
        parse(PipelineConfig, {"zzzzzzzzqqqq": 1})
    assert "data, " in caught.value.hint
    assert "train;" in caught.value.hint
    assert len(caught.value.hint) < 120


def test_the_number_of_further_mistakes_is_told() -> None:
    with pytest.raises(UserError, match=r"and 1 more"):
        parse(PipelineConfig, {"train": {"stepz": 1, "seeed": 2}})


# --- presets -------------------------------------------------------------------------------------------------


def test_the_presets_are_the_files_in_the_package() -> None:
    files = {file.name for file in resources.files("gptpipe").joinpath("presets").iterdir()}
    assert files == {f"{name}.yaml" for name in PRESETS}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_loads_and_survives_a_round_trip(name: str) -> None:
    config = load_config(preset=name)
    assert config.preset == name
    assert PipelineConfig.model_validate(config.model_dump()) == config
    assert PipelineConfig.model_validate_json(config.model_dump_json()) == config
    for key, values in preset_values(name).items():
        for field, value in values.items():
            assert value_at(config, f"{key}.{field}") == value


@pytest.mark.parametrize(
    ("name", "n_layer", "n_head", "n_embd"),
    [
        ("gpt2-124m", 12, 12, 768),
        ("gpt2-355m", 24, 16, 1024),
        ("gpt2-774m", 36, 20, 1280),
        ("gpt2-1558m", 48, 25, 1600),
        ("book-124m", 12, 12, 768),
    ],
)
def test_the_gpt2_presets_have_the_published_shapes(name: str, n_layer: int, n_head: int, n_embd: int) -> None:
    model = load_config(preset=name).model
    assert (model.n_layer, model.n_head, model.n_embd, model.vocab_size) == (n_layer, n_head, n_embd, 50257)


def test_the_book_preset_is_the_lecture_s_model() -> None:
    model = load_config(preset="book-124m").model
    assert (model.context_length, model.dropout, model.qkv_bias, model.tie_weights) == (256, 0.1, False, False)


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    for make in (lambda: load_config(preset="gpt2-124"), lambda: preset_values("gpt2-124")):
        with pytest.raises(UserError, match="did you mean gpt2-124m"):
            make()


# --- files, overrides and their order ------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted((CONFIGS / "valid").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_valid_file_gives_what_it_says(file: Path) -> None:
    import yaml

    config = load_config(file=file)
    given = yaml.safe_load(file.read_text("utf-8")) or {}
    for section, values in given.items():
        for key, value in values.items() if isinstance(values, dict) else []:
            found = value_at(config, f"{section}.{key}")
            if key == "corpus":
                assert [corpus.url for corpus in found] == ["stdlib:", "s3://bucket/books/*.txt"]
                assert [corpus.name for corpus in found] == [None, "books"]
            else:
                assert found == (float(value) if isinstance(found, float) else value)
    assert config.preset == given.get("preset", "nano-modern")


@pytest.mark.parametrize("file", sorted((CONFIGS / "invalid").glob("*.yaml")), ids=lambda file: file.stem)
def test_an_invalid_file_is_refused_by_name(file: Path) -> None:
    expected = file.read_text("utf-8", errors="replace").splitlines()[0].removeprefix("# expect: ")
    with pytest.raises(UserError) as caught:
        load_config(file=file)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    if file.stem != "preset":  # the preset is looked up before the file is read as a whole
        assert str(file) in caught.value.where


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_config(file=tmp_path / "absent.yaml")
    assert caught.value.where == str(tmp_path / "absent.yaml")
    with pytest.raises(UserError):
        load_config(file=tmp_path)


@pytest.mark.parametrize(
    ("override", "dotted", "value"),
    [
        ("train.learning_rate=3e-4", "train.learning_rate", 3e-4),
        ("train.learning_rate=3E-4", "train.learning_rate", 3e-4),
        ("train.learning_rate=0.01", "train.learning_rate", 0.01),
        ("train.steps=200", "train.steps", 200),
        ("train.steps=1e3", "train.steps", 1000),
        (" train.steps = 200", "train.steps", 200),
        ("sample.prompts=[a, 'b, c']", "sample.prompts", ["a", "b, c"]),
        ('sample.prompts=["x=y: z"]', "sample.prompts", ["x=y: z"]),
        ("force=true", "force", True),
        ("init=models:/gptpipe@champion", "init", "models:/gptpipe@champion"),
        ("init=hf:gpt2", "init", "hf:gpt2"),
        ("init=", "init", "scratch"),
        ("evaluate.data=s3://bucket/fixed", "evaluate.data", "s3://bucket/fixed"),
        ("evaluate.data=null", "evaluate.data", None),
        ("init=results/run=3", "init", "results/run=3"),
    ],
)
def test_an_override_is_read_as_meant(override: str, dotted: str, value: Any) -> None:
    assert value_at(load_config(overrides=[override]), dotted) == value


def test_an_override_can_name_the_corpora() -> None:
    config = load_config(overrides=["data.corpus=[a.txt, {url: s3://b/c, name: c}]"])
    assert [(corpus.url, corpus.name) for corpus in config.data.corpus] == [("a.txt", None), ("s3://b/c", "c")]


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("train.steps", "--set"),
        ("=3", "--set"),
        ("", "--set"),
        ("train.steps=many", "--set train.steps=many"),
        ("train.steps=[1", "--set train.steps=[1"),
        ("train.steps=", "--set train.steps="),
        ("train.steps=1.5", "--set train.steps=1.5"),
        ("train.learning_rate=nan", "--set train.learning_rate=nan"),
        ("train.learning_rate=1e999", "--set train.learning_rate=1e999"),
        ("train.learning_rate=-1", "--set train.learning_rate=-1"),
        ("train=3", "--set train=3"),
        ("train.steps.more=3", "--set train.steps.more=3: train.steps"),
        ("data.corpus=[]", "--set data.corpus=[]"),
        ("data.corpus=[{url: a, name: 'not a name'}]", "--set data.corpus=[{url: a, name: 'not a name'}]: "),
        ("preset=[nano]", "--set preset=[nano]"),
        ("train.grad_clip=a\nb", "--set train.grad_clip=a b"),
        (f"train.grad_clip={'a' * 200}", f"--set train.grad_clip={'a' * 58}…"),
    ],
)
def test_a_bad_override_is_refused_by_the_option_in_one_line(override: str, where: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(overrides=[override])
    assert caught.value.where.startswith(where)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["train.stepps=3"], "--set train.stepps=3"),
        (["train.seed=-1", "train.batch_size=2"], "--set train.seed=-1"),
        (["train.seed=x", "train.seed=y"], "--set train.seed=y"),
        (["train.batch_size=2", "train.learning_rate=1"], "{file}: train.steps"),
        (["train.warmup_steps=9", "train.steps=4"], "--set train.warmup_steps=9, --set train.steps=4: train"),
        (["train.warmup_steps=9", "train.seed=1"], "{file}, --set train.warmup_steps=9: train"),
        (["train.seed=3", "modle.n_layer=1"], "--set modle.n_layer=1: modle"),
        (["preset=none"], "--set preset=none"),
    ],
)
def test_what_is_refused_is_named_by_the_file_or_the_option_that_holds_it(
    overrides: list[str], where: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    steps = 0 if where.endswith("train.steps") else 5
    file.write_text(f"train: {{steps: {steps}, batch_size: 1}}\n")
    with pytest.raises(UserError) as caught:
        load_config(file=file, overrides=overrides)
    assert caught.value.where == where.format(file=file)


def test_a_corpus_of_the_file_is_the_file_s_and_one_of_an_option_the_option_s(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("data: {corpus: [{url: a, name: 'not a name'}]}\n")
    with pytest.raises(UserError) as caught:
        load_config(file=file)
    assert caught.value.where == f"{file}: data.corpus.0.name"
    options, data = {"data.corpus.0": "--corpus =b"}, {"corpus": [{"url": "b", "name": ""}]}
    with pytest.raises(UserError) as caught:
        load_config(file=file, options=options, data=data)
    assert caught.value.where == "--corpus =b: data.corpus.0.name"


def test_later_sources_win_over_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: gpt2-124m\ntrain: {steps: 200, batch_size: 3, seed: 1}\n")
    config = load_config(
        file=file, preset="nano", overrides=["train.batch_size=4", "train.batch_size=5"], train={"seed": 6}
    )
    assert (config.preset, config.model.n_layer) == ("nano", 4)
    assert (config.train.steps, config.train.batch_size, config.train.seed) == (200, 5, 6)
    assert config.train.learning_rate == preset_values("nano")["train"]["learning_rate"]


def test_a_merge_changes_neither_side() -> None:
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}
    assert config_module.deep_merge(base, over) == {"a": {"b": 3, "c": 2}, "d": 4}
    assert (base, over) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4})


def test_flattened_values_are_dotted_and_complete() -> None:
    config = load_config(overrides=["train.steps=77"])
    flat = flatten(config)
    assert flat["train.steps"] == 77
    assert flat["model.n_layer"] == config.model.n_layer
    assert set(flat) == {name for name, _ in leaves()} - {"train.mixture"}  # a table without a row

    weighed = flatten(load_config(overrides=["train.mixture.web=0.7", "train.mixture.code=0.3"]))
    assert (weighed["train.mixture.web"], weighed["train.mixture.code"]) == (0.7, 0.3)


# --- what decides the result ---------------------------------------------------------------------------------


def test_defaults_are_left_out_of_what_decides_the_result() -> None:
    for kind in SECTIONS:
        if kind.__name__ not in ("Corpus", "PipelineConfig", "SweepPipeline"):
            assert kind().result_fields() == {}


@pytest.mark.parametrize(("dotted", "info"), [pytest.param(*leaf, id=leaf[0]) for leaf in leaves()])
def test_a_value_decides_the_result_exactly_where_its_field_says_so(dotted: str, info: FieldInfo) -> None:
    same = with_value(dotted, info.get_default(call_default_factory=True)).result_fields()
    if dotted == "preset":
        changed = with_value(dotted, "gpt2-124m").result_fields()
        assert changed != same
        return
    changed = with_value(dotted, another_value(dotted, info)).result_fields()
    others = {"model.architecture": "qwen3"} if dotted in QWEN3_ONLY else {}
    assert same == others
    if role_of(info) == "operational":
        assert changed == {}
    else:
        assert list(changed) == [*others, dotted]
    json.dumps(changed)  # it is hashed as JSON


def test_adding_a_field_with_a_default_changes_no_id() -> None:
    class Wider(TrainConfig):
        brand_new: int = result(7, "A field that a later version adds", ge=0)
        brand_new_path: str = operational("here", "Another one")

    for values in ({}, {"steps": 99, "learning_rate": 1e-3, "nproc": 2}):
        assert digest(Wider(**values).result_fields()) == digest(TrainConfig(**values).result_fields())
    assert Wider(brand_new=8).result_fields() == {"brand_new": 8}


def test_equal_values_written_differently_have_one_id() -> None:
    one = load_config(overrides=["train.learning_rate=0.0003", "train.grad_clip=2"])
    other = load_config(train={"grad_clip": 2.0, "learning_rate": 3e-4})
    assert digest(one.result_fields()) == digest(other.result_fields())


def test_the_digest_is_pinned_and_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"b": [1, 2.5, "é", None, True], "a": {"y": 1, "x": 2}}) == "d70fb86755e230db50bf975c2f26d4a5"
    assert digest({"a": {"x": 2, "y": 1}, "b": [1, 2.5, "é", None, True]}) == "d70fb86755e230db50bf975c2f26d4a5"
    assert digest({"a": 1}) != digest({"a": 1.5})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_field_takes_what_is_not_a_number(value: float) -> None:
    with pytest.raises(UserError):
        parse(TrainConfig, {"grad_clip": value})


def test_a_model_whose_heads_do_not_divide_its_width_is_refused() -> None:
    with pytest.raises(UserError, match="n_embd 64 is not a multiple of n_head 5"):
        parse(ModelConfig, {"n_embd": 64, "n_head": 5})


@pytest.mark.parametrize("preset", PRESETS)
def test_fewer_steps_than_the_presets_have_a_shorter_warm_up(preset: str) -> None:
    usual = preset_values(preset)["train"]
    for steps in (1, 3, 30, usual["steps"], 10 * usual["steps"]):
        found = load_config(preset=preset, overrides=[f"train.steps={steps}"]).train.warmup_steps
        assert found == int(usual["warmup_steps"] * min(1, steps / usual["steps"]))
    given = load_config(preset=preset, overrides=["train.steps=30", "train.warmup_steps=7"]).train.warmup_steps
    assert given == 7


@pytest.mark.parametrize("value", ["2026-13-45", "9" * 5000])
def test_a_value_that_yaml_stumbles_over_is_one_line(value: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.max_tokens") as caught:
        load_config(overrides=[f"evaluate.max_tokens={value}"])
    assert "\n" not in str(caught.value)
    (tmp_path / "a.yaml").write_text(f"evaluate:\n  max_tokens: {value}\n")
    with pytest.raises(UserError):
        load_config(file=tmp_path / "a.yaml")


def test_a_key_that_is_given_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("preset: nano\ntrain:\n  steps: 5\n  batch_size: 2\n  steps: 6\n")
    with pytest.raises(UserError, match=r"'steps' is given twice, in lines 3 and 5") as refused:
        load_config(file=file)
    assert refused.value.where == str(file)
    file.write_text("base: &base {steps: 5}\n")  # an anchor merged in is no second key
    assert read_yaml(file, PipelineConfig) == {"base": {"steps": 5}}


TYPED = {
    "train.spike_action=off": ("train.spike_action", "off"),
    "data.text_field=no": ("data.text_field", "no"),
    "data.text_field=2024": ("data.text_field", "2024"),
    "data.text_field=null": ("data.text_field", "null"),
    "data.text_field=a: b": ("data.text_field", "a: b"),
    "data.text_field='off'": ("data.text_field", "off"),
    "init=a #b": ("init", "a #b"),
    "export=null": ("export", None),
    "export=1.5": ("export", "1.5"),
    "train.compile=off": ("train.compile", False),
    "train.compile=auto": ("train.compile", "auto"),
    "train.deterministic=yes": ("train.deterministic", True),
    "train.learning_rate=3e-4": ("train.learning_rate", 3e-4),
    "train.micro_batch=4": ("train.micro_batch", 4),
    "sample.prompts=[no, 1, 'a: b']": ("sample.prompts", ["no", "1", "a: b"]),
    "train.mixture={on: 1, b: 2}": ("train.mixture", {"on": 1, "b": 2}),
}


@pytest.mark.parametrize("text", TYPED)
def test_what_is_written_is_read_by_the_type_of_its_key(text: str, tmp_path: Path) -> None:
    key, expected = TYPED[text]
    assert flat_value(load_config(overrides=[text]), key) == expected
    name, _, value = text.partition("=")
    section, _, leaf = name.rpartition(".")
    if " #" in value or ": b" in value:
        return  # that is another text in a file
    file = tmp_path / "a.yaml"
    file.write_text(f"{section}:\n  {leaf}: {value}\n" if section else f"{leaf}: {value}\n")
    assert flat_value(load_config(file=file), key) == expected
    file.write_text(f"{name}: {value}\n")  # the flat key
    assert flat_value(load_config(file=file), key) == expected


def flat_value(config: PipelineConfig, key: str) -> object:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(
    "text",
    ["train.steps: 3\ntrain:\n  steps: 4\n", "train:\n  steps: 4\ntrain.steps: 3\n", "train: 3\ntrain.steps: 3\n"],
)
def test_a_flat_key_that_is_given_as_a_section_too_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match="given"):
        load_config(file=tmp_path / "a.yaml")


def test_flat_keys_and_sections_are_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train.steps: 30\ntrain:\n  batch_size: 2\ntrain.warmup_steps: 3\n")
    train = load_config(file=tmp_path / "a.yaml").train
    assert (train.steps, train.batch_size, train.warmup_steps) == (30, 2, 3)


def test_the_page_of_all_keys_is_made_from_the_models() -> None:
    """After a change: `python -m gptpipe.config.reference > gptpipe/config/README.md`."""
    written = (Path(__file__).parents[2] / "gptpipe" / "config" / "README.md").read_text("utf-8")
    assert written == page()
    for key in field_roles(PipelineConfig):
        assert f"| `{key}`" in written


def test_values_that_stand_for_more_than_fits_into_memory_are_refused_in_a_short_line(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for before, name in pairwise("abcdefghijklm"):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")  # 10^13 in all
    (tmp_path / "bomb.yaml").write_text("\n".join([*lines, "train: {steps: *m}"]))
    with pytest.raises(UserError, match=r"train\.steps: input should be a valid integer") as refused:
        load_config(file=tmp_path / "bomb.yaml")
    assert len(str(refused.value)) < 2000
