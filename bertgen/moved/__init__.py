"""Classes under the module names that pickles of whole models have from before the modules moved.

`torch.save(model)` writes the module of each class. `bertgen` has this folder in its `__path__`, so `bertgen.linear` is
`moved/linear.py`.
"""
