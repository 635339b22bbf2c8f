#include "core/dispatch.h"

#include <array>
#include <cstdlib>

#include "core/error.h"

#if defined(__x86_64__) || defined(__i386__)
#define CALIBIT_X86 1
#else
#define CALIBIT_X86 0
#endif

namespace calibit {
namespace {

bool always() { return true; }
#if CALIBIT_X86
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

struct Entry {
  const Kernels* kernels;
  bool (*supported)();
};

// Best first.
constexpr std::array kTables{
#if CALIBIT_X86
    Entry{&avx512_kernels, has_avx512},
    Entry{&avx2_kernels, has_avx2},
#endif
    Entry{&portable_kernels, always},
};

Kernels filled(const Kernels& k) {
  const Kernels& p = portable_kernels;
  return {k.name,
          k.quantize ? k.quantize : p.quantize,
          k.dequantize ? k.dequantize : p.dequantize,
          k.linear ? k.linear : p.linear,
          k.linear_input_grad ? k.linear_input_grad : p.linear_input_grad,
          k.softmax_sums ? k.softmax_sums : p.softmax_sums,
          k.gptq_solve ? k.gptq_solve : p.gptq_solve};
}

const std::array<Kernels, kTables.size()>& filled_tables() {
  static const auto tables = [] {
    std::array<Kernels, kTables.size()> t{};
    for (std::size_t i = 0; i < t.size(); ++i) t[i] = filled(*kTables[i].kernels);
    return t;
  }();
  return tables;
}

std::string names() {
  std::string text;
  for (const Entry& e : kTables)
    if (e.supported()) text += (text.empty() ? "" : ", ") + std::string(e.kernels->name);
  return text;
}

const Kernels& find(const std::string& name, const char* where) {
  for (std::size_t i = 0; i < kTables.size(); ++i) {
    if (name != kTables[i].kernels->name) continue;
    if (!kTables[i].supported())
      fail(where, "expected kernels that this CPU can run (", names(), "), got '", name, "'");
    return filled_tables()[i];
  }
  fail(where, "expected one of this build's kernels (", names(), "), got '", name, "'");
}

const Kernels& best() {
  for (std::size_t i = 0; i < kTables.size(); ++i)
    if (kTables[i].supported()) return filled_tables()[i];
  return filled_tables().back();
}

}  // namespace

const Kernels& active_kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const char* forced = std::getenv("CALIBIT_ISA");
    return forced && *forced ? find(forced, "CALIBIT_ISA") : best();
  }();
  return chosen;
}

const Kernels& kernels_named(const std::string& name) {
  return name.empty() ? active_kernels() : find(name, "kernels");
}

std::vector<KernelsInfo> list_kernels() {
  std::vector<KernelsInfo> list;
  list.reserve(kTables.size());
  for (const Entry& e : kTables)
    list.push_back(
        {e.kernels->name, e.supported(), std::string(e.kernels->name) == active_kernels().name});
  return list;
}

}  // namespace calibit
