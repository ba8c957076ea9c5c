"""Under torch.compile: weights drawn within one graph, from a key that varies, have the bits of eager code; export keeps them.

python examples/compile.py
"""

import sys

import torch

import xinit


def draw(like: torch.Tensor, key: xinit.Key) -> tuple[torch.Tensor, torch.Tensor]:
    weight = xinit.kaiming_normal_(torch.empty_like(like), nonlinearity="gelu", key=key)
    return weight, torch.nn.functional.gelu(like @ weight.T)


class Noise(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + xinit.normal_(torch.empty_like(x), std=0.1, key=xinit.Key(7))


def main(backend: str = "inductor") -> None:
    x = xinit.normal_(torch.empty(64, 64), key=xinit.Key(1))
    compiled = torch.compile(draw, fullgraph=True, backend=backend)
    for seed in range(3):
        key = xinit.Key(seed)
        same = torch.equal(compiled(x, key)[0], draw(x, key)[0])
        print(f"{key}: the compiled function's weights are {'the same bits' if same else 'OTHER bits'}")
    program = torch.export.export(Noise(), (x,))
    print(
        f"exported: {'the same bits' if torch.equal(program.module()(x), Noise()(x)) else 'OTHER bits'}, by these operators:"
    )
    print(*(f"  {node.target}" for node in program.graph.nodes if node.op == "call_function"), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
