# Make is the index of this project; bare `make` explains it.
#
#   VENV=DIR      the virtual environment (default .venv)
#   LTO=          no link-time optimization: faster builds while you work
#   FUZZ_SECONDS= how long each fuzzer runs (default 60)
#   VM_SECONDS=   when the virtual machine of test-vm is killed (default 3600)
#   VMLAB=DIR     where its kernel lies (default build/vmlab)

VENV    ?= .venv
PY      := $(VENV)/bin/python
CC      := gcc
CLANG   ?= clang
LTO     ?= -flto=auto
BUILD   ?= build
OUT     ?= .
OPT     ?= -O3
SAN     ?=
FUZZ_SECONDS ?= 60
VM_SECONDS ?= 3600
NATIVE  := $(BUILD)/native
GEN     := $(BUILD)/gen

WARN    := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wno-unused-parameter
ARCH    ?= $(if $(filter x86_64,$(shell uname -m)),-march=x86-64-v2,)
CFLAGS  := -std=gnu11 $(OPT) $(SAN) -g -fPIC -fno-semantic-interposition -fno-strict-aliasing $(ARCH) $(WARN) -Icffi_build -Icffi_build/xds -Ibpf
LIBS    := -lxdp -lbpf -lzstd -lz -lpthread

SOURCES := $(wildcard $(addprefix cffi_build/,$(addsuffix /*.c,ground cores cores/feed cores/book cores/host cores/tcp cores/fix cores/ws cores/tls stack ports engine)))
SCHEMAS := $(wildcard xdpstack/schemas/*.toml)
GENSRC  := $(patsubst xdpstack/schemas/%.toml,$(GEN)/%.c,$(SCHEMAS))
HEADERS := $(wildcard cffi_build/xds/*.h cffi_build/*/*.h cffi_build/cores/*/*.h bpf/*.h)
OBJECTS := $(patsubst %.c,$(NATIVE)/%.o,$(SOURCES) $(GENSRC) $(GEN)/registry.c)
BPFOBJ  := $(patsubst bpf/%.c,xdpstack/_bpf/%.o,$(wildcard bpf/*.bpf.c))
EXT     := xdpstack/_xds$(shell python3 -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))' 2>/dev/null)

.DEFAULT_GOAL := help
.SECONDARY:
.PHONY: help setup build native cores bpf demo trace-deps test test-vm soak compliance lint asan tsan audit fuzz bench bench-peers clean

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
	$(PY) cffi_build/build.py --archive $(NATIVE)/libxds.a --out $(OUT) --tmp $(BUILD)/cffi \
	    --cflags "-O2 $(LTO) $(SAN)" --ldflags "$(LTO) $(SAN) $(LIBS)"
	@touch $@

$(NATIVE)/libxds.a: $(OBJECTS)
	@rm -f $@
	gcc-ar rcs $@ $^

# The pure layers alone, without link-time code, for programs in C that any compiler links.
CORES := $(filter cffi_build/ground/% cffi_build/cores/% cffi_build/stack/%,$(SOURCES))
cores: ## build/cores: libxds_cores.a (ground, cores, stack) and its headers, for programs in C
	@$(MAKE) --no-print-directory $(BUILD)/cores/native/libxds_cores.a BUILD=$(BUILD)/cores LTO=
	@mkdir -p $(BUILD)/cores/include/xds && cp cffi_build/xds/*.h $(BUILD)/cores/include/xds/
	@cp $(BUILD)/cores/native/libxds_cores.a $(BUILD)/cores/

$(NATIVE)/libxds_cores.a: $(patsubst %.c,$(NATIVE)/%.o,$(CORES))
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

bpf: $(BPFOBJ) $(patsubst netns_tests/%.c,$(BUILD)/tests/%.o,$(wildcard netns_tests/*.bpf.c))

BPFC := -target bpf -mcpu=v3 -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -Ibpf \
    -I/usr/include/$(shell uname -m)-linux-gnu

xdpstack/_bpf/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/*.h)
	@mkdir -p $(@D)
	$(CLANG) $(BPFC) -c $< -o $@
	llvm-strip -g $@

$(BUILD)/tests/%.bpf.o: netns_tests/%.bpf.c $(wildcard bpf/*.h)
	@mkdir -p $(@D)
	$(CLANG) $(BPFC) -c $< -o $@

.PHONY: test-nic
test-nic: build ## the kernel's AF_XDP list on real ports: IFACE=eth1 [PEER=eth2], or one looped back
	@test -n "$(IFACE)" || { echo "test-nic: name an interface: make test-nic IFACE=eth1 [PEER=eth2]" >&2; exit 2; }
	XDPSTACK_TEST_NIC=$(IFACE) XDPSTACK_TEST_PEER=$(PEER) $(PY) -m pytest -q netns_tests/test_xsk_list.py

demo: build ## the main job in two namespaces that it makes and removes
	$(PY) -m xdpstack demo

trace-deps: ## what `xdpstack trace` needs: python3-bpfcc and kernel headers
	tools/trace/packages

test: build ## every test
	-tools/trace/packages
	$(PY) -m pytest -q xdpstack/tests netns_tests

test-vm: build ## tests that need network cards and a newer kernel, in an emulated machine (tools/vmlab)
	tools/vmlab/test --timeout $(VM_SECONDS)

compliance: ## COMPLIANCE.md from the tests' rfc() tags
	$(PY) tools/compliance.py

soak: build ## the long form: a hundred million frames through one port, two hundred kills, hundreds of handovers
	SOAK_FRAMES=100000000 $(PY) -m pytest -q netns_tests/test_soak.py
	$(MAKE) --no-print-directory audit XDS_CONFIGURATIONS=100
	XDS_KILLS=200 XDS_HANDOVERS=500 XDS_RUNS=50 $(PY) -m pytest -q netns_tests/test_opener_kill.py netns_tests/test_handover.py
	XDS_TCP_BYTES=1073741824 XDS_TCP_CONNECTIONS=10000 $(PY) -m pytest -q netns_tests/test_tcp_linux.py netns_tests/test_tcp_linux6.py
	XDS_TCP_IMPAIRED_BYTES=67108864 $(PY) -m pytest -q netns_tests/test_tcp_impaired.py netns_tests/test_tcp_impaired6.py
	XDS_TCP_GONE=1 $(PY) -m pytest -q netns_tests/test_tcp_interface_gone.py
	XDS_DRILL_LONG=1 XDS_DRILL_SEEDS=2000 $(PY) -m pytest -q netns_tests/test_drill_kernel.py netns_tests/test_drill_differential.py
	XDS_TCP_SEEDS=10000 $(PY) -m pytest -q xdpstack/tests/test_sim.py xdpstack/tests/test_sim_stack.py
	XDS_TAPE_KILLS=1000 XDS_RING_KILLS=1000 $(PY) -m pytest -q xdpstack/tests/test_tape.py xdpstack/tests/test_ring_sides.py
	XDS_SHARED_RECORDS=3600000000 $(PY) -m pytest -q xdpstack/tests/test_shared_stress.py

bench: build bench-peers ## every bench, side by side with its peers
	$(PY) -m xdpstack bench

bench-peers: build ## what benches are measured against: programs in tools/bench and their packages
	tools/bench/packages
	tools/bench/peers
	$(MAKE) --no-print-directory -f tools/bench/Makefile network dpdk

lint: build ## ruff, mypy --strict, clang-format, tidy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict xdpstack
	clang-format --dry-run --Werror $(SOURCES) $(HEADERS) $(wildcard bpf/*.c netns_tests/*.c)
	$(PY) tools/tidy.py

# The core with ASan and UBSan, in a tree of links of its own, and the pure tests on it.
ASAN := $(BUILD)/asan
asan: build ## the pure tests, and segments beside Linux's answers, on a core with AddressSanitizer and UBSan
	@rm -rf $(ASAN)/tree && mkdir -p $(ASAN)/tree
	cp -rs $(CURDIR)/xdpstack $(CURDIR)/cffi_build $(CURDIR)/tools $(CURDIR)/.ci $(CURDIR)/netns_tests $(ASAN)/tree/ && rm -f $(ASAN)/tree/xdpstack/_xds*.so
	cp $(BUILD)/.setup $(ASAN)/.setup && rm -f $(ASAN)/.ext
	$(MAKE) --no-print-directory native BUILD=$(ASAN) OUT=$(ASAN)/tree LTO= OPT=-O1 \
	    SAN="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -DXDS_AUDIT"
	cd $(ASAN)/tree && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	    $(abspath $(PY)) -m pytest -q --capture=sys -p no:cacheprovider -c $(CURDIR)/pyproject.toml --rootdir . xdpstack/tests \
	    netns_tests/test_drill_differential.py $(ASAN_TESTS)

# Threads over one ring and one tape, every record checked, long enough for the race detector; `make test` runs them briefly.
TSAN := $(BUILD)/tsan
TSAN_RECORDS ?= 300000
tsan: ## ring and tape between threads, under ThreadSanitizer
	@mkdir -p $(TSAN)
	@set -e; for name in ring tape; do \
	    gcc -std=gnu11 -D_GNU_SOURCE -O2 -g -fsanitize=thread -Wno-tsan -Icffi_build -Icffi_build/xds \
	        xdpstack/tests/$${name}_stress.c cffi_build/ground/$$name.c -o $(TSAN)/$$name -lpthread; \
	    for bytes in 4096 65536; do \
	        echo "tsan: $$name, $$bytes bytes, $(TSAN_RECORDS) records"; \
	        setarch -R $(TSAN)/$$name $(TSAN_RECORDS) $$bytes; \
	    done; \
	done

# The core with the audit of frame ownership alone, fast enough for a million frames a configuration.
AUDIT := $(BUILD)/audit
XDS_CONFIGURATIONS ?= 8
audit: build ## AF_XDP ports over veth on a core that aborts when a frame has two owners
	@rm -rf $(AUDIT)/tree && mkdir -p $(AUDIT)/tree
	cp -rs $(CURDIR)/xdpstack $(CURDIR)/cffi_build $(CURDIR)/netns_tests $(AUDIT)/tree/ && rm -f $(AUDIT)/tree/xdpstack/_xds*.so
	cp $(BUILD)/.setup $(AUDIT)/.setup && rm -f $(AUDIT)/.ext
	$(MAKE) --no-print-directory native BUILD=$(AUDIT) OUT=$(AUDIT)/tree LTO= SAN=-DXDS_AUDIT
	cd $(AUDIT)/tree && XDS_CONFIGURATIONS=$(XDS_CONFIGURATIONS) $(abspath $(PY)) -m pytest -q -p no:cacheprovider \
	    -c $(CURDIR)/pyproject.toml --rootdir . $(addprefix netns_tests/test_xsk, .py _modes.py _shared.py _live.py)

# Every tools/fuzz/fuzz_*.c against the whole core, for FUZZ_SECONDS each. Finds stay in build/fuzz/found. OpenSSL is
# linked for one that plays a server of it.
FUZZ := $(BUILD)/fuzz
fuzz: build ## libFuzzer on every parser, a minute each
	$(MAKE) --no-print-directory $(FUZZ)/native/libxds.a BUILD=$(FUZZ) CC=$(CLANG) LTO= OPT=-O1 WARN=-Wall \
	    SAN="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -DXDS_AUDIT"
	@mkdir -p $(FUZZ)/found
	@set -e; for source in tools/fuzz/fuzz_*.c; do \
	    name=$$(basename $$source .c); mkdir -p $(FUZZ)/corpus/$$name; \
	    $(CLANG) -std=gnu11 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	        -Icffi_build -Icffi_build/xds -Ibpf -I$(GEN) $$source $(FUZZ)/native/libxds.a $(LIBS) -lssl -lcrypto -o $(FUZZ)/$$name; \
	    echo "fuzz: $$name for $(FUZZ_SECONDS) s; what it finds: $(FUZZ)/found/$$name-*"; \
	    $(FUZZ)/$$name -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 -verbosity=0 \
	        -artifact_prefix=$(FUZZ)/found/$$name- $(FUZZ)/corpus/$$name; \
	done

clean: ## everything that was built, but not the virtual environment
	rm -rf $(BUILD) xdpstack/_bpf xdpstack/_xds*.so
