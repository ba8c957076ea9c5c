// Initialises a model by names, and prints the fingerprint that Python prints for the same:
//
//   model = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
//   recipe = {"*.weight": xinit.kaiming_normal(nonlinearity="relu"), "*.bias": xinit.zeros()}
//   print(xinit.fingerprint(xinit.init_(model, recipe, xinit.Key(0))))
#include <torch/torch.h>
#include <xinit/xinit.h>

#include <iostream>

int main() {
  torch::nn::Sequential model(torch::nn::Linear(784, 256), torch::nn::ReLU(), torch::nn::Linear(256, 10));
  const xinit::Key key{0};

  for (const auto& parameter : model->named_parameters()) {
    if (parameter.value().dim() == 1)
      torch::nn::init::zeros_(parameter.value());
    else
      xinit::kaiming_normal_(parameter.value(), 0, "fan_in", "relu", {key.fold_in(parameter.key())});
  }
  std::cout << xinit::fingerprint(model->named_parameters().pairs()) << "\n";

  // The lower half of the first weight, as another process might hold it: the same numbers, from its place in the
  // whole.
  at::Tensor half = torch::empty({128, 784});
  xinit::FillOptions options{key.fold_in("0.weight")};
  options.global_shape = {{256, 784}};
  options.offsets = {{128, 0}};
  xinit::kaiming_normal_(half, 0, "fan_in", "relu", options);
  std::cout << half.equal(model->named_parameters()["0.weight"].slice(0, 128)) << "\n";
}
