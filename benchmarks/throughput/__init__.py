"""How fast an optimizer step is, against PyTorch, its peers and the machine's memory."""
