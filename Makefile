# Lapidary. `make help` explains the targets; scripts/demo and scripts/test need no make.
.DEFAULT_GOAL := help
.PHONY: help setup build demo test lint check-all soak bench goldens clean

help:      ## this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:     ## install what building and testing needs (Debian packages)
	scripts/setup --tests

build:     ## build everything; the CLI is then at ./build/lapidary
	scripts/setup
	scripts/build release

demo:      ## serve real Gemma weights on two CPU ranks and ask a question
	scripts/demo

test:      ## build and run all tests
	scripts/test

lint:      ## format, layers, protos, thread-safety analysis, clang-tidy
	scripts/setup --tests
	scripts/lint --tidy

check-all: ## everything without a time limit: all sanitizers, all lints
	scripts/check-all

soak:      ## random load under ASan, then under TSan (SOAK_SECONDS=1200 each)
	scripts/soak

bench:     ## build and run the benchmarks (minutes; quiet machine)
	scripts/setup --tests
	scripts/bench

goldens:   ## make the golden data again with Hugging Face transformers (pinned, in .venv-goldens)
	scripts/goldens

clean:     ## remove build/
	rm -rf build
