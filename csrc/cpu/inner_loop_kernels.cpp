// The engine for one type of number (MF_REAL), compiled once per instruction set with MF_ISA as its namespace.
#include "layers/engine.h"

#define MF_JOIN_(a, b) a##b
#define MF_JOIN(a, b) MF_JOIN_(a, b)

namespace mf::cpu::MF_ISA {

std::unique_ptr<AnyEngine> MF_JOIN(make_engine_, MF_REAL)(const Program& program, const EngineSettings& settings) {
  return std::make_unique<Engine<MF_REAL>>(program, settings);
}

}  // namespace mf::cpu::MF_ISA
