"""What plugs into other libraries, each in a module of its own, so that none of them has to be installed.

`metafast.integrations.transformers` and `metafast.integrations.lightning` have callbacks for trainers,
`metafast.integrations.optuna` a sampler and a pruner.
"""
