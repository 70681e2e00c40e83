"""Fixtures of the tests of the drop-in."""

import pytest


@pytest.fixture
def calls(monkeypatch):
    """Names of the modules that ran a call in bertgen ("forward", "generation"), in order."""
    from bertgen.dropin import forward, generation

    made: list[str] = []
    for module in (forward, generation):
        run, name = module._run, module.__name__.rpartition(".")[2]

        def counted(*args, run=run, name=name):
            made.append(name)
            return run(*args)

        monkeypatch.setattr(module, "_run", counted)
    return made
