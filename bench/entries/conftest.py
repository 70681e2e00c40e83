"""Settings of pytest-benchmark: a tenth of a second per entry, so that all entries take minutes."""


def pytest_configure(config):
    config.option.benchmark_max_time = min(float(config.option.benchmark_max_time), 0.1)
    config.option.benchmark_warmup = True
