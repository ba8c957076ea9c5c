"""Models, and whether one that xinit has drawn could have come from its own constructor."""

import math

import torch
from torch import nn

ROUNDS = 6  # of the constructor, to compare with
LIMIT = 5.0  # standard errors


def images(model):
    return model(torch.randn(4, 3, 9, 9))


def vectors(model):
    return model(torch.randn(16, next(iter(model.children()), model).in_features))


# torch's own modules, and what each makes of inputs.
MODULES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(40, 80), nn.LayerNorm(80), nn.ReLU(), nn.Linear(80, 10)), vectors),
    "bilinear": (lambda: nn.Bilinear(9, 8, 7), lambda model: model(torch.randn(9, 9), torch.randn(9, 8))),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.BatchNorm2d(16),
            nn.PReLU(),
            nn.ConvTranspose2d(16, 8, 3, groups=2),
            nn.GroupNorm(2, 8),
        ),
        images,
    ),
    "lstm": (lambda: nn.LSTM(12, 20, 2, bidirectional=True), lambda model: model(torch.randn(9, 8, 12))[0]),
    "gru": (lambda: nn.GRU(12, 20), lambda model: model(torch.randn(9, 8, 12))[0]),
    "padded embedding": (lambda: nn.Embedding(50, 20, padding_idx=3), lambda model: model(torch.arange(50))),
    "embedding bag": (
        lambda: nn.EmbeddingBag(50, 20, padding_idx=-1),
        lambda model: model(torch.arange(48).view(6, 8)),
    ),
    "attention": (
        lambda: nn.MultiheadAttention(16, 2, kdim=12, vdim=10, add_bias_kv=True, batch_first=True),
        lambda model: model(torch.randn(4, 6, 16), torch.randn(4, 5, 12), torch.randn(4, 5, 10))[0],
    ),
    "transformer": (
        lambda: nn.Transformer(16, 2, 1, 1, 32, batch_first=True, dropout=0.0),
        lambda model: model(torch.randn(4, 6, 16), torch.randn(4, 5, 16)),
    ),
}


def private_trunc_normal_(tensor, mean=0.0, std=1.0, a=-2.0, b=2.0):
    """As libraries carry it along: by the inverse of the distribution function, in operators of torch."""
    low, high = (math.erf((bound - mean) / std / math.sqrt(2)) for bound in (a, b))
    with torch.no_grad():
        return tensor.uniform_(low, high).erfinv_().mul_(std * math.sqrt(2)).add_(mean).clamp_(a, b)


def eager(build):
    """What the constructor itself makes, several times, from fixed seeds."""
    models = []
    for seed in range(ROUNDS):
        torch.manual_seed(seed)
        models.append(build())
    return models


def same_structure(model, reference):
    """Names, shapes, dtypes, requires_grad, types, ties, and buffers' values."""
    names = dict(reference.named_parameters(remove_duplicate=False))
    ours = dict(model.named_parameters(remove_duplicate=False))
    assert list(ours) == list(names)
    for name, parameter in ours.items():
        other = names[name]
        assert (type(parameter), parameter.shape, parameter.dtype, parameter.requires_grad, parameter.device) == (
            (type(other), other.shape, other.dtype, other.requires_grad, other.device)
        ), name
        assert parameter.stride() == other.stride(), name
        assert parameter.__dict__.keys() == other.__dict__.keys(), name
    assert list(dict(model.named_parameters())) == list(dict(reference.named_parameters()))
    assert {n: b.dtype for n, b in model.named_buffers()} == {n: b.dtype for n, b in reference.named_buffers()}
    assert list(model.state_dict()) == list(reference.state_dict())


def deviations(model, references):
    """Standard errors that each parameter and buffer is off by: mean, std, and infinity where a constant is not the constant.

    An element that all references agree on is a constant; the others are draws from one distribution.
    """
    tensors = [dict([*m.named_parameters(), *m.named_buffers()]) for m in (model, *references)]
    worst = {}
    for name, tensor in tensors[0].items():
        samples = torch.stack([other[name].detach().double() for other in tensors[1:]])
        values = tensor.detach().double()
        constant = (samples == samples[0]).all(0)
        if not torch.equal(values[constant], samples[0][constant]):
            worst[name] = math.inf
            continue
        x, y = values[~constant], samples[:, ~constant].flatten()
        if not x.numel():
            continue
        std, each = y.std(), 1 / x.numel() + 1 / y.numel()
        kurtosis = ((y - y.mean()) ** 4).mean() / std**4
        # Of few values not even the mean is normal: the squares of a handful are judged by the mean's rule alone.
        mean_error = (x.mean() - y.mean()).abs() / (std * each**0.5)
        std_error = (((x - y.mean()) ** 2).mean().sqrt() - std).abs() / (std * ((kurtosis - 1) / 4 * each) ** 0.5)
        worst[name] = max(mean_error.item(), std_error.item() if x.numel() >= 8 else 0.0)
    return worst


def agree(model, references):
    """Structure, constants and moments."""
    same_structure(model, references[0])
    off = {name: error for name, error in deviations(model, references).items() if not error <= LIMIT}
    assert not off


def outputs_agree(model, references, forward):
    """The variance of what the model makes of fixed inputs lies within what the constructor's models spread over."""

    def log_variance(other: nn.Module) -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            return forward(other.eval()).double().var().log().item()

    spread = torch.tensor([log_variance(other) for other in references], dtype=torch.float64)
    assert abs(log_variance(model) - spread.mean()) <= LIMIT * spread.std() * (1 + 1 / ROUNDS) ** 0.5 + 1e-6
