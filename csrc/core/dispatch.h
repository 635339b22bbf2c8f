#pragma once
// Which kernel table runs. Chosen by CPUID facts alone, so that the same machine always gives the
// same bits; CALIBIT_ISA or a `kernels=` argument forces one.
#include <string>
#include <vector>

#include "core/kernels.h"

namespace calibit {

struct KernelsInfo {
  std::string name;
  bool supported;  // by this CPU
  bool active;     // what runs when nothing is forced
};

std::vector<KernelsInfo> list_kernels();  // best first

// The table in use: CALIBIT_ISA when set, else the best supported one. Read once.
// Throws std::invalid_argument when CALIBIT_ISA names an unknown or unsupported table.
const Kernels& active_kernels();

// A table by name, its null entries filled from the portable one; empty = active_kernels().
// Throws std::invalid_argument for an unknown name or a table that this CPU cannot run.
const Kernels& kernels_named(const std::string& name);

}  // namespace calibit
