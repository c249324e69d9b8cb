# Make is the index of this project; bare `make` explains it.
#
#   VENV=DIR      the virtual environment (default .venv)
#   LTO=          no link-time optimization: faster builds while you work

VENV    ?= .venv
PY      := $(VENV)/bin/python
CC      := gcc
CLANG   ?= clang
LTO     ?= -flto=auto
BUILD   ?= build
NATIVE  := $(BUILD)/native
GEN     := $(BUILD)/gen

WARN    := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wno-unused-parameter
ARCH    ?= $(if $(filter x86_64,$(shell uname -m)),-march=x86-64-v2,)
CFLAGS  := -std=gnu11 -O3 -g -fPIC -fno-strict-aliasing $(ARCH) $(WARN) -Icffi_build -Icffi_build/xds -Ibpf
LIBS    := -lxdp -lbpf -lzstd -lz -lpthread

SOURCES := $(wildcard $(addprefix cffi_build/,$(addsuffix /*.c,ground cores cores/feed cores/book cores/host stack ports engine)))
SCHEMAS := $(wildcard xdpstack/schemas/*.toml)
GENSRC  := $(patsubst xdpstack/schemas/%.toml,$(GEN)/%.c,$(SCHEMAS))
HEADERS := $(wildcard cffi_build/xds/*.h cffi_build/*/*.h cffi_build/cores/*/*.h bpf/*.h)
OBJECTS := $(patsubst %.c,$(NATIVE)/%.o,$(SOURCES) $(GENSRC) $(GEN)/registry.c)
BPFOBJ  := xdpstack/_bpf/xds_rx.bpf.o
EXT     := xdpstack/_xds$(shell python3 -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))' 2>/dev/null)

.DEFAULT_GOAL := help
.SECONDARY:
.PHONY: help setup build native bpf demo test lint asan fuzz bench bench-peers clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(BUILD)/.setup ## Debian packages and the virtual environment

$(BUILD)/.setup: tools/bootstrap pyproject.toml
	@mkdir -p $(BUILD)
	VENV=$(VENV) tools/bootstrap
	@touch $@

build: setup ## the native core, the BPF objects, .venv/bin/xdpstack
	@$(MAKE) --no-print-directory native bpf

native: $(BUILD)/.ext

$(BUILD)/.ext: $(NATIVE)/libxds.a cffi_build/build.py $(wildcard cffi_build/xds/*.h bpf/*.h)
	$(PY) cffi_build/build.py --archive $(NATIVE)/libxds.a --out . --tmp $(BUILD)/cffi \
	    --cflags "-O2 $(LTO)" --ldflags "$(LTO) $(LIBS)"
	@touch $@

$(NATIVE)/libxds.a: $(OBJECTS)
	@rm -f $@
	gcc-ar rcs $@ $^

$(NATIVE)/%.o: %.c $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LTO) -c $< -o $@

$(GEN)/%.c: xdpstack/schemas/%.toml $(wildcard xdpstack/schema/*.py xdpstack/schemas/*.xml)
	@mkdir -p $(@D)
	$(PY) -m xdpstack.schema c $< -o $@

$(GEN)/registry.c: $(SCHEMAS) xdpstack/schema/emit_c.py
	@mkdir -p $(@D)
	$(PY) -m xdpstack.schema registry $(SCHEMAS) -o $@

bpf: $(BPFOBJ)

xdpstack/_bpf/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/*.h)
	@mkdir -p $(@D)
	$(CLANG) -target bpf -mcpu=v3 -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -Ibpf \
	    -I/usr/include/$(shell uname -m)-linux-gnu -c $< -o $@
	llvm-strip -g $@

demo: build ## the main job in two namespaces that it makes and removes
	$(PY) -m xdpstack demo

test: build ## every test
	$(PY) -m pytest -q xdpstack/tests netns_tests

bench: build bench-peers ## every bench, side by side with its peers
	$(PY) -m xdpstack bench

bench-peers: build ## what benches are measured against: programs in tools/bench and their packages
	tools/bench/packages
	$(MAKE) --no-print-directory -f tools/bench/Makefile network dpdk

lint: build ## ruff, mypy --strict, clang-format, tidy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict xdpstack
	clang-format --dry-run --Werror $(SOURCES) $(HEADERS) $(wildcard bpf/*.c)
	$(PY) tools/tidy.py

clean: ## everything that was built, but not the virtual environment
	rm -rf $(BUILD) xdpstack/_bpf xdpstack/_xds*.so
