# The tasks of who works on the course: make TASK. What is made, tools/make.py makes.

.PHONY: setup quick tests lint types tables exercises locks

setup: # into the environment that is active
	python -m pip install -r requirements-dev.txt -e .
	pre-commit install

quick:
	python -m pytest -m "not slow"

tests:
	python -m pytest

lint:
	ruff check .
	ruff format --check .

types:
	mypy

tables exercises locks:
	python tools/make.py $@
