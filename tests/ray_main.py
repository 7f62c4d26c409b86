"""A program that trains a function of its own main module on Ray, as users' programs do: no node can import it."""

import networks
import ray_programs


def mlp_of_the_main_program(params, batch):
    """A multi-layer perceptron."""
    return networks.mlp(params, batch)


if __name__ == "__main__":
    found = ray_programs.train(model=mlp_of_the_main_program, engine="ray", workers=1)
    print("same" if found == ray_programs.train(model=mlp_of_the_main_program, engine="serial") else "other")
