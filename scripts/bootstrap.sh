#!/usr/bin/env bash
# Make .venv hold calibit and what it needs. A second call does only what has changed since.
#
#   scripts/bootstrap.sh build   torch, the build tools and the extension: enough to import calibit
#   scripts/bootstrap.sh demo    also the run-time dependencies and what `make demo` needs (the default)
#   scripts/bootstrap.sh test    also what tests, linters and notebooks need
#
# Settings, all optional; pip's own (PIP_INDEX_URL, PIP_FIND_LINKS, ...) are honoured:
#   PYTHON        the Python that .venv is made from (python3)
#   TORCH_SPEC    what to hand to `pip install` for torch, options included, e.g.
#                 "torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
#   CALIBIT_CUDA  AUTO, ON or OFF: build the CUDA library (AUTO: when nvcc is found)
#   MAX_JOBS      parallel compile jobs
#
# Which torch, when TORCH_SPEC is not set: the one that PYTHON already imports, if it is new enough (.venv then sees
# PYTHON's packages through a .pth file). Else torch 2.13.0: on a machine with an NVIDIA driver the index's default build;
# elsewhere the CPU build from the configured index or from PyTorch's own, and only where neither offers one the default
# build, which on Linux brings gigabytes of CUDA libraries: said before it is done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=${1:-demo}
venv=.venv
py=$venv/bin/python
stamps=$venv/calibit # one file per finished step, holding the fingerprint of what it was done for
log=$stamps/log
torch_version=2.13.0
oldest_torch=2.11
cpu_index=https://download.pytorch.org/whl/cpu
started=$SECONDS

say() { printf 'bootstrap: %s\n' "$*"; }

# fail WHAT REMEDY: end with one sentence on what failed and one on what to do.
fail() {
  printf 'bootstrap: %s failed.\nbootstrap: %s\n' "$1" "$2" >&2
  exit 1
}

# The same after the end of the log, where a command has just written its reasons.
fail_with_log() {
  printf -- '--- end of %s\n' "$log" >&2
  grep -v "^WARNING: Location .* is ignored" "$log" | tail -n 25 >&2 || true
  printf -- '---\n' >&2
  fail "$@"
}

is_done() { [ -f "$stamps/$1" ] && [ "$(cat "$stamps/$1")" = "$2" ]; }
finished() { printf '%s\n' "$2" >"$stamps/$1"; }
hash_of() { sha256sum | cut -c1-32; }
pip_install() { "$py" -m pip --disable-pip-version-check --no-input install --quiet "$@" >"$log" 2>&1; }

check_machine() {
  [[ $mode =~ ^(build|demo|test)$ ]] ||
    fail "reading the arguments" "Expected build, demo or test, got '$mode'."
  python=${PYTHON:-python3}
  command -v "$python" >/dev/null ||
    fail "looking for Python" "'$python' is not on PATH: install Python 3.10 or newer with venv, or set PYTHON."
  command -v make >/dev/null || fail "looking for make" "Install it (Debian, Ubuntu: apt install make)."
  local gcc="Install g++ 12 or newer (Debian, Ubuntu: apt install g++), or name one in CXX."
  if [ -z "${CXX:-}" ]; then
    command -v g++ >/dev/null || fail "looking for a C++ compiler" "$gcc"
    [ "$(g++ -dumpversion | cut -d. -f1)" -ge 12 ] ||
      fail "checking the C++ compiler (g++ $(g++ -dumpversion))" "$gcc"
  fi
}

