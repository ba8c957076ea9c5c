"""Parts of models and of parameters: what a checkpoint lacks, and new rows."""

import warnings

import pytest
import torch
from conftest import same
from torch import nn

import xinit
from xinit import Key

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = Key(0)


def net():
    return nn.Sequential(nn.Embedding(20, 4, padding_idx=3), nn.Linear(4, 4), nn.Linear(4, 2))


# ---- what was never written ----


def test_what_a_state_lacks_is_drawn_and_the_rest_keeps_its_bits():
    whole = xinit.init_(net(), "torch", KEY)
    saved = {name: tensor.clone() for name, tensor in net().state_dict().items() if not name.startswith("2.")}
    with torch.device("meta"):
        model = net()
    model.to_empty(device="cpu").load_state_dict(saved, strict=False)
    rows = xinit.plan(model, "torch", only=xinit.unwritten).rows
    assert [row.name for row in rows] == ["2.weight", "2.bias"]
    xinit.init_(model, "torch", KEY, only=xinit.unwritten)
    for name, tensor in model.state_dict().items():
        assert same(tensor, saved.get(name, whole.state_dict()[name])), name
    before = [tensor.clone() for tensor in model.parameters()]
    xinit.init_(model, "torch", KEY, only=xinit.unwritten)  # nothing is, and that is well
    assert all(map(same, model.parameters(), before))
    assert xinit.plan(net(), "torch", only=xinit.unwritten).rows == ()


def test_a_state_that_lacks_buffers_alone():
    class Rotary(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("freqs", torch.arange(3.0), persistent=False)

        def reset_buffers(self):
            self.freqs = torch.arange(3.0)

    state = Rotary().state_dict()
    with torch.device("meta"):
        model = Rotary()
    model.to_empty(device="cpu").load_state_dict(state)
    model.freqs.data.view(torch.uint8).fill_(77)
    xinit.init_(model, "torch", KEY, only=xinit.unwritten)
    assert torch.equal(model.freqs, torch.arange(3.0))
    assert same(model.linear.weight.detach(), state["linear.weight"])


def test_buffers_that_a_state_lacks_are_made_or_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
            self.rope, self.mask = nn.Module(), nn.Module()
            self.rope.register_buffer("freqs", torch.arange(3.0), persistent=False)
            self.mask.register_buffer("kept", torch.ones(3), persistent=False)
            self.norm = nn.BatchNorm1d(3, affine=False)

        def init_weights(self):
            self.rope.freqs.copy_(torch.arange(3.0))

    with torch.device("meta"):
        model = Model()
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.data.view(-1).view(torch.uint8).fill_(77)
    model.body.load_state_dict(nn.Linear(3, 3).state_dict())
    with pytest.warns(UserWarning, match=r"init_: buffer mask\.kept, which"):
        xinit.init_(model, "torch", KEY, only=xinit.unwritten)
    assert torch.equal(model.rope.freqs, torch.arange(3.0))
    assert torch.equal(model.norm.running_var, torch.ones(3))
    assert not model.norm.num_batches_tracked
    assert xinit.audit(model) == [("mask.kept", "never written")]


def test_what_materialize_found_unwritten():
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.raw = nn.Linear(3, 3), nn.Parameter(torch.empty(3))

    with xinit.deferred():
        model = Custom()
    with pytest.warns(UserWarning, match="raw never written"):
        xinit.materialize_(model, key=KEY)
    before = model.linear.weight.detach().clone()
    xinit.init_(model, {"*": xinit.ones()}, KEY, only=xinit.unwritten)
    assert same(model.linear.weight.detach(), before)
    assert torch.equal(model.raw, torch.ones(3))
    assert not xinit.audit(model)


def test_what_a_checkpoint_of_transformers_lacks(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 20,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(tmp_path)
        model = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    xinit.init_(model, {"*.bias": xinit.zeros(), "*": xinit.normal(std=0.5)}, KEY, only=xinit.unwritten)
    changed = {name for name, tensor in model.state_dict().items() if not same(tensor, before[name])}
    assert changed == {"classifier.weight"}  # its bias is zero before and after
    expected = xinit.normal_(torch.empty(2, 16), std=0.5, key=KEY.fold_in("classifier.weight"))
    assert same(model.classifier.weight.detach(), expected)


# ---- rows ----

ROWS = [(12, None, 0), (0, 5, 0), (-3, None, 0), (2, -2, 0), (1, 3, 1), (1, 3, -1), (0, None, 0)]


@pytest.mark.parametrize(("start", "stop", "axis"), ROWS)
@pytest.mark.parametrize("what", [xinit.normal(std=0.02), xinit.xavier_uniform(), xinit.zeros()], ids=str)
def test_rows_are_those_of_the_whole_and_the_others_keep_their_bits(start, stop, axis, what):
    model = nn.Linear(5, 20, bias=False)
    before = model.weight.detach().clone()
    whole = xinit.init_(nn.Linear(5, 20, bias=False), {"*": what}, KEY).weight.detach()
    xinit.init_(model, {"weight": xinit.rows(start, stop, what, axis)}, KEY)
    at = (slice(None),) * (axis % 2) + (slice(start, stop),)
    expected = before.clone()
    expected[at] = whole[at]
    assert same(model.weight.detach(), expected)


def test_a_plan_names_rows():
    (row,) = xinit.plan(nn.Embedding(20, 4, padding_idx=3), {"*": xinit.rows(12, None, xinit.normal(std=0.02))}).rows
    assert (row.method, row.std) == ("rows 12:: normal", 0.02)
    (row,) = xinit.plan(nn.Linear(4, 4, bias=False), {"*": xinit.rows(0, 2, xinit.ones(), axis=1)}).rows
    assert row.method == "rows 0:2 of axis 1: ones"


def test_the_padding_row_keeps_its_bits_too():
    model = nn.Embedding(20, 4, padding_idx=3)
    model.weight.data[3] = 7
    xinit.init_(model, {"*": xinit.rows(10, None, xinit.normal())}, KEY)
    assert torch.equal(model.weight[3], torch.full((4,), 7.0))


def test_rows_that_there_are_none_of():
    model = nn.Linear(4, 4, bias=False)
    before = model.weight.detach().clone()
    for rows, words in [
        (xinit.rows(4, None, xinit.normal()), "rows: there are none from 4 to None along axis 0"),
        (xinit.rows(0, 2, xinit.normal(), axis=2), "rows: axis 2 is out of range"),
    ]:
        with pytest.raises(ValueError, match=words):
            xinit.init_(model, {"*": rows}, KEY)
    nn.utils.parametrizations.weight_norm(model)
    with pytest.raises(ValueError, match="rows of a computed weight cannot be drawn without the others"):
        xinit.init_(model, {"*": xinit.rows(0, 2, xinit.normal())}, KEY)
    assert same(model.weight.detach(), before)
    for arguments in ((0.5, None, xinit.normal()), (0, True, xinit.normal()), (0, None, 0.02)):
        with pytest.raises(TypeError, match="rows: "):
            xinit.rows(*arguments)
