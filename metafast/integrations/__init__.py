"""Callbacks for trainers of other libraries, each in a module of its own, so that none of them has to be installed.

`metafast.integrations.transformers` and `metafast.integrations.lightning`.
"""
