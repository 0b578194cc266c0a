// The memory-speed limit that optimizer steps are compared with: the same number of read and of read-modify-write
// streams, and next to no arithmetic. No torch here.
#pragma once

#include <cstdint>

namespace mf {

struct StreamArrays {
  void* const* writes;     // read, negated and written back
  const uint64_t* signs;   // per write stream: the sign bits of its dtype within a 64-bit word
  const int* write_bytes;  // bytes of one element: 2, 4 or 8
  int n_writes;
  const void* const* reads;  // only read
  const int* read_bytes;
  int n_reads;
};

constexpr int kStreamBlock = 64;  // elements; each stream moves by whole vectors of 64 bytes in turn

// Passes over elements [begin, end); begin is a multiple of kStreamBlock. Uses AVX-512 or AVX2 where the CPU has it.
void stream_range(const StreamArrays& arrays, int64_t begin, int64_t end);

}  // namespace mf
