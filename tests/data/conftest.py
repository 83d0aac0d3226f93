import datasets
import hypothesis
import pytest

hypothesis.settings.register_profile("no-deadline", deadline=None)  # how long an example takes says nothing here
hypothesis.settings.load_profile("no-deadline")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Return a cache of `datasets` for each test, so that nothing read before decides what is read now."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    return cache
