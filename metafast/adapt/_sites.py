"""Where a frozen model adapts: the kinds of sites."""

from metafast.adapt._site import BATCH_NORMS, CONVOLUTIONS, NORMS, Site, Tap, Values
from metafast.adapt._site_channels import Bias, FiLM, Norm
from metafast.adapt._site_full import FullConv2d, FullEmbedding, FullLinear
from metafast.adapt._site_lora import LoRAConv2d, LoRALinear

__all__ = [
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "NORMS",
    "Bias",
    "FiLM",
    "FullConv2d",
    "FullEmbedding",
    "FullLinear",
    "LoRAConv2d",
    "LoRALinear",
    "Norm",
    "Site",
    "Tap",
    "Values",
]
