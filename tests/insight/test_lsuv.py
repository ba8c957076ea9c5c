"""Layer-sequential unit variance: what each layer gives has variance 1; the same every time; or nothing is changed."""

import pytest
import torch
from networks import Bottleneck, Transformer, batch, gpt2, image, seeded, tokens
from torch import nn

import xinit

KEY = xinit.Key(0)


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def variances(model, kinds, *inputs):
    found = {}

    def keep(name):
        return lambda module, args, output: found.update({name: output.var().item()})

    handles = [m.register_forward_hook(keep(n)) for n, m in model.named_modules() if isinstance(m, kinds)]
    model(*inputs)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("start", ["orthogonal", "normal", None])
def test_every_layer_has_unit_variance(start):
    model = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(784, 64)),
            *(nn.GELU(), nn.Linear(64, 10)),
        )
    )
    x = image(17, count=16) * 3 + 1
    assert xinit.lsuv_(model, x, key=KEY, start=start) is model
    found = variances(model, (nn.Conv2d, nn.Linear), x)
    assert len(found) == 4
    for variance in found.values():
        assert variance == pytest.approx(1, abs=0.011)
    if start == "orthogonal":
        gram = model[7].weight @ model[7].weight.mT
        assert torch.allclose(gram / gram[0, 0], torch.eye(10), atol=1e-5)


def test_it_is_deterministic_and_goes_by_names():
    x = batch(64, 16)
    models = [seeded(lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))) for _ in range(3)]
    prints = [xinit.fingerprint(xinit.lsuv_(model, x, key=KEY)) for model in models[:2]]
    assert prints[0] == prints[1]
    torch.manual_seed(3)
    first = xinit.fingerprint(xinit.lsuv_(models[2], x))
    torch.manual_seed(3)
    assert xinit.fingerprint(xinit.lsuv_(models[0], x)) == first != prints[0]


def test_networks_of_every_kind():
    model, x = seeded(lambda: Bottleneck(16, 8, 2)), batch(4, 16, 8, 8)
    running = model.norms[0].running_mean.clone()
    xinit.lsuv_(model, x, key=KEY)
    assert torch.equal(model.norms[0].running_mean, running)
    assert all(v == pytest.approx(1, abs=0.011) for v in variances(model, nn.Conv2d, x).values())
    model = seeded(lambda: Transformer(3))
    xinit.lsuv_(model, tokens(), key=KEY)
    assert all(v == pytest.approx(1, abs=0.011) for v in variances(model, nn.Linear, tokens()).values())
    model = gpt2(n_layer=2).eval()
    table = model.lm_head.weight.clone()
    xinit.lsuv_(model, input_ids=tokens(), key=KEY)
    assert torch.equal(model.lm_head.weight, table)  # tied to the embedding
    from transformers.pytorch_utils import Conv1D

    assert all(v == pytest.approx(1, abs=0.011) for v in variances(model, Conv1D, tokens()).values())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def test_modules_of_several_matrices_are_named():
    model, x = seeded(Recurrent), batch(4, 16)
    before = xinit.fingerprint(model.lstm)
    with pytest.warns(UserWarning, match="lsuv_: module lstm left as it is: several matrices have no one scale"):
        xinit.lsuv_(model, x, key=KEY)
    assert xinit.fingerprint(model.lstm) == before
    assert model(x).var(unbiased=False).item() == pytest.approx(1, abs=0.011)
    attention = seeded(lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
    with pytest.warns(UserWarning, match="lsuv_: module self_attn left as it is"):
        xinit.lsuv_(attention, batch(4, 3, 16), key=KEY)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"key": 3}, TypeError, "key must be an xinit.Key"),
        ({"start": "sparse"}, ValueError, 'start must be "orthogonal", "normal" or None'),
        ({"tolerance": 0}, ValueError, "tolerance must be above 0"),
        ({"inputs": torch.zeros(4, 16)}, ValueError, "what 0 gives for this batch is all the same"),
        ({"inputs": torch.full((4, 16), torch.inf)}, ValueError, "holds NaN or infinity"),
        ({"inputs": torch.ones(4, 15)}, RuntimeError, "mat1 and mat2"),
    ],
)
def test_an_error_leaves_the_model_as_it_was(change, error, words):
    model = seeded(lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)))
    before = xinit.fingerprint(model)
    inputs = change.pop("inputs", batch(4, 16))
    with pytest.raises(error, match=words):
        xinit.lsuv_(model, inputs, **{"key": KEY} | change)
    assert xinit.fingerprint(model) == before
    assert not model[0]._forward_hooks
