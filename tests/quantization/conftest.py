import pytest

from tests.support.int4_models import make_float_model


@pytest.fixture
def saved(tmp_path):
    make_float_model().save_pretrained(tmp_path / "float")
    return tmp_path / "float"