# Wait until no other bootstrap runs in this tree. The lock belongs to file descriptor 9 and ends with this process.
take_lock() {
  mkdir -p "$stamps"
  exec 9>"$venv/bootstrap.lock"
  "$1" - <<'PY'
import fcntl
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("bootstrap: another bootstrap runs in this tree, waiting for it", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
PY
}

make_venv() {
  if ! { [ -x "$py" ] && "$py" -m pip --version >/dev/null 2>&1; }; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
      fail "checking Python ($("$python" --version 2>&1))" "Install Python 3.10 or newer, or name one in PYTHON."
    say "creating $venv with $("$python" --version 2>&1)"
    "$python" -m venv "$venv" >"$log" 2>&1 ||
      fail_with_log "creating $venv" "Install the venv module (Debian, Ubuntu: apt install python3-venv), remove $venv, try again."
  fi
  "$py" -c 'import os, sys, sysconfig; sys.exit(not os.path.isfile(sysconfig.get_path("include") + "/Python.h"))' ||
    fail "looking for Python.h" "Install Python's headers (Debian, Ubuntu: apt install python3-dev)."
}

# imports_torch PYTHON: succeed when it imports a new enough torch; print its version of Python, then its package folders.
imports_torch() {
  "$1" - 2>/dev/null <<PY
import pathlib, re, sys
import torch
if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (${oldest_torch/./, }):
    sys.exit(1)
print("python%d.%d" % sys.version_info[:2])
folders = [str(pathlib.Path(torch.__file__).parents[1])]
folders += [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
print("\n".join(dict.fromkeys(folders)))
PY
}

# Reuse the torch of the Python outside: a .pth line per folder makes its packages visible, after those of .venv.
borrow_torch() {
  local found inside
  found=$(imports_torch "$python") || return 1
  inside=$("$py" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  [[ $inside == */"$(head -n 1 <<<"$found")"/* ]] || return 1
  tail -n +2 <<<"$found" >"$inside/calibit_outer_packages.pth"
  imports_torch "$py" >/dev/null || { rm -f "$inside/calibit_outer_packages.pth"; return 1; }
  # venv brings an old setuptools before Python 3.12; torch wants the newer one outside, which it would hide.
  "$py" -m pip --quiet uninstall --yes setuptools >"$log" 2>&1 || true
  say "torch: reusing the one that $(command -v "$python") imports"
}

# Only a missing version lets the search go on; any other failure of pip ends it.
try_torch() {
  say "torch: pip install $*"
  pip_install "$@" && return 0
  grep -q "No matching distribution" "$log" ||
    fail_with_log "installing torch ($*)" "Check the network, pip's index and the free space, or name another build in TORCH_SPEC."
  return 1
}

reaches() {
  "$py" -c 'import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], method="HEAD"), timeout=10)' "$1" 2>/dev/null
}

download_torch() {
  local plain="torch==$torch_version" cpu="torch==$torch_version+cpu"
  if ! command -v nvidia-smi >/dev/null; then
    try_torch "$cpu" && return 0
    if reaches "$cpu_index/torch/"; then try_torch "$cpu" --extra-index-url "$cpu_index" && return 0; fi
    say "torch: no CPU build found; the default build follows, on Linux with gigabytes of CUDA libraries"
  fi
  try_torch "$plain" ||
    fail_with_log "installing torch" "No build of $plain for $("$py" --version): name another in TORCH_SPEC, or another PYTHON."
}

install_torch() {
  local wanted="torch ${TORCH_SPEC:-default}"
  is_done torch "$wanted" && return 0
  if [ -n "${TORCH_SPEC:-}" ]; then
    local words
    read -ra words <<<"$TORCH_SPEC"
    try_torch "${words[@]}" || fail_with_log "installing torch ($TORCH_SPEC)" "The index has no such build: change TORCH_SPEC."
  elif ! imports_torch "$py" >/dev/null; then
    borrow_torch || download_torch
  fi
  imports_torch "$py" >/dev/null ||
    fail "importing torch in $venv" "It needs torch $oldest_torch or newer: try '$py -c \"import torch\"', or set TORCH_SPEC."
  finished torch "$wanted"
}

installed_torch() { "$py" -c 'from importlib.metadata import version; print("torch==" + version("torch"))'; }

packages_of() {
  "$py" scripts/requirements.py "$1" || fail "reading pyproject.toml" "Mend the file."
}
packages_fingerprint() { { printf '%s\n' "$torch"; packages_of "$1"; } | hash_of; }

install_packages() {
  local each fingerprint
  fingerprint=$(packages_fingerprint "$mode") || exit 1
  is_done "packages-$mode" "$fingerprint" && return 0
  printf '%s\n' "$torch" >"$stamps/constraints.txt"
  packages_of "$mode" >"$stamps/requirements.txt"
  say "packages for '$mode': pip install, $(wc -l <"$stamps/requirements.txt") requirements beside $torch"
  pip_install -c "$stamps/constraints.txt" -r "$stamps/requirements.txt" ||
    fail_with_log "installing the packages of '$mode'" "Check the network, pip's index and the free space, then run it again."
  for each in build demo test; do # each mode holds those before it
    finished "packages-$each" "$(packages_fingerprint "$each")"
    [ "$each" = "$mode" ] && break
  done
}

source_fingerprint() {
  {
    printf '%s\n' "$torch" "$PWD" "${CALIBIT_CUDA:-}" "${CALIBIT_CUDA_ARCHS:-}" "${CXX:-}" "${CXXFLAGS:-}"
    command -v nvcc || true
    find csrc cmake CMakeLists.txt pyproject.toml scripts/check_*.py -type f -print0 | sort -z | xargs -0 sha256sum
  } | hash_of
}

build_extension() {
  local fingerprint
  fingerprint=$(source_fingerprint)
  is_done extension "$fingerprint" && return 0
  say "extension: compiling and installing it editable"
  pip_install --no-build-isolation --no-deps -e . ||
    fail_with_log "building the extension" "The compiler's or CMake's message is above; whole log: $log."
  "$py" -c 'import calibit' 2>"$log" || fail_with_log "importing the extension" "The reason is above."
  finished extension "$fingerprint"
}

check_machine
if [ -x "$py" ]; then take_lock "$py"; else take_lock "$python"; fi
is_done torch "torch ${TORCH_SPEC:-default}" || make_venv
install_torch
torch=$(installed_torch) || fail "reading the version of torch" "Remove $venv and run it again."
install_packages
build_extension
say "ready ($mode, $((SECONDS - started)) s)"
