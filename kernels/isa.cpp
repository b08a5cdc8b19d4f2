#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace hpcrl {
namespace {

constexpr int kUndecided = -1;
std::atomic<int> chosen{kUndecided};

Isa parse(const std::string& name, const char* source) {
  for (const Isa isa : kAllIsas) {
    if (name != isa_name(isa)) continue;
    if (!isa_supported(isa)) {
      throw std::invalid_argument(std::string(source) + ": want an instruction set of this CPU, got '" + name +
                                  "'; leave it out to use the widest");
    }
    return isa;
  }
  throw std::invalid_argument(std::string(source) + ": want generic, avx2 or avx512, got '" + name + "'");
}

Isa widest() {
  if (isa_supported(Isa::kAvx512)) return Isa::kAvx512;
  return isa_supported(Isa::kAvx2) ? Isa::kAvx2 : Isa::kGeneric;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kGeneric:
      break;
  }
  return "generic";
}

bool isa_supported(Isa isa) {
  if (isa == Isa::kGeneric) return true;
#ifdef HPCRL_X86_64
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::kAvx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

Isa isa() {
  const int known = chosen.load(std::memory_order_relaxed);
  if (known != kUndecided) return static_cast<Isa>(known);
  const char* wanted = std::getenv("HPCRL_ISA");
  const Isa decided = wanted == nullptr || *wanted == '\0' ? widest() : parse(wanted, "HPCRL_ISA");
  chosen.store(static_cast<int>(decided), std::memory_order_relaxed);
  return decided;
}

void set_isa(const char* name) {
  chosen.store(static_cast<int>(parse(name, "isa")), std::memory_order_relaxed);
}

}  // namespace hpcrl
