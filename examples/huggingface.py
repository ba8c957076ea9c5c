"""A model of transformers: without memory until it is needed, by a recipe, and as its own code says but faster.

python examples/huggingface.py
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import xinit

config = GPT2Config(n_layer=4, n_embd=128, n_head=4, vocab_size=1000, bos_token_id=0, eos_token_id=0)
key = xinit.Key(0)


def main() -> None:
    with xinit.deferred() as plan:  # no memory is taken, no number drawn
        model = GPT2LMHeadModel(config)
    row = next(row for row in plan.rows if row.name.endswith("h.0.mlp.c_proj.weight"))
    print(f"{len(plan.rows)} parameters, as transformers' own code says; {row.name}: {row.method}, std {row.std:.4g}")
    xinit.materialize_(model, "cpu", key)
    print(f"drawn where the model is to live: {xinit.fingerprint(model)}")

    built = xinit.init_(GPT2LMHeadModel(config), "gpt2", key)  # torch's numbers, replaced by a recipe's
    print(f"drawn by the recipe for GPT-2:    {xinit.fingerprint(built)}")
    print(xinit.diagnose(built, torch.arange(64).view(2, 32)).summary())

    torch.manual_seed(0)
    with xinit.accelerate():  # torch's generators govern; what is drawn inside is drawn by xinit
        fast = GPT2LMHeadModel(config)
    print(f"drawn by xinit, as it was built:  {xinit.fingerprint(fast)}")


if __name__ == "__main__":
    main()
