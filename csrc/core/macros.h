// Compiler differences, in one place. No torch below the drivers.
#pragma once

#if defined(__CUDACC__)
#define MF_HD __host__ __device__ __forceinline__
#else
#define MF_HD inline __attribute__((always_inline))
#endif
