"""Which initialisation? Thirty ReLU layers die by Xavier's; the recommended recipe brings them to life, and they learn.

python examples/which_init.py
"""

import torch
from torch import nn

import xinit

x = xinit.normal_(torch.empty(128, 64), key=xinit.Key(1))
target = (x[:, 0] > 0).long()
net = nn.Sequential(*(m for _ in range(30) for m in (nn.Linear(64, 64), nn.ReLU())), nn.Linear(64, 2))


def train(steps: int = 120) -> float:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
    return loss.item()


def main() -> None:
    xinit.init_(net, {"*.bias": xinit.zeros(), "*": xinit.xavier_normal()}, xinit.Key(0))
    recipe = xinit.recommend(net, x)
    print(xinit.diagnose(net, x).summary())
    print(f"loss after 120 steps: {train():.3f}; that of a guess is 0.693\n")
    print(f"{recipe.rows[0].name}: {recipe.rows[0].method}, for {recipe.rows[0].why}\n")
    xinit.init_(net, recipe, xinit.Key(0))
    print(xinit.diagnose(net, x).summary())
    print(f"loss after 120 steps: {train():.3f}")


if __name__ == "__main__":
    main()
