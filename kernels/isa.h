// Instruction sets of the CPU path: which there are, which one is in use.
#pragma once

namespace hpcrl {

enum class Isa { kGeneric, kAvx2, kAvx512 };
constexpr Isa kAllIsas[] = {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512};

const char* isa_name(Isa isa);
bool isa_supported(Isa isa);

// The widest one supported, unless environment variable HPCRL_ISA (generic, avx2, avx512) names another or set_isa did.
// Throws std::invalid_argument for a name that is unknown or that this CPU cannot run.
Isa isa();
void set_isa(const char* name);

}  // namespace hpcrl
