// What the code is built for. Eight lanes run with AVX2 or, split in two, NEON; sixteen with AVX-512 and its VNNI.

#ifndef LANES
#define LANES 8
#endif

#if !defined(__x86_64__)
int dankai_edge_runs_here(void) { return LANES == 8; }
#elif LANES == 16
int dankai_edge_runs_here(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#endif
#define WITH_AVX512 1
#else
int dankai_edge_runs_here(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define WITH_AVX2 1
#endif
