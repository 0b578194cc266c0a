"""MAML meta-gradients: time, memory and accuracy, against PyTorch, its peers, JAX and the core's arithmetic limit."""
