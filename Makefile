# `make demo` trains four autoencoders on photos and shows them beside JPEG; `make test` runs the tests. Both first
# install what they need into .venv, once, and again only when setup.py, the constraints or the kernels' source change.

.PHONY: help demo test test_cuda test_sanitized fuzz quality style docs env clean
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.dev
check_dirs := src tests examples benchmarks utils setup.py

help:
	@echo "make demo     train four codes on photos and show them beside JPEG at the same bytes"
	@echo "make test     run the tests (PYTEST_ARGS='-m slow' for the slow ones)"
	@echo "make test_cuda   run the tests that need a GPU, and no others"
	@echo "make test_sanitized   run the kernels' tests with address and undefined-behaviour sanitizers (gcc)"
	@echo "make fuzz     attack every decoder of codes and every reader of images with damaged files (five to ten minutes)"
	@echo "make quality  lint, format, and the repository's own checks"
	@echo "make style    fix what lint and format can fix"
	@echo "make docs     build the documentation into build/docs"
	@echo "make env      only install into $(VENV)"

# pip compiles what it installs: where Python may write no bytecode of its own, each process would compile torch and diffusers anew.
env: $(STAMP)

$(VENV)/.%: setup.py requirements/constraints.txt $(wildcard src/diffusers_lasers/csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt --editable ".[$*]"
	touch $@

# The demo: the same photographs, networks, steps and seed; only the bottleneck differs. Then all of them code the
# photographs that were held out, beside JPEG at the same bytes.
DEMO_OUT ?= outputs/demo
DEMO_ARGS ?= --resolution 64 --max_train_steps 600 --seed 0 --checkpointing_steps 0 --report_to none
DEMO_CODES := dictionary residual_vq scalar vq
# a scalar code has no size of its own: it is as fine as its bits are worth
DEMO_RATE_scalar := --rate_weight 1e-3
launch := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

demo: $(VENV)/.demo
	$(foreach code,$(DEMO_CODES),$(launch) examples/train_dlgan.py --bottleneck $(code) --output_dir $(DEMO_OUT)/$(code) \
		--overwrite_output_dir $(DEMO_ARGS) $(DEMO_RATE_$(code)) &&) true
	$(BIN)/python examples/benchmark_codec.py $(DEMO_CODES:%=$(DEMO_OUT)/%) --formats jpeg --metrics psnr ssim --repeats 1 \
		--output_dir $(DEMO_OUT)

# Two workers, each with its share of the cores, whole files to each: the fixtures of a file are made once.
TEST_WORKERS ?= 2

test: $(STAMP)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# On a machine with a GPU: where .venv has a torch that is built for it, as the default one on Linux is.
test_cuda: $(STAMP)
	DIFFUSERS_LASERS_TEST_CUDA=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) tests/*/test_on_cuda.py $(PYTEST_ARGS)

# The kernels once more, in a folder of their own, with gcc's sanitizers: a read beyond an array ends the run with its line. Left out are tests that
# build, fork or start other processes (a fork can find the sanitizer's locks taken, and then waits for ever), and pursuits without a kernel.
# libstdc++ is loaded early, since the sanitizer looks for its exceptions at the start.
SANITIZED := build/sanitized
sanitize := -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined

test_sanitized: $(STAMP)
	CFLAGS="$(sanitize)" LDFLAGS="$(sanitize)" $(BIN)/python setup.py --quiet build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	test -f $(SANITIZED)/lib/diffusers_lasers/functional/kernels/_kernels*.so
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0 \
		$(BIN)/python -m pytest --capture=sys -p no:cacheprovider -o pythonpath=$(SANITIZED)/lib \
		tests/functional/test_kernels.py tests/functional/test_operands.py \
		-k "not wheels and not optional and not after_a_fork and not in_workers and not iht and not fista" $(PYTEST_ARGS)

# Damaged files for every decoder of codes and every reader of images, by the hundred thousand; `make test` runs a few thousand.
fuzz: $(STAMP)
	$(BIN)/python utils/fuzz_codes.py
	$(BIN)/python utils/fuzz_priors.py
	$(BIN)/python utils/fuzz_images.py

quality: $(STAMP)
	$(BIN)/ruff check $(check_dirs)
	$(BIN)/ruff format --check $(check_dirs)
	$(BIN)/python utils/check_floors.py
	$(BIN)/python utils/check_repo.py
	$(BIN)/python utils/check_doc_toc.py
	$(BIN)/python utils/check_lines.py
	$(BIN)/python -m diffusers_lasers env

style: $(STAMP)
	$(BIN)/ruff check --fix $(check_dirs)
	$(BIN)/ruff format $(check_dirs)

docs: $(STAMP)
	$(BIN)/doc-builder build diffusers_lasers docs/source/en --build_dir build/docs --clean --version main --language en

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache
