"""Tables of text: what is aligned how, and what gives way where a line would be too long."""

import pytest
import torch
from torch import nn

import xinit
from xinit.parameters.table import WIDTH, fold, shortened, table


def test_numbers_are_to_the_right_and_words_to_the_left():
    rows = [("0.bias", "1,024", "12.5 GB/s", "(2, 3)", "+0.5", "nothing"), ("b", "7", "9 GB/s", "(4,)", "", "")]
    assert table(("name", "n", "speed", "shape", "se", "3"), rows).splitlines() == [
        "name        n      speed  shape     se  3",
        "0.bias  1,024  12.5 GB/s  (2, 3)  +0.5  nothing",
        "b           7     9 GB/s  (4,)",
    ]


@pytest.mark.parametrize(
    "cell", ["0", "-1.5", "1e-07", "+2.31", "±0.5", "inf", "nan", "—", "12%", "5.5x", "3 ms", "9/4"]
)
def test_what_a_number_is(cell):
    assert table(("column",), [(cell,)]) == f"column\n{cell:>6}"


@pytest.mark.parametrize("cell", ["0.bias", "{0..3}", "(3,)", "no", "2d conv", "1 of them", "info"])
def test_what_a_number_is_not(cell):
    assert table(("a long column",), [(cell,)]) == f"a long column\n{cell}"


def test_columns_without_entries_are_left_out():
    assert table(("name", "tied", "n"), [("a", "", "1"), ("b", "", "")]) == "name  n\na     1\nb"
    assert table(("name", "n"), []) == "name  n"


def test_cells_of_several_lines():
    assert table(("name", "n"), [("a\n  tied: b", "1"), ("c", "2")]).splitlines() == [
        "name       n",
        "a          1",
        "  tied: b",
        "c          2",
    ]


def test_words_go_on_below_before_names_are_shortened():
    name = "model.layers.{0..31}.post_attention_layernorm.weight"
    words = " ".join(["several words"] * 6)
    lines = table(("name", "method", "std"), [(name, words, "0.02")]).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[1].startswith(f"{name}  several words")
    assert lines[1].endswith("  0.02")
    assert " ".join([*lines[1].split()[1:-1], *" ".join(lines[2:]).split()]) == words
    narrow = table(("name", "method", "std"), [(name, words, "0.02")], 60).splitlines()
    assert max(map(len, narrow)) <= 60
    assert narrow[1].startswith("….{0..31}.post…norm.weight ")


@pytest.mark.parametrize(
    ("name", "width", "short"),
    [
        ("h.0.mlp.c_proj.weight", 21, "h.0.mlp.c_proj.weight"),
        ("encoder.0.layer.0.Attention.relative_attention_bias.weight", 55, "encoder.0.layer.0.Attention.rela…bias.weight"),
        ("text_model.encoder.layer.{0..11}.output.LayerNorm.weight", 45, "….layer.{0..11}.output.LayerNorm.weight"),
        ("text_model.encoder.layer.{0..11}.output.LayerNorm.weight", 20, "….{0..11}.….LayerNorm.weight"),
        ("text_model.encoder.layer.11.output.LayerNorm.weight", 20, "….11.….LayerNorm.weight"),
        ("lm_head.weight", 3, "lm_head.weight"),
    ],
)  # fmt: skip
def test_names_keep_their_numbers(name, width, short):
    assert shortened(name, width) == short


def test_rows_fold_by_the_numbers_in_their_names():
    rows = [(f"{stack}.{i}.w\n  tied: {stack}.{i}.v", "ones") for stack in "ab" for i in range(3)]
    rows.append(("a.3.w", "zeros"))
    assert fold(rows) == [
        ("3", "a.{0..2}.w\n  tied: a.{0..2}.v", "ones"),
        ("3", "b.{0..2}.w\n  tied: b.{0..2}.v", "ones"),
        ("1", "a.3.w", "zeros"),
    ]


class Deep(nn.Module):
    """With long names."""

    def __init__(self):
        super().__init__()
        self.text_encoder_of_the_model = nn.ModuleList(
            nn.ModuleDict({"self_attention_of_the_block": nn.Linear(32, 96), "layer_normalisation": nn.LayerNorm(32)})
            for _ in range(3)
        )
        self.scale_of_the_logits = nn.Parameter(torch.ones(3).half())


def test_a_plan_of_long_names_keeps_to_the_width():
    recipe = {
        "*attention*.weight": xinit.blocks(
            "self_attention_of_the_block", {"q": (32, xinit.xavier_uniform()), "kv": (64, xinit.kaiming_normal(a=0.3))}
        ),
        nn.Linear: xinit.zeros(),
        nn.LayerNorm: xinit.ones(),
    }
    plan = xinit.plan(Deep(), recipe)
    for text in str(plan), plan.folded():
        assert max(map(len, text.splitlines())) <= WIDTH
        assert " dtype " in text  # there are two
        table, _, problems = text.partition("CANNOT be initialised:\n")
        assert problems.startswith("  scale_of_the_logits (3,): no pattern matches it; it belongs to a Deep")
        assert "scale_of_the_logits" not in table
