# The two commands for a fresh clone are `make demo` and `make test`; both set up .venv by themselves.
.PHONY: demo test check format lint types layers clean
bin := .venv/bin

demo:  ## train SMoP and two baselines on the embedded model, print a comparison and draw it
	@tools/setup dev
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(bin)/smop demo

test:  ## the test suite: offline, on the CPU, a few minutes
	@tools/setup dev
	@OMP_NUM_THREADS=1 $(bin)/python -m pytest -q -n 2 --dist loadfile  # what a file's tests share is made once

check: format lint types layers test  ## everything a change must pass

format:
	@tools/setup dev
	@$(bin)/ruff format --check src tests tools benchmarks

lint:
	@tools/setup dev
	@$(bin)/ruff check src tests tools benchmarks

types:
	@tools/setup dev
	@$(bin)/mypy

layers:  ## imports point down only
	@tools/setup dev
	@$(bin)/lint-imports

clean:
	rm -rf .venv dist build .pytest_cache .hypothesis .ruff_cache .mypy_cache
