// Run a function on several threads at once.

#pragma once

#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

// GOMP_parallel of the process's OpenMP library, or null.
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);

namespace {

// On up to `n_threads` threads, this one included: of the OpenMP library's pool if there is one.
inline void run_on_threads(void (*work)(void*), void* data, int64_t n_threads, Parallel parallel) {
    if (n_threads > 1 && parallel) {
        parallel(work, data, unsigned(n_threads), 0);
        return;
    }
    std::vector<std::thread> threads;
    try {
        for (int64_t n = 1; n < n_threads; ++n) threads.emplace_back(work, data);
    } catch (const std::system_error&) {
        // No more threads are to be had: those there are do all.
    }
    work(data);
    for (auto& thread : threads) thread.join();
}

}  // namespace
